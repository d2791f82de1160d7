"""Blocks of bytes as a stream that reads lines, and so many bytes."""

import io
from collections.abc import Iterator


class _Blocks(io.RawIOBase):
    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


def byte_stream(blocks: Iterator[bytes]) -> io.BufferedReader:
    """Return blocks as a stream."""
    return io.BufferedReader(_Blocks(blocks), 1 << 16)

"""Packed files, which may consist of several frames or streams, to the blocks that they hold."""

import bz2
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard

from quintic.errors import QuinticError

# Packed bytes can hold ten thousand times as many.
_BLOCK_BYTES = 1 << 20


_ZSTD_FRAME = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
_ONE_BYTE_REPEATED = 1


def _read_pieces(stream: BinaryIO, read_bytes: int) -> Iterator[bytes]:
    """Yield what is in a file, so many bytes at a time."""
    return iter(lambda: stream.read(read_bytes), b"")


def _zstd_pieces(stream: BinaryIO, read_bytes: int) -> Iterator[bytes]:
    """Yield what is in a file of zstd, cut behind every block, which holds 128 KiB at most.

    zstandard has no limit to what comes out at once, and a block of four bytes may hold as much.
    The layout is that of RFC 8878, section 3.1.
    """
    while begin := stream.read(len(_ZSTD_FRAME)):
        if begin == _ZSTD_FRAME:
            yield from _zstd_frame(begin, stream)
        elif begin in _ZSTD_SKIPPED:
            size = stream.read(4)
            yield begin + size
            left = int.from_bytes(size, "little")
            while left and (skipped := stream.read(min(left, read_bytes))):
                left -= len(skipped)
                yield skipped
        elif begin.startswith(b"\0") and stream.tell() > len(begin):
            behind = (begin + stream.read(read_bytes)).lstrip(b"\0")
            stream.seek(-len(behind), os.SEEK_CUR)
        else:
            yield begin + stream.read(read_bytes)


def _zstd_frame(begin: bytes, stream: BinaryIO) -> Iterator[bytes]:
    descriptor = stream.read(1)
    flags = int.from_bytes(descriptor, "little")
    is_single, checksum_bytes = flags >> 5 & 1, 4 * (flags >> 2 & 1)
    # Of the window, the dictionary and the content's size.
    sizes = 1 - is_single, (0, 1, 2, 4)[flags & 3], (is_single, 2, 4, 8)[flags >> 6]
    yield begin + descriptor + stream.read(sum(sizes))
    is_last = 0
    while not is_last and (header := stream.read(3)):
        value = int.from_bytes(header, "little")
        is_last, kind, size = value & 1, value >> 1 & 3, value >> 3
        size = 1 if kind == _ONE_BYTE_REPEATED else size
        yield header + stream.read(size + is_last * checksum_bytes)


class _Packing(NamedTuple):
    """How files of one suffix are packed: the name, the bytes they begin with, an unpacker, and how
    a file is cut into what it is given at once."""

    name: str
    begins: tuple[bytes, ...]
    unpacker: Callable[[], Any]
    pieces: Callable[[BinaryIO, int], Iterator[bytes]] = _read_pieces


PACKINGS: dict[str, _Packing] = {
    ".gz": _Packing("gzip", (b"\x1f\x8b",), lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)),
    ".zst": _Packing(
        "zstd",
        # A frame may be one to skip.
        (_ZSTD_FRAME, *_ZSTD_SKIPPED),
        # The window of `zstd --long=31`, the largest there is.
        lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
        _zstd_pieces,
    ),
    ".xz": _Packing("xz", (b"\xfd7zXZ\0",), lambda: lzma.LZMADecompressor(memlimit=2**31)),
    ".bz2": _Packing("bzip2", (b"BZh",), bz2.BZ2Decompressor),
}
"""Packings by the suffix of their files."""


def packing_of(head: bytes) -> str:
    """Return the suffix of the packing of what begins so, in 16 bytes; "" where it is none."""
    for suffix, how in PACKINGS.items():
        # Text could begin as bzip2 does, but does not go on so.
        if head.startswith(how.begins) and (suffix != ".bz2" or head[4:10] == b"1AY&SY"):
            return suffix
    return ""


def unpacked(
    stream: BinaryIO, packing: str, name: str, size: int, read_bytes: int
) -> Iterator[bytes]:
    """Yield the content of a file of `size` bytes, of which `read_bytes` are read at once.

    What is yielded has 1 MiB at most, however well it was packed. Raises `QuinticError` where it is
    packed in another way or not at all, damaged, or truncated.
    """
    how = PACKINGS[packing]
    unpacker, begun, first = how.unpacker(), False, True
    for packed in how.pieces(stream, read_bytes):
        if first and not packed.startswith(how.begins):
            raise QuinticError(
                f"input {name} cannot be read as {how.name}: it begins with {packed[:16]!r}: "
                f"rename it if it is not packed"
            )
        first = False
        # Zeros may follow a frame as padding, and are none.
        while packed := packed if begun else packed.lstrip(b"\0"):
            begun = True
            rest: bytes | None = packed
            try:
                while rest is not None:
                    yield unpacker.decompress(rest, *_limit(packing))
                    rest = _rest(unpacker)
            # Only bzip2 raises OSError for what is packed.
            except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:
                raise _damaged(name, stream.tell(), error) from error
            packed = b""
            if unpacker.eof:
                packed, unpacker, begun = unpacker.unused_data, how.unpacker(), False
    if begun:
        raise QuinticError(
            f"input {name} is truncated: its {packing} stream does not end within its {size} "
            f"bytes; copy or download it again"
        )


def _limit(packing: str) -> tuple[int, ...]:
    """Return the argument that bounds what comes out at once, where there is one."""
    return () if packing == ".zst" else (_BLOCK_BYTES,)


def _rest(unpacker: Any) -> bytes | None:
    """Return what an unpacker that stopped at its limit is to be given; None where it is done."""
    if not (unpacker.eof or getattr(unpacker, "needs_input", True)):
        return b""
    return getattr(unpacker, "unconsumed_tail", b"") or None


def _damaged(name: str, position: int, error: Exception) -> QuinticError:
    if "ictionary" in str(error):
        return QuinticError(
            f"input {name} is packed with a dictionary ({error}): unpack it with zstd -d -D "
            f"DICTIONARY"
        )
    return QuinticError(
        f"input {name} is damaged before its byte {position} ({error}): copy or download it again"
    )

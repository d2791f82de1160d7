"""Packed files, which may consist of several frames or streams, to the blocks that they hold."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard

from quintic.errors import QuinticError

# Packed bytes can hold ten thousand times as many; those that can be asked to stop do.
_BLOCK_BYTES = 1 << 22


class _Packing(NamedTuple):
    """How files of one suffix are packed: the name, the bytes they begin with, an unpacker."""

    name: str
    begins: tuple[bytes, ...]
    unpacker: Callable[[], Any]


PACKINGS: dict[str, _Packing] = {
    ".gz": _Packing("gzip", (b"\x1f\x8b",), lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)),
    ".zst": _Packing(
        "zstd",
        # A frame may be one to skip.
        (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))),
        # The window of `zstd --long=31`, the largest there is.
        lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
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

    Raises `QuinticError` where it is packed in another way or not at all, damaged, or truncated.
    """
    how = PACKINGS[packing]
    unpacker, begun = how.unpacker(), False
    while packed := stream.read(read_bytes):
        if stream.tell() == len(packed) and not packed.startswith(how.begins):
            raise QuinticError(
                f"input {name} cannot be read as {how.name}: it begins with {packed[:16]!r}: "
                f"rename it if it is not packed"
            )
        # Zeros may follow a frame as padding, and are none.
        while packed := packed if begun else packed.lstrip(b"\0"):
            begun = True
            try:
                yield unpacker.decompress(packed, *_limit(packing))
                while not (unpacker.eof or getattr(unpacker, "needs_input", True)):
                    yield unpacker.decompress(b"", *_limit(packing))
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
    return (_BLOCK_BYTES,) if packing in (".xz", ".bz2") else ()


def _damaged(name: str, position: int, error: Exception) -> QuinticError:
    if "ictionary" in str(error):
        return QuinticError(
            f"input {name} is packed with a dictionary ({error}): unpack it with zstd -d -D "
            f"DICTIONARY"
        )
    return QuinticError(
        f"input {name} is damaged before its byte {position} ({error}): copy or download it again"
    )

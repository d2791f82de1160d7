"""The .bin format of token shards; no other file knows its bytes.

A shard is a header of 256 little-endian int32 (magic, version, number of tokens, zeros) and then
the tokens. Both formats are llm.c's (Karpathy 2024, HEADERS_INFO in `dev/data/data_common.py` at
commit f1e2ace), so that shards of llm.c, modded-nanogpt and quintic are interchangeable:

    magic 20240520, version 1: uint16 tokens, for vocabularies up to 65,536 (GPT-2)
    magic 20240801, version 7: uint32 tokens, for larger ones (llm.c uses it for Llama 3)
"""

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quintic.errors import QuinticError, counted, reason, way_out
from quintic.files import replacing

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAX_SHARD_TOKENS = 2**31 - 1  # the header counts them in an int32

TokenDtype = np.dtype[np.unsignedinteger]

_INT32 = np.dtype("<i4")
_UINT16: TokenDtype = np.dtype("<u2")
_UINT32: TokenDtype = np.dtype("<u4")
_FORMATS = {20240520: (1, _UINT16), 20240801: (7, _UINT32)}  # magic: (version, dtype)

# A map of a shard keeps a file descriptor; 64 stay far below the usual limit of 1,024.
_OPEN_MAPS = 64


@dataclass(frozen=True)
class Shard:
    """A shard whose header and size were found right, with at least one token.

    The tokens are little-endian uint16 or uint32, and lie from `offset` bytes on: behind the
    header, or anywhere in a file of another tool that has none.
    """

    path: Path
    count: int
    dtype: TokenDtype
    offset: int = HEADER_BYTES

    @property
    def tokens(self) -> npt.NDArray[np.unsignedinteger]:
        """The tokens, [count], as a fresh memory map: nothing is read before it is indexed."""
        return np.memmap(
            self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.count,)
        )

    def blocks(
        self, block_tokens: int
    ) -> Iterator[tuple[memoryview, npt.NDArray[np.unsignedinteger]]]:
        """Iterate once over the whole file: bytes, and the tokens in them, [at most block_tokens].

        The first bytes are the header's, without tokens, if it has one. Both are valid until the
        next step. Raises OSError where the file cannot be read, or has become shorter.
        """
        itemsize = self.dtype.itemsize
        buffer = memoryview(bytearray(max(HEADER_BYTES, block_tokens * itemsize)))
        ends = range(block_tokens, self.count + block_tokens, block_tokens)
        counts = [0, *(min(block_tokens, self.count - end + block_tokens) for end in ends)]
        with self.path.open("rb") as file:
            if self.offset != HEADER_BYTES:
                file.seek(self.offset)
                del counts[0]
            for count in counts:
                block = buffer[: count * itemsize or HEADER_BYTES]
                if hasattr(os, "posix_fadvise"):  # the disk reads on while this block is worked on
                    next_byte = file.tell() + len(block)
                    os.posix_fadvise(file.fileno(), next_byte, len(buffer), os.POSIX_FADV_WILLNEED)
                if file.readinto(block) < len(block):
                    raise OSError(errno.EIO, "it has become shorter", str(self.path))
                yield block, np.frombuffer(block, dtype=self.dtype, count=count)


def write_shard(path: Path, tokens: npt.ArrayLike) -> Shard:
    """Write token ids, [tokens], aside and then renamed: the file is whole or absent.

    They are stored in 16 bits where all of them fit, else in 32. Raises `QuinticError` for no
    tokens, too many for one shard, and ids outside [0, 2**32), and OSError as `replacing` does.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or not 1 <= array.size <= MAX_SHARD_TOKENS:
        raise QuinticError(
            f"shard {path} cannot be written with tokens of shape {array.shape}: a shard holds a "
            f"list of 1 to {MAX_SHARD_TOKENS} tokens; write none for no text, several for more"
        )
    smallest, largest = int(array.min()), int(array.max())
    if not np.issubdtype(array.dtype, np.integer) or smallest < 0 or largest >= 2**32:
        raise QuinticError(
            f"shard {path} cannot be written with {array.dtype} tokens from {smallest} to "
            f"{largest}: token ids are integers from 0 to 4294967295; check the tokenizer"
        )
    dtype = token_dtype(largest + 1)
    with replacing(path) as file:
        file.write(_header(array.size, dtype))
        file.write(np.ascontiguousarray(array, dtype=dtype).data)
    return Shard(path, array.size, dtype)


def token_dtype(vocab_size: int) -> TokenDtype:
    """Return how the tokens of a vocabulary are stored: in 16 bits if all ids fit, else in 32."""
    return _UINT16 if vocab_size <= 2**16 else _UINT32


def _header(count: int, dtype: TokenDtype) -> bytes:
    magic = next(magic for magic, (_, stored) in _FORMATS.items() if stored == dtype)
    header = np.zeros(HEADER_INTS, dtype=_INT32)
    header[:3] = magic, _FORMATS[magic][0], count
    return header.tobytes()


class ShardWriter:
    """Writes a shard bit by bit; the file takes its name when it is finished.

    Until then the tokens lie in a hidden neighbour. Another writer can go on with it, also if the
    shard was finished since: after the first `kept` tokens, and what lies beyond them is dropped.
    `count` is the number of tokens so far.

    Raises `QuinticError` where the kept tokens are not there, and OSError where the folder cannot
    be written or the disk is full.
    """

    def __init__(self, path: Path, vocab_size: int, kept: int = 0) -> None:
        self.path, self.count = path, kept
        self._dtype = token_dtype(vocab_size)
        self._part = part_of(path)
        self._file: BinaryIO
        if not kept:
            self._file = self._part.open("wb")
            self._file.write(bytes(HEADER_BYTES))
            return
        end = HEADER_BYTES + kept * self._dtype.itemsize
        if not self._part.exists() and path.exists():
            path.rename(self._part)
        if not self._part.exists() or self._part.stat().st_size < end:
            raise QuinticError(
                f"shard {path} cannot be continued: of the {counted(kept, 'token')} written there "
                f"are fewer; delete {path.parent} and build it again"
            )
        self._file = self._part.open("r+b")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, tokens: npt.NDArray[np.unsignedinteger]) -> None:
        """Write tokens, [count], which all are ids of the vocabulary."""
        self._file.write(np.ascontiguousarray(tokens, dtype=self._dtype).data)
        self.count += len(tokens)

    def flush(self) -> None:
        """Put on disk what was written: it survives a power cut after this."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> Shard:
        """Give the shard its header and its name; it must have a token."""
        assert self.count, "a shard has at least one token"
        self._file.seek(0)
        self._file.write(_header(self.count, self._dtype))
        self.flush()
        self._file.close()
        self._part.replace(self.path)
        return Shard(self.path, self.count, self._dtype)

    def close(self) -> None:
        """Leave the shard unfinished."""
        self._file.close()


def part_of(path: Path) -> Path:
    """Return where the tokens of an unfinished shard lie."""
    return path.with_name(f".{path.name}.part")


def has_header(path: Path) -> bool:
    """Return whether a file begins as a shard does."""
    with path.open("rb") as file:
        magic = file.read(4)
    return len(magic) == 4 and int.from_bytes(magic, "little") in _FORMATS


def open_shard(path: Path) -> Shard:
    """Open a shard and check its size against its header; its tokens are not read.

    Raises `QuinticError` where it is unreadable, of another format or version, truncated, without
    tokens, or with bytes after its last one.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = file.read(HEADER_BYTES)
    except OSError as error:
        raise QuinticError(
            f"shard {path} cannot be read ({reason(error)}): {way_out(error)}"
        ) from error
    if len(header_bytes) < HEADER_BYTES:
        raise QuinticError(
            f"shard {path} is truncated: expected a header of {HEADER_BYTES} bytes, found {size} "
            f"bytes; copy or download it again"
        )
    magic, version, count = (int(value) for value in np.frombuffer(header_bytes, _INT32)[:3])
    if magic not in _FORMATS:
        raise QuinticError(
            f"shard {path} is not a token shard: expected magic 20240520 (or 20240801), found "
            f"{magic}; make it in llm.c's format, whose header precedes the tokens"
        )
    expected_version, dtype = _FORMATS[magic]
    if version != expected_version:
        raise QuinticError(
            f"shard {path} has an unknown version: expected {expected_version} for magic {magic}, "
            f"found {version}; make it again in that version"
        )
    if count < 1:
        raise QuinticError(
            f"shard {path} is empty: its header counts {count} tokens, at least 1 is needed; "
            f"remove the file or make it again"
        )
    expected_size = HEADER_BYTES + count * dtype.itemsize
    if size != expected_size:
        what = "is truncated" if size < expected_size else "has bytes after its last token"
        raise QuinticError(
            f"shard {path} {what}: expected {expected_size} bytes for the {count} tokens of its "
            f"header, found {size} bytes; copy or download it again"
        )
    return Shard(path, count, dtype)


class TokenStream:
    """Many shards as one circular stream of tokens.

    Positions count from the first token of the first shard and are taken modulo the length, so
    that reading goes on at the beginning when it comes to the end. There is at least one shard.
    Several threads may read at once. With a `vocab_size`, ids that are not below it are refused as
    they are read.
    """

    def __init__(self, shards: Sequence[Shard], vocab_size: int | None = None) -> None:
        assert shards, "a stream has at least one shard"
        self._vocab_size = vocab_size
        self.shards = opened = tuple(shards)
        self._starts = np.cumsum([0, *(shard.count for shard in self.shards)])
        self._tokens = lru_cache(maxsize=_OPEN_MAPS)(lambda index: opened[index].tokens)

    def __len__(self) -> int:
        """Return the number of tokens of all shards."""
        return int(self._starts[-1])

    @property
    def files(self) -> int:
        """The number of files that the shards lie in."""
        return len({shard.path for shard in self.shards})

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Copy the `count` tokens from position `start` on, [count], across shard ends.

        Raises `QuinticError`, which names shard and place, for an id beyond the vocabulary.
        """
        tokens = np.empty(count, dtype=np.int64)
        position = start % len(self)
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        offset = position - int(self._starts[index])
        filled = 0
        while filled < count:
            size = min(count - filled, self.shards[index].count - offset)
            # NumPy widens while it copies from the map; torch's own uint16 cast is far slower.
            tokens[filled : filled + size] = self._tokens(index)[offset : offset + size]
            filled += size
            index, offset = (index + 1) % len(self.shards), 0
        if self._vocab_size is not None and count and tokens.max() >= self._vocab_size:
            raise self._beyond_vocabulary(position, tokens)
        return tokens

    def _beyond_vocabulary(self, start: int, tokens: npt.NDArray[np.int64]) -> QuinticError:
        """Return the error for the first id beyond the vocabulary of tokens read from `start`."""
        assert self._vocab_size is not None
        first = int(np.argmax(tokens >= self._vocab_size))
        position = (start + first) % len(self)
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        path = self.shards[index].path
        return QuinticError(
            f"shard {path} holds the token id {tokens[first]} as its token "
            f"{position - int(self._starts[index])}, counted from 0, the vocabulary has only the "
            f"ids 0 to {self._vocab_size - 1}: see what else is damaged with quintic data check "
            f"{path.parent}, and copy or build the dataset again"
        )

    def blocks(self, block_tokens: int = 1 << 22) -> Iterator[npt.NDArray[np.int64]]:
        """Iterate once over the whole stream, [at most block_tokens] at a time."""
        for start in range(0, len(self), block_tokens):
            yield self.read(start, min(block_tokens, len(self) - start))

    def shard_max_ids(self, limit_tokens: int | None = None) -> dict[Shard, int]:
        """Return the largest id of each shard, as far as the first `limit_tokens` tokens reach."""
        limit = len(self) if limit_tokens is None else max(limit_tokens, 1)
        read = [i for i, start in enumerate(self._starts[:-1].tolist()) if start < limit]

        def largest(index: int) -> int:
            return int(self._tokens(index)[: limit - int(self._starts[index])].max())

        # NumPy lets go of the interpreter while it reduces, and the disk is read in parallel.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return dict(zip([self.shards[i] for i in read], pool.map(largest, read), strict=True))

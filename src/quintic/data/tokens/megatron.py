"""Megatron's indexed datasets: PREFIX.bin with the ids of all, PREFIX.idx with where they lie.

The index, little-endian: "MMIDIDX\\0\\0", uint64 version 1, uint8 code of the type, uint64 number
of sequences, uint64 number of entries of the document list; int32 length of each sequence in
tokens, int64 place of each in bytes, int64 first sequence of each document, and the number of
sequences.
Read from the bytes that megatron-core 0.16.1's `IndexedDatasetBuilder` writes.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from quintic.data.tokens.token_file import Append, TokenBlock, TokenFile, document_groups
from quintic.errors import QuinticError

_MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

# Megatron's own choice: 16 bits below this size of a vocabulary, else int32.
_SMALL_VOCABULARY = 65_500


@dataclass(frozen=True)
class _Index:
    """An index: lengths in tokens and places in bytes of sequences, [sequences], and the first
    sequence of each document and the end, [documents + 1]."""

    dtype: np.dtype[Any]
    lengths: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]


def find_megatron(folder: Path, names: list[str]) -> list[TokenFile]:
    """Return the datasets of a folder.

    Raises `QuinticError` for an index that is damaged or of another version, and for a .bin that is
    absent or shorter than its index says.
    """
    return [_token_file(folder / name) for name in names if name.endswith(".idx")]


def _token_file(index_path: Path) -> TokenFile:
    path, index = index_path.with_suffix(".bin"), _read_index(index_path)
    if not path.is_file():
        raise QuinticError(f"{index_path} is there without {path.name}: copy both")
    ends = index.places + index.lengths * index.dtype.itemsize
    size, needed = path.stat().st_size, int(ends.max(initial=0))
    if size < needed:
        raise QuinticError(
            f"{path} is truncated: it has {size} bytes, its index says {needed}; copy or make it "
            f"again"
        )
    if not needed:
        raise QuinticError(f"{path} holds no tokens: copy or make it again")
    return TokenFile(path, int(index.lengths.sum()), partial(_read, path, index))


def _read_index(path: Path) -> _Index:
    content = path.read_bytes()
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise QuinticError(f"{path} is no index of Megatron: it does not begin with MMIDIDX")
    _, version, code, sequences, entries = _HEADER.unpack_from(content)
    if version != 1 or code not in _DTYPES:
        raise QuinticError(
            f"{path} has version {version} and type {code}: version 1 is read, with integers "
            f"(types {', '.join(map(str, _DTYPES))})"
        )
    ends = np.cumsum([_HEADER.size, 4 * sequences, 8 * sequences, 8 * entries]).tolist()
    # Datasets of several modes have a byte for each sequence behind that.
    if len(content) not in (ends[3], ends[3] + sequences):
        raise QuinticError(
            f"{path} has {len(content)} bytes, its header says {ends[3]}: copy or make it again"
        )
    lengths = np.frombuffer(content, "<i4", sequences, ends[0]).astype(np.int64)
    places = np.frombuffer(content, "<i8", sequences, ends[1])
    documents = np.frombuffer(content, "<i8", entries, ends[2])
    dtype = np.dtype(_DTYPES[code])
    # A builder that was not told where documents end lists none: sequences are all there is.
    if entries <= 1:
        documents = np.arange(sequences + 1)
    in_order = documents[0] == 0 and documents[-1] == sequences and (np.diff(documents) >= 0).all()
    in_place = (lengths >= 0).all() and (places >= 0).all() and (places % dtype.itemsize == 0).all()
    if not (in_order and in_place):
        raise QuinticError(f"{path} is damaged: its lists are out of order; copy or make it again")
    return _Index(dtype, lengths, places, documents)


def _read(path: Path, index: _Index) -> Iterator[TokenBlock]:
    ids = np.memmap(path, dtype=index.dtype, mode="r", shape=(_whole(path, index.dtype),))
    starts = index.places // index.dtype.itemsize
    sums = np.concatenate([[0], np.cumsum(index.lengths)])
    lengths = np.diff(sums[index.documents])
    for first, end in document_groups(lengths):
        begin, stop = int(index.documents[first]), int(index.documents[end])
        parts = [
            ids[start : start + length]
            for start, length in zip(
                starts[begin:stop].tolist(), index.lengths[begin:stop].tolist(), strict=True
            )
        ]
        yield TokenBlock(np.concatenate(parts) if parts else ids[:0], lengths[first:end])


def _whole(path: Path, dtype: np.dtype[Any]) -> int:
    return path.stat().st_size // dtype.itemsize


@contextmanager
def megatron_writer(prefix: Path, eot_id: int, vocab_size: int) -> Iterator[Append]:
    """Make PREFIX.bin and PREFIX.idx, and yield what adds tokens that have end of text behind each
    document, which becomes one sequence.

    Raises `QuinticError` for a document of more tokens than the index can say.
    """
    dtype = np.dtype("<u2" if vocab_size < _SMALL_VOCABULARY else "<i4")
    ends, position = [], 0
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as file:

        def append(ids: npt.NDArray[np.int64]) -> None:
            nonlocal position
            file.write(ids.astype(dtype).tobytes())
            ends.append(np.flatnonzero(ids == eot_id) + position + 1)
            position += len(ids)

        yield append
    lengths = np.diff(np.concatenate(ends), prepend=0).astype(np.int64)
    if lengths.max() >= 2**31:
        raise QuinticError(
            f"a document of the dataset has {lengths.max():,} tokens, which Megatron's index has "
            f"no room for: name the tokenizer that made it, if its end of text is not {eot_id}, or "
            f"export --to nanogpt"
        )
    with prefix.with_name(f"{prefix.name}.idx").open("wb") as file:
        _write_index(file, dtype, lengths)


def _write_index(file: BinaryIO, dtype: np.dtype[Any], lengths: npt.NDArray[np.int64]) -> None:
    """Write the index of documents that lie one behind the other, [documents], in tokens, each of
    them one sequence."""
    count = len(lengths)
    code = next(code for code, name in _DTYPES.items() if np.dtype(name) == dtype)
    file.write(_HEADER.pack(_MAGIC, 1, code, count, count + 1))
    file.write(lengths.astype("<i4").tobytes())
    places = (np.cumsum(lengths) - lengths) * dtype.itemsize
    file.write(places.astype("<i8").tobytes())
    file.write(np.arange(count + 1, dtype="<i8").tobytes())

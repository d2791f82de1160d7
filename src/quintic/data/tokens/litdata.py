"""Lightning's litdata: chunk-RANK-N.bin with items one behind the other, and index.json.

As litdata 0.2.76's `optimize` writes them for an item of one array or tensor: item k is the bytes
between two places. A chunk may be zstd as a whole, chunk-RANK-N.zstd.bin.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quintic.data.tokens.json_index import INDEX, listed_number, open_chunk, read_json_index
from quintic.data.tokens.token_file import TokenBlock, TokenFile, document_groups
from quintic.errors import QuinticError

_DTYPES = {
    "no_header_numpy:5": "<u2",
    "no_header_numpy:6": "<u4",
    "no_header_numpy:2": "<i4",
    "no_header_numpy:3": "<i8",
    "no_header_tensor:20": "<u2",
    "no_header_tensor:16": "<i4",
    "no_header_tensor:18": "<i8",
}


def find_litdata(folder: Path, names: list[str]) -> list[TokenFile]:
    """Return the chunks of a folder, in the order of its index.

    Raises `QuinticError` for an index or a chunk that is damaged, items that are no single array of
    a known type, and compression within chunks.
    """
    index = read_json_index(folder, names, "chunks")
    if index is None:
        return []
    config = index.get("config") or {}
    formats = config.get("data_format") or []
    compression, level = str(config.get("compression") or ""), config.get("compression_level")
    packed = compression.startswith("zstd") and level in (None, "chunk")
    if (compression and not packed) or config.get("encryption"):
        raise QuinticError(
            f"{folder / INDEX} has compression {compression} within chunks, or encryption: chunks "
            f"that are compressed as a whole are read; make them again with "
            f"compression_level='chunk'"
        )
    if len(formats) != 1 or formats[0] not in _DTYPES:
        raise QuinticError(
            f"{folder / INDEX} has items of {', '.join(map(str, formats)) or 'no format'}: items "
            f"of one array of token ids are read ({', '.join(_DTYPES)})"
        )
    layout = _Layout(
        np.dtype(_DTYPES[formats[0]]),
        size_first=config.get("item_loader") != "TokensLoader",
        packing=".zst" * packed,
    )
    return [_token_file(folder / str(c.get("filename")), layout, c) for c in index["chunks"]]


class _Layout(NamedTuple):
    """How items lie in a chunk: the type of the ids, whether their size in bytes is before them,
    as uint32, which only `TokensLoader` leaves out, and how the chunk is packed."""

    dtype: np.dtype[Any]
    size_first: bool
    packing: str


def _token_file(path: Path, layout: _Layout, listed: dict[str, Any]) -> TokenFile:
    read = partial(_read, path, layout)
    if layout.packing:
        # Of what is packed the index tells how much it is, for the progress.
        tokens = listed_number(listed, "dim") or listed_number(listed, "chunk_bytes") // 4
        if not path.exists():
            open_chunk(path)
        return TokenFile(path, tokens, read)
    return TokenFile(path, int(_lengths(path, open_chunk(path)[1], layout).sum()), read)


def _lengths(path: Path, places: npt.NDArray[np.int64], layout: _Layout) -> npt.NDArray[np.int64]:
    """Return the lengths of the items in tokens, [items]."""
    sizes = np.diff(places) - 4 * layout.size_first
    if (sizes < 0).any() or (sizes % layout.dtype.itemsize).any():
        raise QuinticError(f"{path} holds items that are no whole number of tokens: make it again")
    return sizes // layout.dtype.itemsize


def _read(path: Path, layout: _Layout) -> Iterator[TokenBlock]:
    content, places = open_chunk(path, layout.packing)
    lengths = _lengths(path, places, layout)
    for first, end in document_groups(lengths):
        # A copy, since items need not lie where their type wants it.
        items = content[places[first] : places[end]].tobytes()
        if layout.size_first:
            ends = (places[first : end + 1] - places[first]).tolist()
            items = b"".join(items[start + 4 : stop] for start, stop in pairwise(ends))
        yield TokenBlock(np.frombuffer(items, layout.dtype), lengths[first:end])

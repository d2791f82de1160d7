"""Lightning's litdata: chunk-RANK-N.bin with items one behind the other, and index.json.

As litdata 0.2.76's `optimize` writes them for an item of one array or tensor (`TokensLoader`): item
k is the bytes between two places. An item is taken for a document.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.tokens.json_index import INDEX, item_places, read_json_index
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
    a known type, and compression.
    """
    index = read_json_index(folder, names, "chunks")
    if index is None:
        return []
    config = index.get("config") or {}
    formats = config.get("data_format") or []
    if config.get("compression") or len(formats) != 1 or formats[0] not in _DTYPES:
        raise QuinticError(
            f"{folder / INDEX} has items of {', '.join(map(str, formats)) or 'no format'} and "
            f"compression {config.get('compression')}: items of one array of token ids are read, "
            f"without compression ({', '.join(_DTYPES)})"
        )
    dtype = np.dtype(_DTYPES[formats[0]])
    return [_token_file(folder / str(c.get("filename")), dtype) for c in index["chunks"]]


def _token_file(path: Path, dtype: np.dtype[Any]) -> TokenFile:
    places = item_places(path)
    if (places[0] % 2 or np.diff(places) % dtype.itemsize).any():
        raise QuinticError(f"{path} holds items that are no whole number of tokens: make it again")
    tokens = int(places[-1] - places[0]) // dtype.itemsize
    return TokenFile(path, tokens, partial(_read, path, places, dtype))


def _read(path: Path, places: npt.NDArray[np.int64], dtype: np.dtype[Any]) -> Iterator[TokenBlock]:
    content = np.memmap(path, dtype=np.uint8, mode="r")
    lengths = np.diff(places) // dtype.itemsize
    for first, end in document_groups(lengths):
        # A copy, since items need not lie where their type wants it.
        ids = np.frombuffer(content[places[first] : places[end]].tobytes(), dtype)
        yield TokenBlock(ids, lengths[first:end])

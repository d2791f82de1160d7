"""MosaicML's MDS: shard.00000.mds with samples of several columns, and index.json.

As mosaicml-streaming 0.13.0's `MDSWriter` writes them. A sample begins with the sizes of its
columns of no fixed size, uint32 each. An array of the encoding `ndarray:TYPE` begins with a byte,
dimensions times 4 plus a code for the width of its shape, and the shape; one of `ndarray` with a
byte for the type before that; `bytes` are whatever the writer made of them. A shard may be
compressed, shard.00000.mds.zstd.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from quintic.data.tokens.json_index import INDEX, listed_number, open_chunk, read_json_index
from quintic.data.tokens.token_file import ID_COLUMNS, TokenBlock, TokenFile
from quintic.errors import QuinticError

_TYPE_CODES = {0x10: "<u2", 0x20: "<u4", 0x21: "<i4", 0x41: "<i8"}
IdType = Literal["uint16", "uint32", "int32", "int64"]
_NAMED_TYPES = {name: np.dtype(name).newbyteorder("<") for name in get_args(IdType)}
_PACKINGS = {"zstd": ".zst", "gz": ".gz", "bz2": ".bz2"}
_GROUP = 1000  # samples
# Ids of 32 or 64 bits that are read as narrower ones have next to 0 at every second place.
_LOOKED_AT, _NEXT_TO_ZERO = 64, 16


def find_mds(folder: Path, names: list[str], dtype: IdType | None) -> list[TokenFile]:
    """Return the shards of a folder, in the order of its index.

    `dtype` is the type of ids that lie as bytes, of which the index does not say it. Raises
    `QuinticError` for an index or a shard that is damaged, another compression, where no column
    holds arrays of token ids, for bytes without a `dtype`, and for a `dtype` without bytes.
    """
    index = read_json_index(folder, names, "shards")
    if index is None:
        return []
    found = []
    for shard in index["shards"]:
        raw, columns = shard.get("raw_data") or {}, shard.get("column_names", [])
        name, packing = raw.get("basename"), ""
        if packed := bool(shard.get("zip_data")) and name not in names:
            name = shard["zip_data"].get("basename")
            packing = _PACKINGS.get(str(shard.get("compression")).partition(":")[0], "")
        if shard.get("format") != "mds" or (packed and not packing):
            raise QuinticError(
                f"{folder / INDEX} has shards of the format {shard.get('format')}, compressed by "
                f"{shard.get('compression')}: .mds is read, also of zstd, gz and bz2; unpack the "
                f"shards beside {INDEX}"
            )
        encodings, sizes = shard.get("column_encodings", []), shard.get("column_sizes", [])
        if not len(columns) == len(encodings) == len(sizes) > 0:
            raise QuinticError(f"{folder / INDEX} is damaged: copy or make it again")
        column = next((i for i, title in enumerate(columns) if title in ID_COLUMNS), 0)
        if len(columns) > 1 and columns[column] not in ID_COLUMNS:
            raise QuinticError(
                f"{folder / INDEX} has the columns {', '.join(columns)}: the one of the tokens is "
                f"to be named {' or '.join(ID_COLUMNS)}"
            )
        encoding, *of = str(encodings[column]).split(":")
        place = f"{folder / INDEX} has {encodings[column]} in its column {columns[column]}"
        if encoding == "bytes" and dtype is None:
            raise QuinticError(
                f"{place}, which do not say the type of the ids: name it with --dtype "
                f"({', '.join(_NAMED_TYPES)})"
            )
        if encoding != "bytes" and dtype is not None:
            raise QuinticError(f"{place}, and --dtype is for bytes: leave it out")
        is_array = encoding == "ndarray" and len(of) < 2 and set(of) <= set(_NAMED_TYPES)
        if encoding != "bytes" and not is_array:
            raise QuinticError(
                f"{place}: arrays are read (ndarray, or with a type: {', '.join(_NAMED_TYPES)}), "
                f"and bytes"
            )
        sized = [i for i, size in enumerate(sizes) if size is None]
        where = len(sized), sized.index(column), sum(size or 0 for size in sizes[:column])
        named = of[0] if of else dtype
        of_type = _NAMED_TYPES[named] if named else None
        layout = _Layout(where, of_type, encoding == "bytes", packing)
        found.append(_token_file(folder / str(name), layout, listed_number(raw, "bytes")))
    return found


class _Layout(NamedTuple):
    """How samples lie in a shard: of which of the columns without a fixed size the tokens are,
    behind how many bytes of others; their type, None where each says its own; whether they are
    bytes without a shape; and how the shard is packed."""

    where: tuple[int, int, int]
    dtype: np.dtype[Any] | None
    plain: bool
    packing: str


def _token_file(path: Path, layout: _Layout, raw_bytes: int) -> TokenFile:
    if not layout.packing or not path.exists():
        raw_bytes = len(open_chunk(path)[0])
    # An estimate for the progress: samples have a little more than their tokens.
    tokens = raw_bytes // (layout.dtype.itemsize if layout.dtype else 2)
    return TokenFile(path, tokens, partial(_read, path, layout))


def _read(path: Path, layout: _Layout) -> Iterator[TokenBlock]:
    content, places = open_chunk(path, layout.packing)
    for first in range(0, len(places) - 1, _GROUP):
        ends = places[first : first + _GROUP + 1].tolist()
        documents = []
        for number, (begin, end) in enumerate(pairwise(ends), first):
            try:
                documents.append(_ids(content[begin:end].tobytes(), layout))
            except (ValueError, IndexError, KeyError) as error:
                raise QuinticError(
                    f"{path} has no array of token ids as its sample {number}: make it again"
                ) from error
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        ids = np.concatenate(documents)
        if layout.plain and len(ids) >= _LOOKED_AT and ids[1::2].max() < _NEXT_TO_ZERO:
            raise QuinticError(
                f"{path} has next to 0 as every second id, if the type of its bytes is "
                f"{layout.dtype}: they are of a wider type, name it with --dtype"
            )
        yield TokenBlock(ids, lengths)


def _ids(sample: bytes, layout: _Layout) -> npt.NDArray[Any]:
    """Return the ids of a sample."""
    (sized, column, fixed), dtype = layout.where, layout.dtype
    sizes = np.frombuffer(sample, "<u4", sized).tolist()
    begin = 4 * sized + fixed + sum(sizes[:column])
    value = sample[begin : begin + sizes[column]]
    if layout.plain:
        return np.frombuffer(value, dtype)
    if dtype is None:
        dtype, value = np.dtype(_TYPE_CODES[value[0]]), value[1:]
    dimensions, width = value[0] >> 2, 1 << (value[0] & 3)
    if dimensions != 1:
        raise ValueError("no list")
    count = int.from_bytes(value[1 : 1 + width], "little")
    ids = np.frombuffer(value[1 + width :], dtype)
    if len(ids) != count:
        raise ValueError("another length than its shape says")
    return ids

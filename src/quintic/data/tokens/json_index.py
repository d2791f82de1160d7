"""The index.json of datasets that lie in chunks, and items found by a list of their places."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.build.sources.packing import unpacked
from quintic.errors import QuinticError, one_line

INDEX = "index.json"


def read_json_index(folder: Path, names: list[str], key: str) -> dict[str, Any] | None:
    """Return the index of a folder, None where there is none that has `key`.

    Raises `QuinticError` where it is no JSON.
    """
    if INDEX not in names:
        return None
    try:
        content = json.loads((folder / INDEX).read_bytes())
    except ValueError as error:
        raise QuinticError(
            f"{folder / INDEX} is damaged ({one_line(error)}): copy or make it again"
        ) from error
    if not isinstance(content, dict) or key not in content:
        return None
    if not isinstance(content[key], list) or not all(isinstance(e, dict) for e in content[key]):
        raise QuinticError(f"{folder / INDEX} lists no {key}: copy or make it again")
    return content


def listed_number(listed: dict[str, Any], key: str) -> int:
    """Return a number that an index lists of a file, 0 where it does not."""
    value = listed.get(key)
    return value if isinstance(value, int) else 0


def open_chunk(
    path: Path, packing: str = ""
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the bytes of a chunk, mapped, and where its items begin in them, and the last ends,
    [items + 1].

    The chunk begins with their number and the places, as uint32. One of a packing of `PACKINGS` is
    unpacked to a temporary file first. Raises `QuinticError` where it is not there or damaged, and
    where the places do not fit its size.
    """
    try:
        content = _unpacked(path, packing) if packing else np.memmap(path, np.uint8, "r")
        count = int(content[:4].view("<u4")[0])
        places = content[4 : 4 * count + 8].view("<u4").astype(np.int64)
    except FileNotFoundError:
        raise QuinticError(f"{path} is not there, its {INDEX} lists it: copy all files") from None
    except (ValueError, IndexError) as error:  # too short for these, or empty
        if isinstance(error, QuinticError):
            raise
        raise _damaged(path) from error
    in_order = len(places) == count + 1 and places[0] >= 4 * count + 8
    if not (in_order and (np.diff(places) >= 0).all() and places[-1] == len(content)):
        raise _damaged(path)
    return content, places


def _unpacked(path: Path, packing: str) -> npt.NDArray[np.uint8]:
    with path.open("rb") as packed, tempfile.TemporaryFile() as file:
        for block in unpacked(packed, packing, str(path), path.stat().st_size, 1 << 20):
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                error.filename = tempfile.gettempdir()
                raise
        return np.memmap(file, np.uint8, "r")


def _damaged(path: Path) -> QuinticError:
    return QuinticError(f"{path} is damaged or truncated: copy or make it again")

"""The index.json of datasets that lie in chunks, and items found by a list of their places."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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


def item_places(path: Path) -> npt.NDArray[np.int64]:
    """Return where the items of a chunk begin in bytes, and the last ends, [items + 1].

    The chunk begins with their number and the places, as uint32. Raises `QuinticError` where these
    do not fit its size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            count = int(np.frombuffer(file.read(4), "<u4")[0])
            places = np.frombuffer(file.read(4 * count + 4), "<u4").astype(np.int64)
    except FileNotFoundError:
        raise QuinticError(f"{path} is not there, its {INDEX} lists it: copy all files") from None
    except (ValueError, IndexError):
        places, count = np.zeros(1, np.int64), 0
    in_order = len(places) == count + 1 and places[0] >= 4 * count + 8
    if not (in_order and (np.diff(places) >= 0).all() and places[-1] == size):
        raise QuinticError(f"{path} is damaged or truncated: copy or make it again")
    return places

"""Shards of build-nanogpt: NumPy's .npy with one array of ids, end of text before documents."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.tokens.token_file import TokenFile, stream_blocks
from quintic.errors import QuinticError, one_line


def find_npy(folder: Path, names: list[str]) -> list[TokenFile]:
    """Return the shards of a folder.

    Raises `QuinticError` for an array that is damaged, empty, or no list of integers.
    """
    return [_token_file(folder / name) for name in names if name.endswith(".npy")]


def _token_file(path: Path) -> TokenFile:
    ids = npy_ids(path)
    return TokenFile(path, len(ids), partial(stream_blocks, ids))


def npy_ids(path: Path) -> npt.NDArray[Any]:
    """Return the ids of a shard, [tokens], mapped; raises `QuinticError` as `find_npy` does."""
    try:
        ids: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    except OSError:
        raise
    # NumPy reads the header as Python, whose tokenizer and parser have errors of their own.
    except Exception as error:
        raise QuinticError(
            f"{path} cannot be read as .npy ({one_line(error)}): copy or make it again"
        ) from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise QuinticError(
            f"{path} has {ids.dtype} of shape {ids.shape}: token ids are a list of integers"
        )
    return ids

"""Token files of nanoGPT and of build-nanogpt as shards, read where they lie.

Their tokens are those that `quintic data import` would write, in the same order: where end of text
stands behind documents, the one before the first is that of any other document.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.shards import Shard
from quintic.data.tokens.nanogpt import nanogpt_ids
from quintic.data.tokens.npy import npy_ids
from quintic.data.tokens.token_file import BLOCK_TOKENS
from quintic.errors import QuinticError, in_command


def shards_in_place(paths: Sequence[Path], eot_id: int) -> list[Shard]:
    """Return the shards of the files of a split, at least one, in their order.

    Raises `QuinticError` for a file that is damaged or holds another type than unsigned integers of
    16 or 32 bits, and for a split that neither begins with end of text nor has one within.
    """
    arrays = [
        (path, npy_ids(path) if path.suffix == ".npy" else nanogpt_ids(path)) for path in paths
    ]
    for path, ids in arrays:
        if ids.dtype not in (np.dtype("<u2"), np.dtype("<u4")):
            raise _needs_import(path, f"holds ids of the type {ids.dtype}")
    first, last = arrays[0][1], arrays[-1][1]
    shards = [_window(path, ids, 0, len(ids)) for path, ids in arrays]
    if first[0] == eot_id:
        return shards
    path, ids, place = arrays[-1][0], last, len(last) - 1
    if last[-1] == eot_id:
        shards[-1] = _window(path, last, 0, len(last) - 1)
    else:
        path, ids = arrays[0]
        place = _first_place(path, ids, eot_id)
    return [shard for shard in (_window(path, ids, place, 1), *shards) if shard.count]


def _window(path: Path, ids: npt.NDArray[Any], begin: int, count: int) -> Shard:
    """Return `count` of the ids that are mapped from a file, from `begin` on."""
    assert isinstance(ids, np.memmap)
    return Shard(path, count, ids.dtype, ids.offset + begin * ids.itemsize)


def _first_place(path: Path, ids: npt.NDArray[Any], eot_id: int) -> int:
    for start in range(0, len(ids), BLOCK_TOKENS):
        found = np.flatnonzero(ids[start : start + BLOCK_TOKENS] == eot_id)
        if len(found):
            return start + int(found[0])
    raise _needs_import(path, f"has no end of text, {eot_id}")


def _needs_import(path: Path, why: str) -> QuinticError:
    return QuinticError(
        f"{path} {why}, so it cannot be read where it lies: quintic data import "
        f"{in_command(path.parent)} --out OUT --tokenizer gpt2 (or the tokenizer.json that made "
        "it) makes a dataset of it"
    )

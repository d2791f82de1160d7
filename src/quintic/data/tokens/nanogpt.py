"""nanoGPT's train.bin and val.bin: ids of 16 bits without a header, end of text behind documents.

As `data/openwebtext/prepare.py` of Karpathy's nanoGPT writes them.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.tokens.token_file import Append, TokenFile, map_ids, stream_blocks
from quintic.errors import QuinticError

_NAMES = ("train.bin", "val.bin", "test.bin")
_LOOKED_AT = 4096


def find_nanogpt(folder: Path, names: list[str]) -> list[TokenFile]:
    """Return the files of a folder; raises `QuinticError` as `map_ids` does, and for a vocabulary
    of nanoGPT's own."""
    found = [folder / name for name in _NAMES if name in names]
    if found:
        refuse_characters(folder, names)
    return [_token_file(path) for path in found]


def refuse_characters(folder: Path, names: Collection[str]) -> None:
    """Raise `QuinticError` for a folder of these names whose ids are of nanoGPT's characters."""
    if "meta.pkl" in names:
        raise QuinticError(
            f"{folder} has a vocabulary of its own, of characters, in meta.pkl: build a dataset of "
            f"its text with quintic data build input.txt, with --tokenizer train:SIZE"
        )


def _token_file(path: Path) -> TokenFile:
    ids = nanogpt_ids(path)
    return TokenFile(path, len(ids), partial(stream_blocks, ids))


def nanogpt_ids(path: Path) -> npt.NDArray[Any]:
    """Return the ids of a file, [tokens], mapped; raises `QuinticError` as `map_ids` does."""
    ids = map_ids(path, "<u2")
    # Forks for larger vocabularies write 32 bits: every second half is next to nothing.
    high = ids[1:_LOOKED_AT:2]
    if len(high) >= 16 and len(ids) % 2 == 0 and int(np.max(high)) < 16:
        ids = map_ids(path, "<u4")
    return ids


@contextmanager
def nanogpt_writer(path: Path) -> Iterator[Append]:
    """Make a file, and yield what adds tokens that have end of text behind each document."""
    with path.open("wb") as file:
        yield lambda ids: file.write(ids.astype("<u2").tobytes())

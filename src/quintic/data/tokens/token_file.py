"""A file of token ids that another tool wrote, whatever its layout."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quintic.errors import QuinticError

BLOCK_TOKENS = 1 << 20

ID_COLUMNS = ("input_ids", "tokens")
"""Names of the columns of tables that hold token ids."""
MASK_COLUMN = "attention_mask"
"""Name of the column that has 0 where an id is padding."""

Append = Callable[[npt.NDArray[np.int64]], object]
"""Adds tokens, [tokens], to what is being written."""


class TokenBlock(NamedTuple):
    """Some tokens of a file: `ids`, [tokens], of any type of integer.

    `lengths`, [documents], adds up to the tokens where the file says where its documents end. It is
    None where end of text stands between them.
    """

    ids: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class TokenFile:
    """A file that was found to be in order, as far as its header and its size say.

    `path` is for messages and for the name of its split; `tokens` is how many it has; `read` yields
    them from the beginning, about BLOCK_TOKENS at a time.
    """

    path: Path
    tokens: int
    read: Callable[[], Iterator[TokenBlock]]


def stream_blocks(ids: npt.NDArray[Any]) -> Iterator[TokenBlock]:
    """Yield tokens, [tokens], that have end of text between the documents."""
    for start in range(0, len(ids), BLOCK_TOKENS):
        yield TokenBlock(ids[start : start + BLOCK_TOKENS], None)


def document_groups(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the first and the end of groups of documents, by their lengths, [documents], in tokens.

    Groups have about BLOCK_TOKENS tokens, or one document of more.
    """
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        done = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, done + BLOCK_TOKENS, side="right")))
        yield first, end
        first = end


def map_ids(path: Path, dtype: Any, offset: int = 0) -> npt.NDArray[Any]:
    """Return the ids, [tokens], that a file holds from an offset to its end, as a memory map.

    Raises `QuinticError` where there are none, or the last is cut.
    """
    size, width = path.stat().st_size - offset, np.dtype(dtype).itemsize
    if size <= 0:
        raise QuinticError(f"{path} holds no tokens: copy or make it again")
    if size % width:
        raise QuinticError(
            f"{path} is truncated: its {size} bytes are no whole number of tokens of {width} "
            f"bytes; copy or make it again"
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=offset)

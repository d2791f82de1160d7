"""datatrove's NAME.ds: ids without a header; NAME.ds.index has where documents end.

As datatrove 0.10.1's `DocumentTokenizer` writes them: ends in tokens as uint64, and the bytes of an
id behind the bar in the first line of NAME.ds.metadata, 2 or 4.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.tokens.token_file import TokenBlock, TokenFile, document_groups, map_ids
from quintic.errors import QuinticError


def find_datatrove(folder: Path, names: list[str]) -> list[TokenFile]:
    """Return the files of a folder.

    Raises `QuinticError` for a file without its index or metadata, and where they do not fit it.
    """
    return [_token_file(folder / name, names) for name in names if name.endswith(".ds")]


def _token_file(path: Path, names: list[str]) -> TokenFile:
    for suffix in (".index", ".metadata"):
        if path.name + suffix not in names:
            raise QuinticError(f"{path} is there without {path.name}{suffix}: copy all three")
    first = Path(f"{path}.metadata").read_text(errors="replace").partition("\n")[0]
    width = first.rpartition("|")[2].strip()
    if width not in ("2", "4"):
        raise QuinticError(f"{path}.metadata says {first!r}, not NAME|2 or NAME|4: make it again")
    ids = map_ids(path, f"<u{width}")
    content = Path(f"{path}.index").read_bytes()
    ends = np.frombuffer(content[: len(content) // 8 * 8], "<u8").astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if len(content) % 8 or not len(ends) or (lengths < 0).any() or ends[-1] != len(ids):
        raise QuinticError(
            f"{path} has {len(ids)} tokens, which its .index does not end with: copy or make them "
            f"again"
        )
    return TokenFile(path, len(ids), partial(_read, ids, lengths))


def _read(ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> Iterator[TokenBlock]:
    ends = np.cumsum(lengths)
    for first, end in document_groups(lengths):
        begin = int(ends[first - 1]) if first else 0
        yield TokenBlock(ids[begin : ends[end - 1]], lengths[first:end])

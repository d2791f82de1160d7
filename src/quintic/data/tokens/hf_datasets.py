"""Folders as `save_to_disk` of Hugging Face's datasets writes them: a row for each document.

Read from the bytes that datasets 5.2.0 writes: dataset_dict.json names the splits, each of which is
a folder of Arrow streams with state.json, their list, and dataset_info.json, the types of the
columns.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import pyarrow
from pyarrow import ipc

from quintic.data.manifest import Split
from quintic.data.tokens.token_file import Append
from quintic.errors import QuinticError

COLUMN = "input_ids"
SPLIT_NAMES: dict[Split, str] = {"train": "train", "val": "validation"}
"""The names of the splits there."""

# int32 is what datasets itself gives a column of this name, and what rows of it go together with.
_SCHEMA = pyarrow.schema([(COLUMN, pyarrow.list_(pyarrow.int32()))])
# "Sequence" is a list to every version of datasets, "List" only from 4.0 on.
_FEATURES = {COLUMN: {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"}}
_FILE_BYTES = 500_000_000  # after so many a new file begins, as there
# A document is held whole while it is written.
_MAX_DOCUMENT_TOKENS = 1 << 28


@contextmanager
def hf_split_writer(
    folder: Path, eot_id: int, fingerprint: str, description: str
) -> Iterator[Append]:
    """Make the folder of a split, and yield what adds tokens to it that have end of text behind
    each document.

    `fingerprint` tells these rows from others to the caches of datasets. Raises `QuinticError` for
    a document beyond what is held in memory.
    """
    folder.mkdir()
    with _Files(folder) as files:
        carried: list[npt.NDArray[np.int64]] = []

        def append(ids: npt.NDArray[np.int64]) -> None:
            ends = np.flatnonzero(ids == eot_id) + 1
            before = sum(map(len, carried))
            if not len(ends):
                carried.append(ids)
                if before + len(ids) > _MAX_DOCUMENT_TOKENS:
                    raise QuinticError(
                        f"a document of the dataset has more than {_MAX_DOCUMENT_TOKENS:,} tokens, "
                        f"which is no row: name the tokenizer that made it, if its end of text is "
                        f"not {eot_id}, or export --to nanogpt"
                    )
                return
            whole = np.concatenate([*carried, ids[: ends[-1]]])
            files.write(whole, np.concatenate([[0], ends + before]))
            carried[:] = [ids[ends[-1] :]]

        yield append
        names = files.finish()
    _write_json(folder / "dataset_info.json", {"description": description, "features": _FEATURES})
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    _write_json(folder / "state.json", state)


def write_hf_dict(folder: Path, splits: Sequence[Split], description: str) -> None:
    """Write what makes one dataset of the folders of its splits, and a README.md."""
    names = [SPLIT_NAMES[split] for split in splits]
    _write_json(folder / "dataset_dict.json", {"splits": names})
    (folder / "README.md").write_text(
        f"# Token ids\n\n{description}\n\n"
        f"    import datasets\n"
        f"    splits = datasets.load_from_disk(FOLDER)\n"
        f'    splits["{names[0]}"][0]["{COLUMN}"]\n'
    )


class _Files:
    """Arrow files of a folder, the next of which begins where one is full."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._parts, self._open = folder, 0, ExitStack()
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def write(self, ids: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> None:
        """Write rows that end at the offsets behind the first, [rows + 1], among ids, [tokens]."""
        if self._file is None or self._file.tell() > _FILE_BYTES:
            self._open.close()
            self._file = self._open.enter_context((self._folder / str(self._parts)).open("wb"))
            self._writer = self._open.enter_context(ipc.new_stream(self._file, _SCHEMA))
            self._parts += 1
        rows = pyarrow.ListArray.from_arrays(
            pyarrow.array(offsets.astype(np.int32)), pyarrow.array(ids.astype(np.int32))
        )
        self._writer.write_batch(pyarrow.record_batch([rows], schema=_SCHEMA))

    def finish(self) -> list[str]:
        """Give the files their names, which say how many there are, and return these."""
        self._open.close()
        names = [f"data-{n:05d}-of-{self._parts:05d}.arrow" for n in range(self._parts)]
        for number, name in enumerate(names):
            (self._folder / str(number)).rename(self._folder / name)
        return names

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))

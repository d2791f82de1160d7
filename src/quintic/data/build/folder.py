"""The folder of a build: it belongs to one plan and one process, and keeps how far it has come."""

import json
from pathlib import Path
from shutil import rmtree
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout

from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.build.build_input import BuildInput
from quintic.data.build.chunks import FIRST, Position
from quintic.data.manifest import MANIFEST_FILE, UNFINISHED
from quintic.errors import QuinticError
from quintic.files import write_json

# Holds the plan, which decides about the bytes of the dataset; stays beside the manifest.
PLAN_FILE = "build.json"

# Lists what could not be a document, one a line.
SKIPPED_FILE = "skipped.txt"

MADE_FILES = (PLAN_FILE, SKIPPED_FILE, MANIFEST_FILE, TOKENIZER_FILE)

_STATE_FILE = "progress.json"
_INPUT_FILE = "input.json"

_Content = TypeVar("_Content", dict[str, Any], list[Any])


class BuildFolder:
    """A folder in which one build works at a time; a context manager.

    It must be absent, empty, or of a build with the same plan and input; while that is not
    finished, what it has not read yet may change. `work` is a folder in it that is
    there as long as the dataset is not `finished`. What a build makes before it has progress to
    keep is removed if it fails: the next one may have other settings.

    Raises `QuinticError` where the folder holds something else, or another process works in it, and
    OSError where it cannot be written.
    """

    def __init__(self, path: Path, plan: dict[str, Any], input: BuildInput) -> None:
        self.path, self.work = path, path / UNFINISHED
        self._plan, self._input = plan | input.plan(), input
        if path.exists() and not path.is_dir():
            raise QuinticError(f"--out {path} is a file: name a folder")
        self._existed = path.exists()
        self._check_content()
        self.finished = (path / MANIFEST_FILE).exists() and not self.work.exists()

    def _check_content(self) -> None:
        names = {entry.name for entry in self.path.iterdir()} if self._existed else set()
        # Hidden files of our own are there before the plan is.
        if all(name.startswith(".build") for name in names):
            return
        if PLAN_FILE not in names:
            raise QuinticError(
                f"--out {self.path} holds other files: name a new or an empty folder"
            )
        was = self._read(self.path / PLAN_FILE, dict)
        for key, value in self._plan.items():
            if was.get(key) != value:
                if key == "input_content" and key not in was:
                    continue  # of an earlier version
                if key.startswith("input_") and (self.work / _INPUT_FILE).exists():
                    self._check_what_was_read()
                    continue
                if key == "input_content":
                    raise QuinticError(
                        f"--out {self.path} was built of an input whose files had the same names "
                        f"and sizes and another content: name another --out, or delete the folder"
                    )
                raise QuinticError(
                    f"--out {self.path} holds a build with {key} {_short(was.get(key))}, now it is "
                    f"{_short(value)}: repeat the command that began it, name another --out, or "
                    f"delete the folder"
                )

    def _check_what_was_read(self) -> None:
        listed = self._read(self.work / _INPUT_FILE, list)
        position = Position(*(self.read_state() or {}).get("position", FIRST))
        if changed := self._input.changed(listed, position):
            raise QuinticError(
                f"--out {self.path} holds a build that was interrupted and has read {changed}, "
                f"which has changed since: name another --out, or delete the folder"
            )

    def __enter__(self) -> Self:
        if self.finished:
            return self
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.work / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise QuinticError(
                f"--out {self.path}: another quintic data build works there; wait for it"
            ) from None
        write_json(self.work / _INPUT_FILE, self._input.listed)
        write_json(self.path / PLAN_FILE, self._plan)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self.finished:
            return
        self._lock.release()
        if kind is None:
            # Last of all: as long as it is there, nobody takes the folder for a dataset.
            rmtree(self.work)
        elif not (self.work / _STATE_FILE).exists():
            self._remove()

    def _remove(self) -> None:
        rmtree(self.work, ignore_errors=True)
        for entry in self.path.iterdir():
            if entry.suffix in (".bin", ".part") or entry.name in MADE_FILES:
                entry.unlink()
        if not self._existed and not any(self.path.iterdir()):
            self.path.rmdir()

    def read_state(self) -> dict[str, Any] | None:
        """Return where an earlier process left off; None if there was none."""
        path = self.work / _STATE_FILE
        return self._read(path, dict) if path.exists() else None

    def _read(self, path: Path, kind: type[_Content]) -> _Content:
        """Return what a file holds; raises `QuinticError` where a crash or a hand damaged it."""
        try:
            content = json.loads(path.read_bytes())
            if not isinstance(content, kind):
                raise ValueError("it is no JSON of ours")
        except ValueError as error:
            raise QuinticError(
                f"{path} is damaged ({error}): delete {self.path}, or name another --out"
            ) from error
        return content

    def write_state(self, state: dict[str, Any]) -> None:
        """Note how far this process has come."""
        write_json(self.work / _STATE_FILE, state)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."

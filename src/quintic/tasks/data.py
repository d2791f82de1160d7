"""A task's items: out of local files, the cache of the hub's client, or the hub."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quintic.console import Console, TransferProgress
from quintic.errors import QuinticError, one_line, reason, require_package, way_out
from quintic.tasks.definitions import Question, Record, Task

if TYPE_CHECKING:
    from quintic.data.hub.client import Log, Transfer

PARQUET_BRANCH = "refs/convert/parquet"
"""The branch in which the hub keeps every public dataset as Parquet, whatever it was written in:
CONFIG/SPLIT/0000.parquet (https://huggingface.co/docs/dataset-viewer/parquet)."""

ENDINGS = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Item:
    """A question with its place in the task."""

    question: Question
    subtask: str
    """The task's name where it has none."""
    group: str


@dataclass(frozen=True)
class TaskData:
    """The items of a task, and where they are from."""

    task: Task
    items: Sequence[Item]
    source: str

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of all questions, by which scores of the same items are known."""
        asked = [[item.subtask, item.question.pairs, item.question.answer] for item in self.items]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    @property
    def chance(self) -> float:
        """Return the accuracy of guessing, 0 where there is nothing to choose from."""
        counts = [len(item.question.pairs) for item in self.items]
        return sum(1 / n for n in counts if n > 1) / len(counts)


def load_data(
    task: Task,
    folder: Path | None,
    console: Console,
    limit: int | None = None,
    option: str = "--task-data",
) -> TaskData:
    """Return a task's data out of a folder, which an option has named, or from the hub where there
    is none; raises `QuinticError` as `local_data` and `hub_data` do."""
    if folder is not None:
        return local_data(task, folder, limit, option)
    require_package("huggingface_hub", "data", "a task's data from the hub")
    with TransferProgress(console, f"{task.name}: fetched") as bar:
        return hub_data(task, bar.show, console.line, limit)


def local_data(
    task: Task, folder: Path, limit: int | None = None, option: str = "--task-data"
) -> TaskData:
    """Read a task's data from TASK.jsonl, TASK.json or TASK.parquet in a folder, or from files of
    those kinds in a folder TASK or in TASK.zip, one for each subtask.

    `limit` keeps the first items of each subtask. Raises `QuinticError` where there are none, or
    not exactly the subtasks that the task has, where a revision of the hub's data is wanted, and
    names file and record where one has another shape.
    """
    if task.revision is not None:
        raise QuinticError(
            f"{task.name}@{task.revision} is a revision of the hub's data and {option} a folder of "
            "files: leave one out"
        )
    if not folder.is_dir():
        raise QuinticError(f"{option} {folder} is no folder: name one that has {task.name}.jsonl")
    found = [p for end in ENDINGS if (p := folder / f"{task.name}{end}").is_file()]
    inner, packed = folder / task.name, folder / f"{task.name}.zip"
    if inner.is_dir():
        found += sorted(p for p in inner.iterdir() if p.suffix in ENDINGS)
    if packed.is_file():
        found.append(packed)
    if not found:
        raise QuinticError(
            f"{folder} has no data of {task.name}: put "
            + (
                f"a folder {task.name} with a .jsonl (or .json or .parquet) for each subtask"
                if task.subtasks
                else f"{task.name}.jsonl (or .json or .parquet)"
            )
            + f" there, or {task.name}.zip, or leave {option} out to take it from the hub"
        )
    try:
        parts = [part for path in found for part in _parts(path)]
    except OSError as error:
        raise QuinticError(
            f"data of {task.name} cannot be read ({reason(error)}): {way_out(error)}"
        ) from error
    seen: dict[str, _Part] = {}
    for part in parts:
        other = seen.setdefault(part.subtask if task.subtasks else task.name, part)
        if other is not part:
            raise QuinticError(
                f"{other.name} and {part.name} both hold data of {task.name}: remove one of them"
            )
    return _task_data(task, parts, str(found[0] if len(found) == 1 else inner), limit)


def hub_data(
    task: Task, on_progress: Callable[[Transfer], None], log: Log, limit: int | None = None
) -> TaskData:
    """Take a task's data from the cache of the hub's client, or else from the hub, which is asked
    once; the source names the commit, which as the task's revision is the same data for ever.

    Raises `QuinticError` where the hub does not have it or cannot be reached.
    """
    # Here, since the hub's client is of an extra, and local files do without it.
    from quintic.data.hub.cached import fetch_files
    from quintic.data.hub.client import HubFile, HubRepo

    repo = HubRepo(task.repo_id, task.revision or PARQUET_BRANCH)
    folders = [f"{config}/{task.split}" for config in task.subtasks or (task.config,)]
    cached = repo.cached_folder(f"{folders[-1]}/*.parquet", task.revision or "")
    if cached is not None and all(any((cached / f).glob("*.parquet")) for f in folders):
        paths = [p for f in folders for p in sorted((cached / f).glob("*.parquet"))]
        commit = cached.name
    else:
        info = repo.info(log)
        commit = info.sha or PARQUET_BRANCH
        files = {entry.rfilename: HubFile.of(entry) for entry in info.siblings or []}
        wanted = [n for f in folders for n in sorted(files) if n.startswith(f"{f}/")]
        missing = [f for f in folders if not any(n.startswith(f"{f}/") for n in wanted)]
        if missing:
            raise QuinticError(
                f"{repo} has no files in {missing[0]}, where the data of {task.name} is wanted: "
                + (
                    f"name a commit of its branch {PARQUET_BRANCH}"
                    if task.revision
                    else f"download it yourself, see {repo.page}, and name its folder with "
                    "--task-data"
                )
            )
        fetched = fetch_files(repo, commit, files, wanted, on_progress, log)
        paths = [fetched[name] for name in wanted]
    parts = [_Part(path.parent.parent.name, str(path), path.read_bytes()) for path in paths]
    return _task_data(task, parts, f"hub:{task.repo_id}@{commit}", limit)


@dataclass(frozen=True)
class _Part:
    """The bytes of a file; its name without the ending is the subtask's."""

    subtask: str
    name: str
    content: bytes


def _parts(path: Path) -> Iterator[_Part]:
    if path.suffix != ".zip":
        yield _Part(path.stem, str(path), path.read_bytes())
        return
    none = True
    try:
        with zipfile.ZipFile(path) as packed:
            for name in sorted(packed.namelist()):
                inner = Path(name)
                # macOS packs a hidden neighbour of each file, which is none of the data.
                if inner.suffix in ENDINGS and not inner.name.startswith("."):
                    none = False
                    yield _Part(inner.stem, f"{path}:{name}", packed.read(name))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise QuinticError(
            f"{path} cannot be unpacked ({one_line(error)}): copy or download it again"
        ) from error
    if none:
        raise QuinticError(f"{path} has no {', '.join(ENDINGS)} in it: it has to hold such files")


def _records(part: _Part) -> Iterator[tuple[str, Record]]:
    """Yield each record with its place in words."""
    place = ""
    try:
        if part.name.endswith(".parquet"):
            from pyarrow import parquet

            rows = parquet.read_table(io.BytesIO(part.content)).to_pylist()
            yield from ((f"row {i}", row) for i, row in enumerate(rows, 1))
        elif part.name.endswith(".json"):
            found = json.loads(part.content)
            if not isinstance(found, list):
                raise ValueError("it is no list")
            yield from ((f"element {i}", row) for i, row in enumerate(found, 1))
        else:
            for i, line in enumerate(part.content.splitlines(), 1):
                place = f", line {i},"
                if line.strip():
                    yield f"line {i}", json.loads(line)
    # pyarrow's errors are ValueErrors or OSErrors.
    except (ValueError, OSError, RecursionError) as error:
        raise QuinticError(
            f"{part.name}{place} cannot be read ({one_line(error)}): a task's data are JSON lines "
            "(.jsonl), a JSON list (.json) or Parquet (.parquet)"
        ) from error


def _task_data(task: Task, parts: Sequence[_Part], source: str, limit: int | None) -> TaskData:
    names = {part.subtask for part in parts}
    if task.subtasks and names != set(task.subtasks):
        unknown, missing = sorted(names - {*task.subtasks}), sorted({*task.subtasks} - names)
        about = f"has {unknown[0]}, which is none" if unknown else f"has no {missing[0]}"
        raise QuinticError(
            f"{source} {about}: the {len(task.subtasks)} subtasks of {task.name} are a file each, "
            "such as those that its authors publish"
        )
    items = []
    # In one order, wherever they are from, so that the same items have one fingerprint.
    for part in sorted(parts, key=lambda part: part.subtask) if task.subtasks else parts:
        taken = 0
        for place, record in _records(part):
            if taken == limit:
                break
            items.append(_item(task, part, place, record))
            taken += 1
        if not taken:
            raise QuinticError(f"{part.name} has no items of {task.name}: it is empty")
    return TaskData(task, items, source)


def _item(task: Task, part: _Part, place: str, record: Record) -> Item:
    try:
        question = task.question(record)
        texts = [text for pair in question.pairs for text in pair]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is none")
        if not all(continuation.strip() for _, continuation in question.pairs):
            raise ValueError("a choice is empty")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise QuinticError(
            f"{part.name}, {place}, is no item of {task.name} ({problem}): it needs {task.fields}, "
            f"as hub:{task.repo_id} has them"
        ) from error
    subtask = part.subtask if task.subtasks else task.name
    group = str(record.get(task.group_field, subtask)) if task.group_field else subtask
    return Item(question, subtask, group)

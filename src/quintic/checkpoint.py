"""The whole training state, out and in.

A checkpoint is a folder `checkpoints/step-00000100` with the tensors as safetensors, written by
torch.distributed.checkpoint under plain parameter names, and `state.json` with everything else and
the size and SHA-256 of every file. It is whole or absent: written aside, flushed, renamed. Loading
checks the digests and unpickles nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from quintic.config import Config
from quintic.distributed.world import ALONE, World, local_rows
from quintic.errors import QuinticError, reason, start_lower, way_out
from quintic.files import check_name, file_sha256, fsync_path
from quintic.metrics_file import METRICS, STOPPED_EARLY, read_records
from quintic.model.base import LanguageModel
from quintic.optim.schedule import steps_before_cooldown

FORMAT = 1
STATE = "state.json"
KEYS = ("step", "elapsed_s", "val_loss", "fingerprint")
"""What `state.json` says of a training state beside its tensors. With them is the `config` that it
was trained with, which quintic 0.1 did not write."""

NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64, type(None): torch.uint8}
"""A number of Python's in an optimizer's state is saved as a tensor without dimensions, whose dtype
says which it was."""


class Entry(NamedTuple):
    """A tensor of the training state, under its name in a checkpoint."""

    name: str
    tensor: Tensor
    cut: tuple[int, int] | None = None
    """Rows of its parameter here and in the whole, where only some are here."""
    number_of: tuple[dict[str, Any], str] | None = None
    """Of a number of Python's, the dictionary and the key that have it."""


@dataclass
class TrainState:
    """Everything that must survive a restart, as far as it is on this process."""

    model: LanguageModel
    optimizers: list[torch.optim.Optimizer]
    fingerprint: str
    """Of the dataset; with the step it is the position in the data."""
    step: int = 0
    """Updates done; the next batch is batch(step)."""
    elapsed_s: float = 0.0
    """Seconds spent training, validation and checkpoints excluded."""
    val_loss: float | None = None
    """Validation loss at exactly this step, where it was measured."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The whole parameters', where this process has only some rows of them or of their state."""

    def __post_init__(self) -> None:
        # What a step changes in a parameter group is state too; the learning rate is a schedule's.
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self._at_first = [dict(group) for group in groups]

    def _entries(self) -> Iterator[Entry]:
        for name, parameter in self.model.named_parameters():
            here = local_rows(parameter)
            yield Entry(f"model.{name}", here, self._cut(name, here))
        for optimizer in self.optimizers:
            _check_keys(optimizer)
        for name, p, optimizer, group, before in self._owned():
            cut = self._cut(name, p)
            for key, value in optimizer.state.get(p, {}).items():
                dense = isinstance(value, Tensor) and value.layout is torch.strided
                if dense and isinstance(key, str):
                    yield Entry(f"optim.{name}.{key}", value, cut)
                else:
                    yield _number("number", name, optimizer.state[p], key)
            for key in group:
                if key != "lr" and not _same(group[key], before.get(key, before)):
                    yield _number("group", name, group, key)
        yield Entry("rng.cpu", torch.get_rng_state())

    def _owned(self) -> Iterator[tuple[str, Tensor, torch.optim.Optimizer, Any, Any]]:
        """Yield each parameter that an optimizer here has, with its group now and at first."""
        at_first = iter(self._at_first)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                before = next(at_first)
                for name, p in zip(group["names"], group["params"], strict=True):
                    yield name, p, optimizer, group, before

    def _cut(self, name: str, here: Tensor) -> tuple[int, int] | None:
        whole = self.shapes.get(name)
        return (len(here), whole[0]) if whole and len(here) != whole[0] else None

    def allocate(self, saved: Mapping[str, TensorStorageMetadata]) -> None:
        """Create what a checkpoint holds of the optimizers' state and their first step has yet to:
        zeros, for a load to fill."""
        owned = {name: found for name, *found in self._owned()}
        for full, tensor in saved.items():
            kind, *parts = full.split(".")
            names = (".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1))
            name = next((name for name in names if name in owned), None)
            if kind == "model" or name is None:
                continue
            p, optimizer, group, before = owned[name]
            key, shape = full.removeprefix(f"{kind}.{name}."), list(tensor.size)
            if kind == "optim" and key not in optimizer.state[p]:
                if shape and (cut := self._cut(name, p)) and shape[0] == cut[1]:
                    shape[0] = len(p)
                dtype = tensor.properties.dtype
                optimizer.state[p][key] = torch.zeros(shape, dtype=dtype, device=p.device)
            elif kind != "optim":
                (number,) = (n for n, dtype in NUMBERS.items() if dtype == tensor.properties.dtype)
                holder = optimizer.state[p] if kind == "number" else group
                holder[key] = number()
                before[key] = before  # which no number is the same as

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over loaded tensors, of `on_cpu`'s names and rows."""
        for entry in list(self._entries()):
            found = local_rows(tensors[entry.name])
            if entry.number_of is not None:
                holder, key = entry.number_of
                holder[key] = None if found.dtype == torch.uint8 else found.item()
            else:
                entry.tensor.copy_(found)
        torch.set_rng_state(tensors["rng.cpu"])

    def on_cpu(self, world: World = ALONE, *, copy: bool = False) -> dict[str, Tensor]:
        """Return every tensor in CPU memory, by its name in a checkpoint; those of which other
        ranks have the other rows as DTensors.

        The names are model.X for a parameter X; optim.X.momentum, optim.X.exp_avg and so on, or
        number.X.step where the optimizer's state has a number of Python's; group.X.k for what a
        step changed in the parameter group; and rng.cpu.

        Raises `QuinticError` for a state that a checkpoint cannot hold: neither tensor nor number,
        or not cut by rows where its parameter is.
        """
        found = {}
        for name, tensor, cut, _ in self._entries():
            here = tensor.to("cpu", copy=copy)
            if cut is not None and here.ndim > 0:
                rows, whole_rows = cut
                if len(here) != rows:
                    raise QuinticError(
                        f"{name} has the shape {tuple(here.shape)} for {rows} of the "
                        f"{whole_rows} rows of its parameter, so no checkpoint can put it together "
                        "again: its optimizer is not elementwise"
                    )
                here = world.as_rows(here, (whole_rows, *here.shape[1:]))
            found[name] = here
        return found


def _check_keys(optimizer: torch.optim.Optimizer) -> None:
    """Raise `QuinticError` for state that is not a dictionary of a parameter."""
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, value in optimizer.state.items():
        if not isinstance(value, dict) or (value and id(key) not in parameters):
            where = repr(key) if isinstance(key, str | int) else type(key).__name__
            raise QuinticError(
                f"{type(optimizer).__name__} keeps {type(value).__name__} in self.state[{where}], "
                "which a checkpoint cannot hold: keep tensors and numbers under names, in "
                "self.state[p] of a parameter p"
            )


def _number(kind: str, name: str, holder: dict[str, Any], key: str) -> Entry:
    """Return what is no tensor as an entry of a checkpoint.

    Raises `QuinticError` where it cannot be saved.
    """
    value = holder[key]
    with contextlib.suppress(OverflowError, RuntimeError, ValueError):  # beyond 64 bits
        if isinstance(key, str) and type(value) in NUMBERS:
            number = torch.tensor(0 if value is None else value, dtype=NUMBERS[type(value)])
            return Entry(f"{kind}.{name}.{key}", number, number_of=(holder, key))
    raise QuinticError(
        f"the optimizer of {name} keeps {type(value).__name__} {key!r} in its state, which a "
        "checkpoint cannot hold: keep dense tensors and numbers under names, in self.state[p]"
    )


def _same(value: Any, before: Any) -> bool:
    return value is before or (type(value) in NUMBERS and bool(value == before))


def folder_name(step: int) -> str:
    """Return step-00000100 for 100: sorted by name, checkpoints are sorted by step."""
    return f"step-{step:08d}"


def save_checkpoint(
    root: Path, tensors: dict[str, Tensor], state: dict[str, Any], world: World = ALONE
) -> Path:
    """Write one checkpoint under `root`; it appears whole or not at all.

    Every rank calls this with the tensors it has, and writes a file of its own; what several have
    is written once. The folder must be one that all ranks share.

    Raises `OSError` where the disk refuses, `QuinticError` where it refused another rank; nothing
    is left behind then.
    """
    final = root / folder_name(state["step"])
    aside = root / world.on_main(lambda: f".{final.name}.{os.getpid()}.writing")

    def prepare() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def digests() -> dict[str, Any]:
        # Each rank those of its own file, which it has just written and need not fetch.
        return {
            path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(aside.glob(f"shard-{world.rank + 1:05d}-*"))
        }

    def publish() -> None:
        with (aside / STATE).open("w") as f:
            json.dump({"format": FORMAT, **state, "files": files}, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        fsync_path(aside)
        _remove(final)
        aside.rename(final)
        fsync_path(root)

    try:
        world.on_main(prepare)
        writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
        _run_dcp(save, tensors, world, storage_writer=writer)
        files = {name: digest for own in world.together(digests) for name, digest in own.items()}
        world.on_main(publish)
    except BaseException:
        if world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read and check the `state.json` of a checkpoint.

    Raises `QuinticError` saying what is wrong where the checkpoint is not whole.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        if state["format"] != FORMAT:
            raise QuinticError(
                f"{checkpoint} has checkpoint format {state['format']} and this quintic reads "
                f"{FORMAT}: use the version that wrote it"
            )
        if checkpoint.name != folder_name(state["step"]) or not state.keys() >= set(KEYS):
            raise QuinticError(f"{checkpoint} is damaged: its {STATE} is not the one of its step")
        for name, expected in state["files"].items():
            path = checkpoint / name
            found = path.stat().st_size
            if found != expected["bytes"]:
                raise QuinticError(
                    f"{path} is damaged: expected {expected['bytes']:,} bytes, found {found:,}"
                )
            if file_sha256(path) != expected["sha256"]:
                raise QuinticError(f"{path} is damaged: its SHA-256 is not the recorded one")
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise QuinticError(f"{checkpoint} is damaged: it has no {missing}") from error
    except OSError as error:
        raise QuinticError(
            f"{error.filename or checkpoint} cannot be read ({reason(error)}): {way_out(error)}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, QuinticError):
            raise
        what = "no JSON" if isinstance(error, ValueError) else "not that of a checkpoint"
        raise QuinticError(f"{checkpoint} is damaged: its {STATE} is {what}") from error
    return state


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor], world: World = ALONE) -> None:
    """Fill the given tensors in place from a checkpoint; those not asked for are not read.

    Every rank asks for what it needs, whatever number of ranks wrote the checkpoint.

    Raises `QuinticError` where a name is missing or a shape differs, and `OSError` where the disk
    does not give it.
    """
    reader = HuggingFaceStorageReader(str(checkpoint))
    try:
        _run_dcp(load, tensors, world, storage_reader=reader)
    except (OSError, MemoryError):
        raise  # neither says anything of the checkpoint
    except Exception as error:
        raise QuinticError(f"{checkpoint} does not fit this model: {reason(error)}") from error


def checkpoints(root: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, whole or not.

    Raises `QuinticError` where the run's folder has a name under which none can be read, and
    `OSError` where it may not be looked into.
    """
    check_name(root.parent)
    inside = root.iterdir() if root.exists() else ()  # glob finds nothing where it may not look
    return sorted(path for path in inside if path.name.startswith("step-") and path.is_dir())


@dataclass(frozen=True)
class WholeCheckpoint:
    """Holds where a whole checkpoint is, its state, and what is wrong with newer ones."""

    path: Path
    state: dict[str, Any]
    damaged: list[str]


def _remove(checkpoint: Path) -> None:
    """Make a checkpoint absent at once: deleting its files takes a while, and may be cut short."""
    aside = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.removing")
    with contextlib.suppress(OSError):
        checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def newest_whole(root: Path, until: int | None = None) -> WholeCheckpoint | None:
    """Find the newest checkpoint that is whole, of no later step than `until`; None where the run
    has none at all.

    Raises `QuinticError` where there are checkpoints and none of them is whole.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(root)):
        if until is not None and path.name > folder_name(until):
            continue
        try:
            return WholeCheckpoint(path, read_state(path), damaged)
        except QuinticError as error:
            damaged.append(str(error))
    if damaged:
        raise QuinticError(
            f"no checkpoint in {root} is whole: {'; '.join(damaged)}; restore one, or start a new "
            "run with another --out"
        )
    return None


def best_checkpoint(root: Path) -> Path | None:
    """Find the checkpoint with the lowest validation loss measured at its own step."""
    measured = []
    for path in checkpoints(root):
        try:
            loss = json.loads((path / STATE).read_text())["val_loss"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if loss is not None:
            measured.append((loss, path))
    return min(measured)[1] if measured else None


def chosen_checkpoint(root: Path, which: str) -> WholeCheckpoint | None:
    """Find the newest whole checkpoint, or the `best` by validation loss; None where there is none.

    Raises `QuinticError` where there are checkpoints and none of them is whole.
    """
    if which != "best":
        return newest_whole(root)
    if (best := best_checkpoint(root)) is not None:
        return WholeCheckpoint(best, read_state(best), [])
    newest_whole(root)  # raises where there are checkpoints and none of them is whole
    return None


def load_weights(found: WholeCheckpoint, state: TrainState, world: World = ALONE) -> None:
    """Fill the model of a `TrainState` in place from a checkpoint, and nothing else."""
    tensors = state.on_cpu(world)
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    load_tensors(found.path, weights, world)
    state.fill(tensors | weights)


def load_state(found: WholeCheckpoint, state: TrainState, world: World = ALONE) -> None:
    """Fill a `TrainState` in place from a checkpoint."""
    saved = HuggingFaceStorageReader(str(found.path)).read_metadata().state_dict_metadata
    state.allocate({n: m for n, m in saved.items() if isinstance(m, TensorStorageMetadata)})
    tensors = state.on_cpu(world)
    load_tensors(found.path, tensors, world)
    state.fill(tensors)
    state.step = found.state["step"]
    state.elapsed_s = found.state["elapsed_s"]
    state.val_loss = found.state["val_loss"]


class CheckpointWriter:
    """Saves in the background while training goes on, with the config that trains; keeps the newest
    `train.keep_checkpoints`, the best, and the one from which a longer run can go on.

    A step waits only for the copy of the state to the CPU, and for the checkpoint before where
    that is still being written. A failed write raises `QuinticError` at the next call.
    """

    def __init__(self, root: Path, config: Config, world: World = ALONE) -> None:
        self.root, self.config, self.world = root, config, world
        if self.world.is_main:
            for left_over in root.glob(".step-*"):  # of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, state: TrainState) -> None:
        """Copy the state and start writing it."""
        self.wait()
        tensors: dict[str, Tensor] = {}

        def copy() -> None:
            tensors.update(state.on_cpu(self.world, copy=True))
            check_finite(tensors, state.step, self.root, self.config)

        self.world.together(copy)
        values = {key: getattr(state, key) for key in KEYS} | {"config": self.config.to_dict()}
        self._pending = self._pool.submit(self._write, tensors, values)

    def _write(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        path = save_checkpoint(self.root, tensors, values, self.world)
        if self.world.is_main:
            for other in checkpoints(self.root):
                if other > path:  # damaged, or the run would have continued from there
                    _remove(other)
            found, train = checkpoints(self.root), self.config.train
            kept = {best_checkpoint(self.root), *found[-train.keep_checkpoints :]}
            if train.keep_before_cooldown and (steps := steps_before_cooldown(self.config)):
                kept |= {*[path for path in found if path.name <= folder_name(steps)][-1:]}
            for other in set(found) - kept:
                _remove(other)
        return path

    def wait(self) -> Path | None:
        """Wait for the checkpoint under way and return it; raises `QuinticError` if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            return pending.result()
        except Exception as error:
            raise QuinticError(
                f"could not write a checkpoint to {self.root}: {reason(error)}; what is there is "
                f"whole ({last_checkpoint(self.root)}): {way_out(error)}, then continue with "
                f"--resume {self.root.parent}"
            ) from error

    def close(self) -> None:
        """Wait, then end the thread; a failed write raises."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def due_steps(config: Config) -> list[int]:
    """Return the steps after which a run that is not stopped saves a checkpoint, in order."""
    steps, every = config.train.steps, config.train.checkpoint_every
    before_cooldown = steps_before_cooldown(config) if config.train.keep_before_cooldown else None
    return sorted({*range(every, steps, every), before_cooldown or steps, steps})


def check_none_lost(root: Path, config: Config) -> None:
    """Raise `QuinticError` where a run without a checkpoint in `root` must have had one: beginning
    again would replace a curve whose weights may only be out of reach, as on a disk that is not
    mounted.

    A run that was ended before its first checkpoint was on disk has nothing to lose. That is
    written while training goes on, and complete before the second is begun.
    """
    folder = root.parent
    way_out = f"or begin again with another --out, or once {folder} is removed"
    if root.is_symlink() and not root.exists():
        raise QuinticError(
            f"{root} is a link to {root.readlink()}, which is not there: bring that back, as by "
            f"mounting its disk, {way_out}"
        )
    records = read_records(folder / METRICS)
    validated = [record for record in records if "val_loss" in record]
    ended = bool(validated) and (
        validated[-1]["step"] >= config.train.steps or STOPPED_EARLY in validated[-1]
    )
    first, second, *_ = [*due_steps(config), math.inf]
    trained = max((r["step"] for r in records if "train_loss" in r), default=-1)
    cut_short = any(root.glob(".step-*"))  # by the end of the process that was writing it
    if trained >= (second if root.exists() else first) or (ended and not cut_short):
        done = max(record["step"] for record in records)
        raise QuinticError(
            f"{folder} has no checkpoint any more, and {METRICS} says that it came to step {done}: "
            f"bring {root} back, {way_out}"
        )


def last_checkpoint(root: Path) -> str:
    """Return the newest checkpoint in words, for messages."""
    found = checkpoints(root)
    return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"


def check_finite(tensors: dict[str, Tensor], step: int, root: Path, config: Config) -> None:
    """Raise `QuinticError` rather than save a state that training has already lost."""
    for name, tensor in tensors.items():
        if name.startswith(("number.", "group.")):  # the best loss so far may begin at inf
            continue
        if tensor.is_floating_point() and not torch.isfinite(local_rows(tensor)).all():
            raise QuinticError(
                f"{name} is not finite after step {step} and was not saved: "
                f"{last_checkpoint(root)}; {start_lower(config.optim.lr_options, root.parent)}"
            )


def _run_dcp(function: Any, tensors: dict[str, Tensor], world: World, **options: Any) -> None:
    """Save or load with torch.distributed.checkpoint, all ranks together."""
    with warnings.catch_warnings():
        # "assuming the intent is to save in a single process": it is, in a world of one.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            function(tensors, process_group=world.side_group, no_dist=world.size == 1, **options)
        except CheckpointException as error:
            # It gathers what each rank raised, and is no Exception: no handler would see it.
            cause, _ = next(iter(error.failures.values()))
            raise cause from None

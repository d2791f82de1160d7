"""One checkpoint, the whole training state: out and in.

A checkpoint is a folder `checkpoints/step-00000100` with the tensors as safetensors, written by
torch.distributed.checkpoint under plain parameter names, and `state.json` with everything else and
the size and SHA-256 of every file. It is whole or absent: written aside, flushed, renamed. Loading
checks the digests and unpickles nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from quintic.distributed.world import ALONE, World
from quintic.errors import QuinticError, reason, way_out
from quintic.files import file_sha256, fsync_path
from quintic.train_state import TrainState

FORMAT = 1
STATE = "state.json"
KEYS = ("step", "elapsed_s", "val_loss", "fingerprint")
"""What `state.json` says of a training state beside its tensors. With them is the `config` that it
was trained with, which quintic 0.1 did not write."""


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
        remove_checkpoint(final)
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


@dataclass(frozen=True)
class WholeCheckpoint:
    """Holds where a whole checkpoint is, its state, and what is wrong with newer ones."""

    path: Path
    state: dict[str, Any]
    damaged: list[str]


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


def remove_checkpoint(checkpoint: Path) -> None:
    """Make a checkpoint absent at once: deleting its files takes a while, and may be cut short."""
    aside = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.removing")
    with contextlib.suppress(OSError):
        checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


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

"""Checkpoints saved while training goes on, and those that are kept."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintic.checkpoint import KEYS, folder_name, remove_checkpoint, save_checkpoint
from quintic.config import Config
from quintic.distributed.world import ALONE, World, local_rows
from quintic.errors import QuinticError, reason, start_lower, way_out
from quintic.optim.schedule import steps_before_cooldown
from quintic.run_checkpoints import best_checkpoint, checkpoints, last_checkpoint
from quintic.train_state import TrainState


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
                    remove_checkpoint(other)
            found, train = checkpoints(self.root), self.config.train
            kept = {best_checkpoint(self.root), *found[-train.keep_checkpoints :]}
            if train.keep_before_cooldown and (steps := steps_before_cooldown(self.config)):
                kept |= {*[path for path in found if path.name <= folder_name(steps)][-1:]}
            for other in set(found) - kept:
                remove_checkpoint(other)
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

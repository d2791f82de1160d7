"""A run that is ready to train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from quintic.config import Config
from quintic.data.dataset import Dataset
from quintic.data.loader import Loader
from quintic.device import compiling, reproducible
from quintic.distributed.world import World
from quintic.evaluate import LossSums
from quintic.model.attention_backend import attention_backend
from quintic.model.linear import WeightCache
from quintic.optim.param_groups import ParamSpec
from quintic.optim.step import Stepper
from quintic.tasks.in_training import TrainingTasks
from quintic.train_state import TrainState


@dataclass
class Run:
    """Holds what the loop needs."""

    config: Config
    folder: Path
    world: World
    device: torch.device
    dataset: Dataset
    loader: Loader
    loss: Callable[..., Tensor]
    """`LanguageModel.loss`; the model's own, or that compiled."""
    specs: list[ParamSpec]
    stepper: Stepper
    state: TrainState
    weight_cache: WeightCache | None = None
    """Where `train.cache_bf16_weights` is on."""
    tasks: TrainingTasks | None = None
    """Where `train.eval_tasks` names some."""
    validation: LossSums | None = None
    """Of the newest validation."""
    stopped_early: str | None = None
    """Why the run ended before its last step, in words, where it did."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Set what was chosen for the whole process, around everything that computes."""
        with ExitStack() as stack:
            if self.config.train.compile:
                stack.enter_context(compiling())
                stack.enter_context(reproducible(self.device))
            stack.enter_context(attention_backend(self.config.train.attention))
            yield

    @property
    def prefetches_to_gpu(self) -> bool:
        """True where a batch is on its way to the device while the one before is computed."""
        return self.device.type == "cuda" and self.config.train.prefetch_to_gpu != "off"

    def rows(self, step: int) -> range:
        """Return this process's sequences of a step's global batch: at least one, and on no process
        more than one beyond another's."""
        each, more = divmod(self.config.batches.at(step), self.world.size)
        first = self.world.rank * each + min(self.world.rank, more)
        return range(first, first + each + (self.world.rank < more))

    def micro_batches(self, step: int) -> int:
        """Return the forward and backward passes of a step, as many on every process."""
        assert self.config.train.micro_batch is not None, "set_up resolves it"
        most = -(-self.config.batches.at(step) // self.world.size)
        return -(-most // self.config.train.micro_batch)

    @property
    def sharded(self) -> bool:
        """True where this process has only some rows of the weights."""
        return isinstance(self.state.model, FSDPModule)

    @property
    def done(self) -> bool:
        """True where all steps are trained, or the run has stopped early."""
        return self.state.step >= self.config.train.steps or self.stopped_early is not None

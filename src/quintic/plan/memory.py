"""The memory of a training step, counted: its own code runs on tensors without content.

PyTorch's fake tensors have a size, a device and no numbers. A forward and a backward pass on them
allocates and frees what the real ones would, at no cost, and the most that is alive at once is the
answer for any switch of the model: nothing is fitted. Blocks are alike, so two and three of them
say what more of them take. What an operator takes inside itself is not seen.

Of a GPU the same passes are counted in bfloat16, with its chunk of logits. Compilation keeps 42
bytes per token, layer and unit of width where eager keeps 46 (tests/test_device.py). A plain loss
keeps whole logits several times in eager operators; compiled once, in the compute precision, since
all between the two products of the head becomes one kernel, which writes the gradient over them
(tests/plan/test_memory.py).
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quintic.config import Config
from quintic.model.base import LanguageModel
from quintic.model.build import build_model, checkpoint_activations, meta_model
from quintic.model.fused import fuse
from quintic.model.loss import CHUNK_ELEMENTS, KERNEL_CHUNK_ELEMENTS
from quintic.optim.param_groups import assign_parameters, build_optimizers
from quintic.optim.stacks import STACK_ELEMENTS
from quintic.plan.devices import COUNTED_PRECISION

FLOAT32 = 4
COMPILED_SHARE = 42 / 46
"""Of what autograd saves of a block, in a compiled one."""

LOGIT_BYTES, KERNEL_LOGIT_BYTES = 8, 2
"""Bytes alive per logit of a chunk: itself and the logarithm of its probability in float32; the
kernel has the logits alone, in bfloat16, and overwrites them with their gradient."""

KEPT_LEAST, KEPT_MOST = 1.7, 2.6
"""Resident at most, over what is predicted to be alive, where freed memory is kept
(`quintic.malloc`): the least and the most of the trainings of docs/results/plan-memory.json, to a
tenth outwards. What is kept lies in gaps, where the next large piece often finds no room."""

UPDATE_STACKS = 5
"""Temporaries of an update, in stacks of matrices (`quintic.optim.stacks`)."""


class PeakOfStorages(TorchDispatchMode):
    """Follows the bytes of all storages that operators return, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return out

    def count(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor until it is freed; once, however many share it."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = None
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.bytes -= size


@dataclass(frozen=True)
class Memory:
    """Holds the bytes of one device, by what they are of; a prediction."""

    weights: int
    gradients: int
    optimizer: int
    """Its state."""
    gathered: int
    """Weights, and gradients, of other devices' rows that are here for a while (fsdp)."""
    activations: int
    """The most that a forward and backward pass has alive, loss and temporaries included, beyond
    the rest."""
    update: int
    """Temporaries of the optimizer, which come when there are no activations."""

    @property
    def peak(self) -> int:
        """Return the most at once."""
        held = self.weights + self.gradients + self.optimizer
        return held + max(self.gathered + self.activations, self.update)

    @property
    def resident(self) -> tuple[int, int]:
        """Return the least and the most that may be resident of a process on a CPU at once, which
        keeps what it frees."""
        return round(KEPT_LEAST * self.peak), round(KEPT_MOST * self.peak)


class PassBytes:
    """Gives the most bytes alive in a forward and backward pass of a config, by its sequences:
    without the weights and, where they add up over several passes, gradients.

    Bytes grow evenly with the sequences while their logits fill less than one chunk, and more
    slowly from where they fill two, of which one begins while the other's gradient is alive. Two
    counts tell each of the lines, and between them the lower one holds.
    """

    def __init__(self, config: Config, dtype: torch.dtype, device: str) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        assert config.model.vocab_size is not None
        chunk = CHUNK_ELEMENTS[device] / config.model.vocab_size / config.model.context
        self._one_chunk, self._two_chunks = chunk, math.ceil(2 * chunk)

    def __call__(self, sequences: int) -> int:
        if sequences <= 2:
            return self._exactly(sequences)
        lines = []
        if sequences < self._two_chunks:
            lines.append(self._line(1, sequences))
        if sequences > self._one_chunk:
            lines.append(self._line(self._two_chunks, sequences))
        return min(lines)

    def _line(self, first: int, sequences: int) -> int:
        """Return the bytes on the line through `first` sequences and twice as many; where it does
        not rise, since so few tokens take less than the head's gradient, they are counted."""
        one, two = self._exactly(first), self._exactly(2 * first)
        if two <= one:
            return self._exactly(sequences)
        return one + round((sequences / first - 1) * (two - one))

    @functools.cache  # noqa: B019 - it lives as long as a plan
    def _exactly(self, sequences: int) -> int:
        layers = self._config.model.layers
        if layers <= 3:
            return self._counted(layers, sequences)
        two, three = (self._counted(few, sequences) for few in (2, 3))
        return two + (layers - 2) * (three - two)

    def _counted(self, layers: int, sequences: int) -> int:
        return _counted(self._config, layers, sequences, self._dtype, self._device)


@contextmanager
def _chunks_of(device: str) -> Iterator[None]:
    """Let the loss cut logits as on a device, while what is counted are tensors of a CPU."""
    own = CHUNK_ELEMENTS["cpu"]
    CHUNK_ELEMENTS["cpu"] = CHUNK_ELEMENTS[device]
    try:
        yield
    finally:
        CHUNK_ELEMENTS["cpu"] = own


def _counted(config: Config, layers: int, micro_batch: int, dtype: torch.dtype, device: str) -> int:
    """Count one pass of a model of so many layers, whose gradients exist where there are several
    passes in a step."""
    model_config = replace(
        config.model,
        layers=layers,
        value_embeddings=min(config.model.value_embeddings, layers // 2),
    )
    train = config.train
    plain = train.loss == "plain" and not train.compile
    with _chunks_of(device), FakeTensorMode(), PeakOfStorages() as storages:
        model = build_model(
            model_config,
            compute_dtype=dtype,
            loss="plain" if plain else "chunked",
            mtp_tokens=train.mtp_tokens,
        )
        if train.cpu_kernels == "fused" and device == "cpu":
            fuse(model, attention=train.attention == "auto")
        if train.activation_checkpointing:
            checkpoint_activations(model)
        for tensor in (*model.parameters(), *model.buffers()):
            storages.count(tensor)
        if micro_batch < config.batches.smallest:
            for p in model.parameters():
                p.grad = torch.empty_like(p)
        shape = micro_batch, config.model.context
        inputs_BT, targets_BT = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        held = storages.bytes
        storages.peak = held
        model.loss(inputs_BT, targets_BT).backward()
    most: int = storages.peak - held
    return most


def state_bytes(model: LanguageModel, config: Config) -> int:
    """Return the bytes of the optimizers' state for a model on the meta device."""
    specs = assign_parameters(model, config.optim)
    optimizers = build_optimizers(model, specs, config.optim, device=torch.device("meta"))
    return sum(
        tensor.numel() * tensor.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor)
    )


@dataclass(frozen=True)
class Setting:
    """What divides the memory of a step: the choice that a plan is for."""

    micro_batch: int
    sharding: str
    checkpointing: bool


class MemoryModel:
    """Predicts the memory of each device for a config with a vocabulary, at any setting."""

    def __init__(self, config: Config, device: str, processes: int) -> None:
        self._config, self._device, self._processes = config, device, processes
        self._model = meta_model(config.model)
        self._state = state_bytes(self._model, config)
        self._dtype = dtype = getattr(torch, COUNTED_PRECISION[device])
        self._passes = {
            again: PassBytes(
                config.override({"train.activation_checkpointing": again}), dtype, device
            )
            for again in (False, True)
        }

    def __call__(self, setting: Setting) -> Memory:
        """Return the bytes of one device."""
        train, parts = self._config.train, self._processes
        weights = FLOAT32 * self._model.parameter_count()
        activations = self._passes[setting.checkpointing](setting.micro_batch)
        if train.compile:
            activations = round(activations * COMPILED_SHARE)
        # Where tokens are few the loss is not what is most alive, and its way saves nothing.
        least = self._passes[setting.checkpointing](1)
        activations = max(least, activations + self._beyond_chunks(setting.micro_batch))
        one_pass = setting.micro_batch * parts >= self._config.batches.smallest
        gradients = 0 if one_pass and parts == 1 else weights
        gathered = 0
        share = weights
        if setting.sharding == "fsdp" and parts > 1:
            block = FLOAT32 * self._model.blocks_parameter_count() // self._config.model.layers
            root = weights - block * self._config.model.layers
            # One block is computed while the next one comes; the root stays, and both have
            # gradients before these are divided.
            gathered = 3 * block + 2 * root
            share, gradients = -(-weights // parts), -(-gradients // parts)
        return Memory(
            weights=share,
            gradients=gradients,
            optimizer=-(-self._state // parts),
            gathered=gathered,
            activations=activations,
            update=self._update(),
        )

    def _beyond_chunks(self, micro_batch: int) -> int:
        """Return what the logits of a kernel, or of a compiled plain loss, take beyond a chunk of
        PyTorch's operators, which was counted."""
        train = self._config.train
        logits = micro_batch * self._config.model.context * (self._config.model.vocab_size or 0)
        if self._device == "cuda" and train.loss in ("auto", "fused"):
            own = KERNEL_LOGIT_BYTES * min(logits, KERNEL_CHUNK_ELEMENTS["cuda"])
        elif train.compile and train.loss == "plain":
            own = self._dtype.itemsize * logits
        else:
            return 0
        return own - LOGIT_BYTES * min(logits, CHUNK_ELEMENTS[self._device])

    def _update(self) -> int:
        """Return the temporaries of Muon's update of the largest stack."""
        if self._config.optim.matrices != "muon":
            return 0
        of_shape = Counter(p.shape for p in self._model.layers.parameters() if p.ndim == 2)
        largest = max(
            max(shape.numel(), min(STACK_ELEMENTS, count * shape.numel()))
            for shape, count in of_shape.items()
        )
        return UPDATE_STACKS * FLOAT32 * largest

    @property
    def checkpoint_bytes(self) -> int:
        """Return the bytes of a checkpoint: weights and the optimizers' state."""
        return FLOAT32 * self._model.parameter_count() + self._state

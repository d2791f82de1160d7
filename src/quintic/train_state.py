"""The training state: everything of a run that must survive a restart, as named tensors.

What a checkpoint has beside them, the step and the like, are plain fields of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from quintic.distributed.world import ALONE, World, local_rows
from quintic.errors import QuinticError
from quintic.model.base import LanguageModel

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

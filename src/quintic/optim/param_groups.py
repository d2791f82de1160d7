"""Parameter groups: which parameter goes to which optimizer, and with which learning rate.

Every parameter belongs to exactly one optimizer: the matrices of the blocks to `optim.matrices`,
everything else to AdamW. The table of specs is printed, saved as `param_groups.txt`, and is what
the optimizers are built from, so what is printed is what runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from quintic.config import OptimConfig
from quintic.errors import QuinticError
from quintic.model.base import LanguageModel
from quintic.model.skips import ScalarMix
from quintic.optim.matrix_optimizer import (
    Groups,
    Placement,
    build_optimizer,
    weight_decay_of,
)
from quintic.optim.muon import update_scale
from quintic.optim.whole import WholeMatrices


@dataclass(frozen=True)
class ParamSpec:
    """Says which optimizer has a parameter, and its rates."""

    name: str
    shape: tuple[int, ...]
    optimizer: str
    """As in `optim.matrices`."""
    lr: float
    """Learning rate as configured, before the schedule."""
    scale: float
    """Factor of the update that depends on the shape; 1 for all but Muon."""
    weight_decay: float
    reason: str = ""
    """Why it is that optimizer's, where rules told it."""

    @property
    def effective_lr(self) -> float:
        """Learning rate times scale."""
        return self.lr * self.scale


def assign_parameters(model: LanguageModel, config: OptimConfig) -> list[ParamSpec]:
    """Return the spec of every parameter, in the model's order.

    Raises `QuinticError`, with both names, where a parameter of the blocks is tied to one outside.
    """
    outside = {
        id(p): name
        for name, p in model.named_parameters(remove_duplicate=False)
        if not name.startswith("layers.")
    }
    for name, p in model.layers.named_parameters(prefix="layers"):
        if id(p) in outside:
            raise QuinticError(
                f"{name} is tied to {outside[id(p)]}: a parameter of the blocks and one outside "
                "have different optimizers, so untie them"
            )
    block_matrices = {id(p) for p in model.layers.parameters() if p.ndim == 2}
    scalars = {id(m.weight) for m in model.modules() if isinstance(m, ScalarMix)}
    matrix_decay = weight_decay_of(config)
    specs = []
    for name, p in model.named_parameters():
        shape, optimizer, scale = tuple(p.shape), "adamw", 1.0
        lr, decay = config.adamw.lr, config.adamw.weight_decay if p.ndim >= 2 else 0.0
        if id(p) in block_matrices:
            optimizer, lr, decay = config.matrices, config.matrix_lr, matrix_decay
            if optimizer == "muon":
                scale = update_scale(config.muon.scale, *shape)
        elif name == "head.weight":
            lr = config.adamw.head_lr or lr
        elif id(p) in scalars:
            lr = config.adamw.scalar_lr or lr
        specs.append(ParamSpec(name, shape, optimizer, lr, scale, decay))
    return specs


def check_param_specs(model: nn.Module, specs: Sequence[ParamSpec]) -> None:
    """Raise `QuinticError`, with the names, unless every parameter is claimed exactly once.

    Tied parameters appear in the model under several names; claiming them under two optimizers, or
    twice under one, would apply two updates to one tensor.
    """
    names_of: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(p), []).append(name)
    known = {name for names in names_of.values() for name in names}
    claims = Counter(spec.name for spec in specs)
    if unknown := [name for name in claims if name not in known]:
        raise QuinticError(f"specs for parameters that the model does not have: {unknown}")
    if twice := [name for name, count in claims.items() if count > 1]:
        raise QuinticError(f"parameters claimed twice: {', '.join(twice)}")
    optimizer_of = {spec.name: spec.optimizer for spec in specs}
    for names in names_of.values():
        claimed = [name for name in names if name in claims]
        if not claimed:
            raise QuinticError(f"parameter claimed by no optimizer: {' = '.join(names)}")
        if len(claimed) > 1:
            tied = ", ".join(f"{name} ({optimizer_of[name]})" for name in claimed)
            raise QuinticError(f"one tied parameter claimed under several names: {tied}")


def build_optimizers(
    model: LanguageModel,
    specs: Sequence[ParamSpec],
    config: OptimConfig,
    *,
    device: torch.device,
    compile: bool = False,
) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a whole model, once its table of specs is checked."""
    check_param_specs(model, specs)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return optimizers_for(parameters, specs, config, device=device, compile=compile)


def optimizers_for(
    parameters: Mapping[str, nn.Parameter],
    specs: Sequence[ParamSpec],
    config: OptimConfig,
    *,
    device: torch.device,
    compile: bool = False,
    whole: WholeMatrices | None = None,
) -> list[torch.optim.Optimizer]:
    """Build the optimizers of some parameters, or of rows of them.

    Each group keeps its configured learning rate as `base_lr`; the schedule sets `lr` from it.
    Groups carry `names`, so that state can be saved by parameter name, and the whole parameters'
    `shapes`.
    """
    placement = Placement(device, compile, whole)
    names = dict.fromkeys([config.matrices, "adamw"])  # a rank may have none of the first
    of = {name: [spec for spec in specs if spec.optimizer == name] for name in names}
    return [
        build_optimizer(name, config, _groups(own, parameters), placement)
        for name, own in of.items()
        if own
    ]


def _groups(specs: Iterable[ParamSpec], parameters: Mapping[str, nn.Parameter]) -> Groups:
    """Make one parameter group for each (learning rate, weight decay)."""
    by_setting: dict[tuple[float, float], list[ParamSpec]] = {}
    for spec in specs:
        by_setting.setdefault((spec.lr, spec.weight_decay), []).append(spec)
    return [
        {
            "params": [parameters[spec.name] for spec in same],
            "names": [spec.name for spec in same],
            "shapes": [spec.shape for spec in same],
            "lr": lr,
            "base_lr": lr,
            "weight_decay": weight_decay,
        }
        for (lr, weight_decay), same in by_setting.items()
    ]


def param_groups_table(specs: Sequence[ParamSpec]) -> str:
    """Return the specs as aligned text, a line for each parameter."""
    why = any(spec.reason for spec in specs)
    rates = ("lr", "scale", "effective lr", "weight decay")
    rows = [("parameter", "shape", "optimizer", *["why"] * why, *rates)]
    rows += [
        (
            spec.name,
            " x ".join(map(str, spec.shape)),
            spec.optimizer,
            *[spec.reason] * why,
            f"{spec.lr:g}",
            f"{spec.scale:.4g}",
            f"{spec.effective_lr:.4g}",
            f"{spec.weight_decay:g}",
        )
        for spec in specs
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"

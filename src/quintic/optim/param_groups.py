"""Which parameter goes to which optimizer, and with which learning rate.

Every parameter belongs to exactly one optimizer: the matrices of the blocks to `optim.matrices`,
everything else to AdamW. The table of routes is printed, saved as `routing.txt`, and is what the
optimizers are built from, so what is printed is what runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quintic.config import MatrixOptimizer, MuonConfig, OptimConfig
from quintic.errors import QuinticError
from quintic.model.base import LanguageModel
from quintic.model.skips import ScalarMix
from quintic.optim.baselines import build_baseline
from quintic.optim.muon import Muon, WholeMatrices, update_scale
from quintic.optim.newton_schulz import default_dtype, polynomial_for


@dataclass(frozen=True)
class ParamSpec:
    """Where one parameter goes."""

    name: str
    shape: tuple[int, ...]
    optimizer: MatrixOptimizer
    lr: float
    """Learning rate as configured, before the schedule."""
    scale: float
    """Factor of the update that depends on the shape; 1 for all but Muon."""
    weight_decay: float

    @property
    def effective_lr(self) -> float:
        """Learning rate times scale."""
        return self.lr * self.scale


def assign_parameters(model: LanguageModel, config: OptimConfig) -> list[ParamSpec]:
    """The route of every parameter, in the model's order.

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
    specs = []
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if id(p) in block_matrices and config.matrices == "muon":
            muon = config.muon
            scale = update_scale(muon.scale, *shape)
            specs.append(ParamSpec(name, shape, "muon", muon.lr, scale, muon.weight_decay))
            continue
        if id(p) in block_matrices and config.matrices != "adamw":
            specs.append(ParamSpec(name, shape, config.matrices, config.matrix_lr, 1.0, 0.0))
            continue
        adamw = config.adamw
        lr = adamw.lr
        if id(p) in block_matrices:
            lr = config.matrix_lr
        elif name == "head.weight":
            lr = adamw.head_lr or lr
        elif id(p) in scalars:
            lr = adamw.scalar_lr or lr
        decay = adamw.weight_decay if p.ndim >= 2 else 0.0
        specs.append(ParamSpec(name, shape, "adamw", lr, 1.0, decay))
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
        raise QuinticError(f"routes for parameters that the model does not have: {unknown}")
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
    """The optimizers of a whole model, once its table of routes is checked."""
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
    """The optimizers of some parameters, or of rows of them, with their state allocated.

    Each group keeps its configured learning rate as `base_lr`; the schedule sets `lr` from it.
    Groups carry `names`, so that state can be saved by parameter name, and the whole parameters'
    `shapes`.
    """
    optimizers: list[torch.optim.Optimizer] = []
    if muon_specs := [spec for spec in specs if spec.optimizer == "muon"]:
        muon, weights = config.muon, parameters[muon_specs[0].name].dtype
        ns_dtype = newton_schulz_dtype(muon, device, weights)
        optimizers.append(
            Muon(
                _groups(muon_specs, parameters),
                lr=muon.lr,
                momentum=muon.momentum,
                nesterov=muon.nesterov,
                scale=muon.scale,
                weight_decay=muon.weight_decay,
                cautious=muon.cautious,
                ns_steps=muon.ns_steps,
                ns_dtype=ns_dtype,
                ns_coefficients=muon.ns_coefficients,
                normuon=muon.normuon,
                beta2=muon.beta2,
                compile=compile,
                polynomial=polynomial_for(muon.kernel, device, ns_dtype),
                whole=whole,
            )
        )
    if rest := [spec for spec in specs if spec.optimizer not in ("muon", "adamw")]:
        optimizers.append(build_baseline(config, _groups(rest, parameters)))
    if adamw_specs := [spec for spec in specs if spec.optimizer == "adamw"]:
        adamw = torch.optim.AdamW(
            _groups(adamw_specs, parameters),
            lr=config.adamw.lr,
            betas=config.adamw.betas,
            eps=config.adamw.eps,
            fused=device.type in ("cpu", "cuda"),
        )
        _allocate_adamw_state(adamw)
        optimizers.append(adamw)
    return optimizers


def newton_schulz_dtype(
    config: MuonConfig, device: torch.device, weights: torch.dtype
) -> torch.dtype:
    """The precision of Newton-Schulz that a config asks for."""
    if config.ns_dtype == "auto":
        return default_dtype(device, weights)
    dtype: torch.dtype = getattr(torch, config.ns_dtype)
    return dtype


def _groups(
    specs: Iterable[ParamSpec], parameters: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """One parameter group for each (learning rate, weight decay)."""
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


def _allocate_adamw_state(adamw: torch.optim.AdamW) -> None:
    """What PyTorch would allocate in the first step, so that a checkpoint can be loaded into it."""
    for group in adamw.param_groups:
        for p in group["params"]:
            adamw.state[p] = {
                # The fused kernel counts on the device, the others on the CPU.
                "step": torch.zeros((), device=p.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }


def param_groups_table(specs: Sequence[ParamSpec]) -> str:
    """The routes as aligned text, same-shape matrices of the blocks' layers on one line each."""
    rows = [("parameter", "shape", "optimizer", "lr", "scale", "effective lr", "weight decay")]
    rows += [
        (
            spec.name,
            " x ".join(map(str, spec.shape)),
            spec.optimizer,
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

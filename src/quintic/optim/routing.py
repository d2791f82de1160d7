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
from quintic.model.shortcuts import Mix
from quintic.optim.baselines import build_baseline
from quintic.optim.muon import Muon, WholeMatrices, update_scale
from quintic.optim.orthogonalize import default_dtype, polynomial_for


@dataclass(frozen=True)
class Route:
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


def route_parameters(model: LanguageModel, config: OptimConfig) -> list[Route]:
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
    scalars = {id(m.weight) for m in model.modules() if isinstance(m, Mix)}
    routes = []
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if id(p) in block_matrices and config.matrices == "muon":
            muon = config.muon
            scale = update_scale(muon.scale, *shape)
            routes.append(Route(name, shape, "muon", muon.lr, scale, muon.weight_decay))
            continue
        if id(p) in block_matrices and config.matrices != "adamw":
            routes.append(Route(name, shape, config.matrices, config.matrix_lr, 1.0, 0.0))
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
        routes.append(Route(name, shape, "adamw", lr, 1.0, decay))
    return routes


def check_routes(model: nn.Module, routes: Sequence[Route]) -> None:
    """Raise `QuinticError`, with the names, unless every parameter is claimed exactly once.

    Tied parameters appear in the model under several names; claiming them under two optimizers, or
    twice under one, would apply two updates to one tensor.
    """
    names_of: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(p), []).append(name)
    known = {name for names in names_of.values() for name in names}
    claims = Counter(route.name for route in routes)
    if unknown := [name for name in claims if name not in known]:
        raise QuinticError(f"routes for parameters that the model does not have: {unknown}")
    if twice := [name for name, count in claims.items() if count > 1]:
        raise QuinticError(f"parameters claimed twice: {', '.join(twice)}")
    optimizer_of = {route.name: route.optimizer for route in routes}
    for names in names_of.values():
        claimed = [name for name in names if name in claims]
        if not claimed:
            raise QuinticError(f"parameter claimed by no optimizer: {' = '.join(names)}")
        if len(claimed) > 1:
            tied = ", ".join(f"{name} ({optimizer_of[name]})" for name in claimed)
            raise QuinticError(f"one tied parameter claimed under several names: {tied}")


def build_optimizers(
    model: LanguageModel,
    routes: Sequence[Route],
    config: OptimConfig,
    *,
    device: torch.device,
    compile: bool = False,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a whole model, once its table of routes is checked."""
    check_routes(model, routes)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return optimizers_for(parameters, routes, config, device=device, compile=compile)


def optimizers_for(
    parameters: Mapping[str, nn.Parameter],
    routes: Sequence[Route],
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
    if muon_routes := [route for route in routes if route.optimizer == "muon"]:
        muon, weights = config.muon, parameters[muon_routes[0].name].dtype
        ns_dtype = newton_schulz_dtype(muon, device, weights)
        optimizers.append(
            Muon(
                _groups(muon_routes, parameters),
                lr=muon.lr,
                momentum=muon.momentum,
                nesterov=muon.nesterov,
                scale=muon.scale,
                weight_decay=muon.weight_decay,
                cautious=muon.cautious,
                ns_steps=muon.ns_steps,
                ns_dtype=ns_dtype,
                coefficients=muon.coefficients,
                normalize=muon.normalize,
                beta2=muon.beta2,
                compile=compile,
                polynomial=polynomial_for(muon.kernel, device, ns_dtype),
                whole=whole,
            )
        )
    if rest := [route for route in routes if route.optimizer not in ("muon", "adamw")]:
        optimizers.append(build_baseline(config, _groups(rest, parameters)))
    if adamw_routes := [route for route in routes if route.optimizer == "adamw"]:
        adamw = torch.optim.AdamW(
            _groups(adamw_routes, parameters),
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
    routes: Iterable[Route], parameters: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """One parameter group for each (learning rate, weight decay)."""
    by_setting: dict[tuple[float, float], list[Route]] = {}
    for route in routes:
        by_setting.setdefault((route.lr, route.weight_decay), []).append(route)
    return [
        {
            "params": [parameters[route.name] for route in same],
            "names": [route.name for route in same],
            "shapes": [route.shape for route in same],
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


def routing_table(routes: Sequence[Route]) -> str:
    """The routes as aligned text, same-shape matrices of the blocks' layers on one line each."""
    rows = [("parameter", "shape", "optimizer", "lr", "scale", "effective lr", "weight decay")]
    rows += [
        (
            route.name,
            " x ".join(map(str, route.shape)),
            route.optimizer,
            f"{route.lr:g}",
            f"{route.scale:.4g}",
            f"{route.effective_lr:.4g}",
            f"{route.weight_decay:g}",
        )
        for route in routes
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"

"""Muon: momentum, orthogonalised by Newton-Schulz. The mathematics, for one process.

    buffer = momentum * buffer + gradient
    update = orthogonalize(gradient + momentum * buffer)        (Nesterov; else of the buffer)
    weight = (1 - lr * weight_decay) * weight - lr * scale(r, c) * update
                              (`cautious` decays only some entries: see `decay_cautiously`)

Source: Keller Jordan et al., https://kellerjordan.github.io/posts/muon/, as in the record of
2024-10-14. `docs/muon.md` has the mathematics, the scales and what people get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from quintic.config import MuonConfig
from quintic.optim.matrix_optimizer import Groups, Orthogonalize, Placement, WholeMatrices
from quintic.optim.newton_schulz import (
    COEFFICIENTS,
    GramPolynomial,
    gram_polynomial,
    newton_schulz,
    newton_schulz_dtype,
    polynomial_for,
)

STACK_ELEMENTS = 2**24
"""Elements of one stack at most: enough to fill a device, while the temporaries of an update, five
stacks or so, stay small beside the weights."""


def update_scale(scale: str, rows: int, columns: int) -> float:
    """Return the factor that turns an orthogonal matrix into an update of a (rows, columns) weight.

    `docs/muon.md` says where each comes from, and its range of learning rates.
    """
    return {
        "max_dim": math.sqrt(max(rows, columns)),
        "aspect": math.sqrt(max(1.0, rows / columns)),
        "rms": 0.2 * math.sqrt(max(rows, columns)),
    }[scale]


class _Stack(NamedTuple):
    """Holds matrices of one shape that are updated at once."""

    group: dict[str, Any]
    shape: tuple[int, ...]
    """The whole matrices' shape."""
    params: list[nn.Parameter]
    buffer_nrc: Tensor
    second_moment_nr1: Tensor | None
    """NorMuon's, where it is asked for."""


def muon_update(
    G_nrc: Tensor,
    buffer_nrc: Tensor,
    *,
    momentum: float | Tensor,
    nesterov: bool,
    ns_steps: int,
    ns_dtype: torch.dtype,
    ns_coefficients: str = "quintic",
    polynomial: GramPolynomial = gram_polynomial,
    on_whole: Callable[[Orthogonalize, Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the orthogonal update of a stack of matrices [n, r, c]; change the buffer.

    Pure mathematics: no learning rate, no scale, no communication. An all-zero gradient with an
    all-zero buffer gives an all-zero update. All but the orthogonalisation is done element by
    element, so the stack may hold some rows only, if `on_whole` brings whole matrices together.
    """
    buffer_nrc.mul_(momentum).add_(G_nrc)
    direction_nrc = G_nrc + buffer_nrc * momentum if nesterov else buffer_nrc
    orthogonalize = partial(
        newton_schulz,
        steps=ns_steps,
        coefficients=COEFFICIENTS[ns_coefficients],
        polynomial=polynomial,
    )
    direction_nrc = direction_nrc.to(ns_dtype)
    update_nrc = (
        orthogonalize(direction_nrc) if on_whole is None else on_whole(orthogonalize, direction_nrc)
    )
    return update_nrc.to(G_nrc.dtype)


NORMUON_EPS = 1e-10
"""Added to NorMuon's denominators, as the authors do: a zero update stays zero."""


frobenius_norm = partial(torch.linalg.vector_norm, dim=(-2, -1), keepdim=True)
"""The norm of each matrix of a stack, [n, 1, 1]."""


def normalize_neurons(
    update_nrc: Tensor,
    second_moment_nr1: Tensor,
    *,
    beta2: float,
    norm: Callable[[Tensor], Tensor] = frobenius_norm,
) -> Tensor:
    """Divide the rows of an update [n, r, c] by their root second moment, NorMuon's other half.

        second_moment = beta2 second_moment + (1 - beta2) mean over the columns of update^2
        normalized    = update / sqrt(second_moment)
        result        = normalized |update| / |normalized|        (Frobenius norms)

    Orthogonalisation equalises the singular values of an update and not the lengths of its rows,
    each of which is what one output neuron gets; this makes them equal over time, as Adam does with
    each entry, at the price of one number per row.

    The second moment [n, r, 1], changed in place, starts at zero and needs no correction for that:
    it is off by the same factor in every row, which the last line cancels. That line keeps the norm
    that the update came with, as the authors' code does, so that Muon's scales and learning rates
    stay valid. The paper gives all entries a root mean square of 0.2 instead: the scale `rms`.
    Where the stack holds some rows only, `norm` gives the norms of the whole matrices.
    Source: Li et al., https://arxiv.org/abs/2510.05491
    """
    norm_n11 = norm(update_nrc)
    second_moment_nr1.lerp_(update_nrc.square().mean(dim=-1, keepdim=True), 1 - beta2)
    normalized_nrc = update_nrc / (second_moment_nr1.sqrt() + NORMUON_EPS)
    new_norm_n11 = norm(normalized_nrc)
    result: Tensor = normalized_nrc * (norm_n11 / (new_norm_n11 + NORMUON_EPS))
    return result


def decay_cautiously(
    weights: Sequence[Tensor], updates: Sequence[Tensor], *, factor: float
) -> None:
    """weight = weight - factor * weight where update * weight >= 0, in place.

    Decay pulls every weight towards zero, also where the optimizer pushes it away. Masked, it never
    works against the update: what will be subtracted makes a weight of its own sign smaller, and
    such a weight is decayed. Element by element, so the tensors may be rows of larger ones.
    Source: Chen et al., https://arxiv.org/abs/2510.12402; the speedrun has it since its record of
    2025-11-10 (https://github.com/KellerJordan/modded-nanogpt).
    """
    agrees = [(u * w >= 0).to(w.dtype) for w, u in zip(weights, updates, strict=True)]
    decayed = torch._foreach_mul(agrees, list(weights))
    torch._foreach_add_(list(weights), decayed, alpha=-factor)


class Muon(torch.optim.Optimizer):
    """Updates two-dimensional weights; embeddings, heads, vectors and scalars are not for it.

    Matrices of one shape are stacked and orthogonalised in batches. A stack's momentum is one
    tensor [n, r, c], allocated up front; `state[p]["momentum"]` is the view of one matrix.

    Each parameter group's `lr` and `momentum` may be changed between steps. A parameter without a
    gradient is an error, since it would silently shrink the stack.

    Where parameters are rows of larger matrices, a group names the whole ones' `shapes`, and
    `whole` brings them together (`quintic.optim.fsdp`).
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        scale: str = "max_dim",
        weight_decay: float = 0.0,
        cautious: bool = False,
        ns_steps: int = 5,
        ns_dtype: torch.dtype = torch.float32,
        ns_coefficients: str = "quintic",
        normuon: bool = False,
        beta2: float = 0.95,
        compile: bool = False,
        polynomial: GramPolynomial = gram_polynomial,
        whole: WholeMatrices | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "scale": scale,
            "weight_decay": weight_decay,
            "cautious": cautious,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "ns_coefficients": ns_coefficients,
            "normuon": normuon,
            "beta2": beta2,
        }
        super().__init__(params, defaults)
        self._compiled = compile
        self._polynomial = polynomial
        self._whole = whole
        self._update = torch.compile(muon_update, dynamic=False) if compile else muon_update
        self._stacks = [stack for group in self.param_groups for stack in self._stack(group)]

    def _stack(self, group: dict[str, Any]) -> list[_Stack]:
        """Stack parameters of one whole shape with their state, in the order of the model."""
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        shapes = group.get("shapes") or [tuple(p.shape) for p in group["params"]]
        for p, shape in zip(group["params"], shapes, strict=True):
            if p.ndim != 2:
                raise ValueError(f"Muon takes matrices only, not a parameter of shape {p.shape}")
            by_shape.setdefault(shape, []).append(p)
        stacks = []
        for shape, same in by_shape.items():
            most = max(1, STACK_ELEMENTS // math.prod(shape))
            for start in range(0, len(same), most):
                stack = same[start : start + most]
                buffer_nrc = torch.stack([torch.zeros_like(p) for p in stack])
                second_moment_nr1 = buffer_nrc[..., :1].clone() if group["normuon"] else None
                for i, p in enumerate(stack):
                    self.state[p]["momentum"] = buffer_nrc[i]
                    if second_moment_nr1 is not None:
                        self.state[p]["second_moment"] = second_moment_nr1[i]
                stacks.append(_Stack(group, shape, stack, buffer_nrc, second_moment_nr1))
        return stacks

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix from its `.grad`."""
        assert closure is None, "Muon evaluates the loss once a step"
        for group, (rows, columns), params, buffer_nrc, second_moment_nr1 in self._stacks:
            weights: list[Tensor] = list(params)
            momentum = group["momentum"]
            if self._compiled:
                # As a tensor, since a compiled function is compiled again for every new number.
                momentum = torch.tensor(momentum, dtype=torch.float64)
            update_nrc = self._update(
                torch.stack([p.grad for p in params if p.grad is not None]),
                buffer_nrc,
                momentum=momentum,
                nesterov=group["nesterov"],
                ns_steps=group["ns_steps"],
                ns_dtype=group["ns_dtype"],
                ns_coefficients=group["ns_coefficients"],
                polynomial=self._polynomial,
                on_whole=None if self._whole is None else partial(self._whole.apply, rows=rows),
            )
            if second_moment_nr1 is not None:
                norm = frobenius_norm if self._whole is None else self._whole.norm
                update_nrc = normalize_neurons(
                    update_nrc, second_moment_nr1, beta2=group["beta2"], norm=norm
                )
            decay = group["lr"] * group["weight_decay"]
            if decay and group["cautious"]:
                decay_cautiously(weights, update_nrc.unbind(), factor=decay)
            elif decay:
                torch._foreach_mul_(weights, 1 - decay)
            torch._foreach_add_(
                weights,
                list(update_nrc.unbind()),
                alpha=-group["lr"] * update_scale(group["scale"], rows, columns),
            )


def build_muon(config: MuonConfig, groups: Groups, placement: Placement) -> Muon:
    """Build the trainer's Muon."""
    device, settings = placement.device, asdict(config)
    ns_dtype = newton_schulz_dtype(config.ns_dtype, device, groups[0]["params"][0].dtype)
    kernel, _ = settings.pop("kernel"), settings.pop("momentum_warmup_steps")
    return Muon(
        groups,
        **{**settings, "ns_dtype": ns_dtype},
        compile=placement.compile,
        polynomial=polynomial_for(kernel, device, ns_dtype),
        whole=placement.whole,
    )

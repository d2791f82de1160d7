"""What a step does to the matrices of the blocks.

The weights before it, the gradients as the optimizers get them and their state after it are looked
at where they are, on one process or divided among several: every matrix is brought together on one
rank, which computes its singular values. Nothing that training reads is changed.

Shapes: n matrices [r, c] of one shape, l rows of them here, R = min(r, c); M matrices, N processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from quintic.config import OptimConfig
from quintic.diagnostics.polynomial import apply_polynomial, polynomial_band, sequence_of
from quintic.distributed.world import World
from quintic.optim.newton_schulz import (
    COEFFICIENTS,
    EPS,
    newton_schulz,
    newton_schulz_dtype,
    polynomial_for,
)
from quintic.optim.param_groups import ParamSpec
from quintic.optim.stacks import STACK_ELEMENTS

MatrixFacts = dict[str, Any]
"""The numbers of one matrix, by the names of `docs/diagnostics.md`."""

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
"""Of the singular values of a matrix, which quantiles are kept: the extremes, deciles, median."""

SINGULAR_VALUES = ("momentum", "update")
SCALARS = (
    "below_band",
    "polynomial_error",
    "weight_stable_rank",
    "gradient_stable_rank",
    "update_to_weight",
)

MOMENTUM = {"muon": "momentum", "adamw": "exp_avg", "sgd": "momentum_buffer"}
"""The name of the momentum in the state of each optimizer that is known to have one."""


class MatrixWatch:
    """Looks at one step: `begin` before it, `measure` after it, both on every process."""

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        specs: Sequence[ParamSpec],
        config: OptimConfig,
        world: World,
        like: Tensor,
    ) -> None:
        self._optimizers, self._config, self._world = optimizers, config, world
        self._specs = [s for s in specs if s.name.startswith("layers.") and len(s.shape) == 2]
        self._like = like
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def band(self) -> tuple[float, float] | None:
        """Return the polynomial's band; None where nothing is orthogonalised."""
        muon = self._config.muon
        if self._config.matrices != "muon":
            return None
        return polynomial_band(sequence_of(muon.ns_coefficients, muon.ns_steps))

    def begin(self) -> None:
        """Keep the weights as they are, and the gradients of the next step."""
        self._before = {name: p.detach().clone() for name, (p, *_) in self._here().items()}
        # Gradients are dropped within the step, so nobody else could look at them.
        self._hooks = [o.register_step_pre_hook(self._keep_gradients) for o in self._optimizers]

    def _here(self) -> dict[str, tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Return this rank's rows of each matrix with their parameter group and state, by name."""
        wanted = {spec.name for spec in self._specs}
        return {
            name: (p, group, optimizer.state.get(p, {}))
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for name, p in zip(group["names"], group["params"], strict=True)
            if name in wanted
        }

    def _keep_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for name, p in zip(group["names"], group["params"], strict=True):
                if name in self._before:
                    self._gradients[name] = p.grad.detach().clone()

    @torch.no_grad()
    def measure(self, on_progress: Callable[[], None]) -> dict[str, MatrixFacts]:
        """Return the numbers of every matrix; `on_progress` is called again and again."""
        for hook in self._hooks:
            hook.remove()
        owners, whole = self._whole_at_owners()
        width = len(SINGULAR_VALUES) * len(QUANTILES) + len(SCALARS)
        found_MK = torch.zeros((len(self._specs), width), dtype=torch.float64)
        for numbers in self._stacks(owners):
            on_progress()
            stacked = {
                kind: _for_linalg(torch.stack([of[number] for number in numbers]))
                for kind, of in whole.items()
            }
            found_MK[numbers] = self._facts(stacked).cpu()
        if self._world.size > 1:
            found_MK = self._world.all_reduce(found_MK.to(self._like.device)).cpu()
        self._before, self._gradients = {}, {}
        found = (self._named(row) for row in found_MK.tolist())
        return {spec.name: facts for spec, facts in zip(self._specs, found, strict=True)}

    def _named(self, row: list[float]) -> MatrixFacts:
        each = len(QUANTILES)
        lists = {name: row[i * each : (i + 1) * each] for i, name in enumerate(SINGULAR_VALUES)}
        scalars = row[len(SINGULAR_VALUES) * each :]
        return {**lists, **dict(zip(SCALARS, scalars, strict=True))}

    def _rows(self) -> dict[str, list[Tensor]]:
        """Return this rank's rows of every matrix, [l, c], which may be none: of the weight before
        the step, the gradient, the change of the step, the momentum where there is a known one and
        the update where it is made element by element."""
        here, rows = self._here(), []
        for spec in self._specs:
            none = self._like.new_empty((0, spec.shape[1]))
            if not len(before := self._before.get(spec.name, none)):
                rows.append(dict.fromkeys(self._kinds, none))
                continue
            p, group, state = here[spec.name]
            gradient, change = self._gradients[spec.name], p.detach() - before
            found = {"weight": before, "gradient": gradient, "change": change}
            if "momentum" in self._kinds:
                found["momentum"] = state[MOMENTUM[self._config.matrices]]
            if self._config.matrices == "muon" and group["nesterov"]:
                found["momentum"] = gradient + group["momentum"] * found["momentum"]
            if self._config.matrices == "adamw":
                found["update"] = _adam_update(group, state)
            elif "update" in self._kinds:
                found["update"] = change / -group["lr"]
            rows.append(found)
        return {kind: [found[kind] for found in rows] for kind in self._kinds}

    @property
    def _kinds(self) -> list[str]:
        kinds = ["weight", "gradient", "change"]
        if self._config.matrices in MOMENTUM:
            kinds.append("momentum")
        if self._config.matrices != "muon":  # whose update needs whole matrices
            kinds.append("update")
        return kinds

    def _whole_at_owners(self) -> tuple[list[int], dict[str, dict[int, Tensor]]]:
        """Return the rank that gets each matrix, and by kind those that this one gets, by number.

        A rank that has all rows keeps them; what is cut is dealt out by the work that it makes.
        """
        world, rows = self._world, self._rows()
        counts_MN = self._like.new_zeros((len(self._specs), world.size), dtype=torch.int64)
        for number, own in enumerate(rows["weight"]):
            counts_MN[number, world.rank] = len(own)
        counts: list[list[int]] = world.all_reduce(counts_MN).tolist()
        owners, load = [], [0.0] * world.size
        for spec, of_ranks in zip(self._specs, counts, strict=True):
            holder = max(range(world.size), key=lambda rank: of_ranks[rank])
            if of_ranks[holder] < spec.shape[0]:
                holder = min(range(world.size), key=lambda rank: load[rank])
            owners.append(holder)
            load[holder] += math.prod(spec.shape) * min(spec.shape)
        return owners, {kind: self._exchange(of, owners, counts) for kind, of in rows.items()}

    def _exchange(
        self, rows: list[Tensor], owners: list[int], counts: list[list[int]]
    ) -> dict[int, Tensor]:
        world = self._world
        own = [number for number, owner in enumerate(owners) if owner == world.rank]
        none = self._like.new_empty(0)
        parts = [[none] for _ in range(world.size)]
        for tensor, owner in zip(rows, owners, strict=True):
            parts[owner].append(tensor.reshape(-1))
        columns = [spec.shape[1] for spec in self._specs]
        sizes = [[counts[n][rank] * columns[n] for n in own] for rank in range(world.size)]
        received = world.exchange(
            [torch.cat(part) for part in parts], [[sum(of_rank)] for of_rank in sizes]
        )
        pieces = [part.split(s) for part, s in zip(received, sizes, strict=True)]
        return {
            number: torch.cat([of_rank[i] for of_rank in pieces]).view(-1, columns[number])
            for i, number in enumerate(own)
        }

    def _stacks(self, owners: list[int]) -> list[list[int]]:
        """Return the numbers of this rank's matrices, those of one shape together."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for number, (spec, owner) in enumerate(zip(self._specs, owners, strict=True)):
            if owner == self._world.rank:
                by_shape.setdefault(spec.shape, []).append(number)
        return [
            numbers[start : start + most]
            for shape, numbers in by_shape.items()
            for most in [max(1, STACK_ELEMENTS // math.prod(shape))]
            for start in range(0, len(numbers), most)
        ]

    def _facts(self, whole: dict[str, Tensor]) -> Tensor:
        """Return the numbers of n matrices [n, K], in the order of `SINGULAR_VALUES`, each with its
        quantiles, and `SCALARS`."""
        weight_nrc, gradient_nrc = whole["weight"], whole["gradient"]
        nothing_n = weight_nrc.new_full(weight_nrc.shape[:1], math.nan, dtype=torch.float64)
        momentum_nR = nothing_n[:, None]
        if "momentum" in whole:
            momentum_nR = singular_values(whole["momentum"])
        below_n = error_n = nothing_n
        if self._config.matrices == "muon":
            update_nR = singular_values(self._orthogonalized(whole["momentum"]))
            muon = self._config.muon
            sequence = sequence_of(muon.ns_coefficients, muon.ns_steps)
            norm_n1 = momentum_nR.square().sum(1, keepdim=True).sqrt()
            exact_nR = apply_polynomial(momentum_nR / (norm_n1 + EPS), sequence).sort(dim=1).values
            error_n = (update_nR - exact_nR).abs().amax(dim=1)
            below_n = (update_nR < polynomial_band(sequence)[0]).double().mean(dim=1)
        else:
            update_nR = singular_values(whole["update"])
        quantiles = update_nR.new_tensor(QUANTILES)
        lists = [torch.quantile(v, quantiles, dim=1).T for v in (momentum_nR, update_nR)]
        ratio_n = _norm(whole["change"]) / _norm(weight_nrc)
        ranks = [stable_rank(weight_nrc), stable_rank(gradient_nrc)]
        scalars_nk = torch.stack([below_n, error_n, *ranks, ratio_n], dim=1)
        return torch.cat([*lists, scalars_nk], dim=1)

    def _orthogonalized(self, momentum_nrc: Tensor) -> Tensor:
        """Return what the step's Newton-Schulz made of the momentum, by the same computation."""
        muon = self._config.muon
        dtype = newton_schulz_dtype(muon.ns_dtype, momentum_nrc.device, momentum_nrc.dtype)
        return newton_schulz(
            momentum_nrc.to(dtype),
            steps=muon.ns_steps,
            coefficients=COEFFICIENTS[muon.ns_coefficients],
            polynomial=polynomial_for(muon.kernel, momentum_nrc.device, dtype),
        )


def singular_values(A_nrc: Tensor) -> Tensor:
    """Return the singular values of each matrix in ascending order, [n, R] in float64.

    They are the roots of the eigenvalues of the smaller Gram matrix, which takes a fraction of the
    time of an SVD where one side is longer. In float64 that is exact to 1e-8 of the largest value.
    Those of a matrix that is not finite are NaN.
    """
    A_nrc = A_nrc.double()
    wide_nRC = A_nrc if A_nrc.shape[1] <= A_nrc.shape[2] else A_nrc.mT
    gram_nRR = wide_nRC @ wide_nRC.mT
    finite_n1 = gram_nRR.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True).isfinite()
    # For a NaN it would raise.
    gram_nRR = gram_nRR.where(finite_n1[..., None], 0)
    values_nR: Tensor = torch.linalg.eigvalsh(gram_nRR).clamp_min(0).sqrt()
    return values_nR.where(finite_n1, math.nan)


def stable_rank(A_nrc: Tensor) -> Tensor:
    """Return |A|_F^2 / |A|_2^2 of each matrix, [n]: how many directions it has that count.

    From 1 to R, and of a zero matrix NaN.
    """
    squares_nR = singular_values(A_nrc).square()
    return squares_nR.sum(dim=1) / squares_nR[:, -1]


def _norm(A_nrc: Tensor) -> Tensor:
    return A_nrc.double().square().sum(dim=(1, 2)).sqrt()


def _for_linalg(A_nrc: Tensor) -> Tensor:
    """Return a stack where there is float64: MPS has none."""
    return A_nrc.cpu() if A_nrc.device.type == "mps" else A_nrc


def _adam_update(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """Return what Adam has multiplied by the learning rate, from its state after the step."""
    (beta1, beta2), step = group["betas"], float(state["step"])
    mean = state["exp_avg"] / (1 - beta1**step)
    square = state["exp_avg_sq"] / (1 - beta2**step)
    update: Tensor = mean / (square.sqrt() + group["eps"])
    return update

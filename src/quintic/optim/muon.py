"""Muon: momentum, orthogonalised by Newton-Schulz.

    buffer = momentum * buffer + gradient
    update = orthogonalize(gradient + momentum * buffer)        (Nesterov; else of the buffer)
    weight = (1 - lr * weight_decay) * weight - lr * scale(r, c) * update
                              (`cautious` decays only some entries: see `decay_cautiously`)

`muon_update` is the mathematics and `Muon` the optimizer, for any training loop and for ours.
Shapes: n matrices of r rows and c columns.

Source: Keller Jordan et al., https://kellerjordan.github.io/posts/muon/, as in the record of
2024-10-14. `docs/muon.md` has the mathematics, the scales and what people get wrong.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from quintic.config import MuonConfig
from quintic.errors import QuinticError
from quintic.optim.dtensor import finite_everywhere, like, zeros
from quintic.optim.foreign_state import momenta_of
from quintic.optim.matrices import Split
from quintic.optim.matrix_optimizer import Groups, Placement
from quintic.optim.muon_checks import (
    NONFINITE,
    check_complete,
    check_foreign_options,
    check_gradient,
    check_groups,
    check_matrices,
    check_members,
    check_momentum,
    check_names,
    check_options,
    check_shape_of,
    check_state_dict,
    dtypes_named,
    dtypes_read,
    name_of,
    second_moment_shape,
)
from quintic.optim.newton_schulz import (
    COEFFICIENTS,
    GramPolynomial,
    gram_polynomial,
    newton_schulz,
    newton_schulz_dtype,
    polynomial_for,
)
from quintic.optim.newton_schulz_cpu import Room
from quintic.optim.side_by_side import side_by_side, workers_for
from quintic.optim.stacks import Stack, frozen, stacks_of, to_update
from quintic.optim.whole import (
    Orthogonalize,
    Turns,
    WholeMatrices,
    is_default,
    may_share,
    shared_work,
)

STATE = ("momentum", "second_moment")
"""The names of a parameter's state; the second is NorMuon's."""


def update_scale(scale: str, rows: int, columns: int) -> float:
    """Return the factor that turns an orthogonal matrix into an update of a (rows, columns) weight.

    `docs/muon.md` says where each comes from, and its range of learning rates.
    """
    return {
        "max_dim": math.sqrt(max(rows, columns)),
        "aspect": math.sqrt(max(1.0, rows / columns)),
        "rms": 0.2 * math.sqrt(max(rows, columns)),
        "none": 1.0,
    }[scale]


def muon_update(
    gradients: list[Tensor],
    buffers: list[Tensor],
    *,
    momentum: float | Tensor,
    nesterov: bool,
    ns_steps: int,
    ns_dtype: torch.dtype,
    ns_coefficients: str = "quintic",
    polynomial: GramPolynomial = gram_polynomial,
    on_whole: Callable[[Orthogonalize, Tensor], Tensor] | None = None,
    out: Tensor | None = None,
    work: Tensor | None = None,
) -> Tensor:
    """Return the orthogonal update [n, r, c] of n matrices [r, c]; change their buffers.

    Pure mathematics: no learning rate, no scale, no communication. An all-zero gradient with an
    all-zero buffer gives an all-zero update. All but the orthogonalisation is done element by
    element, so these may be some rows only, if `on_whole` brings whole matrices together. `out` and
    `work` are memory to compute in, of the buffers' precision and for `newton_schulz`.
    """
    multiply(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    direction_nrc = torch.stack(buffers, out=out)
    if nesterov:
        direction_nrc.mul_(momentum)
        torch._foreach_add_(direction_nrc.unbind(), gradients)
    orthogonalize = partial(
        newton_schulz,
        dtype=ns_dtype,
        steps=ns_steps,
        coefficients=COEFFICIENTS[ns_coefficients],
        polynomial=polynomial,
    )
    if on_whole is None:
        return orthogonalize(direction_nrc, overwrite=True, work=work)
    # Rounded before it travels, but to float16, which has to be divided by its norm first.
    travels_nrc = direction_nrc if ns_dtype is torch.float16 else direction_nrc.to(ns_dtype)
    return on_whole(orthogonalize, travels_nrc).to(direction_nrc.dtype)


NORMUON_EPS = 1e-10
"""Added to NorMuon's denominators, as the authors do: a zero update stays zero."""


frobenius_norm = partial(torch.linalg.vector_norm, dim=(-2, -1), keepdim=True)
"""The norm of each matrix of a stack, [n, 1, 1]."""

row_mean_of = partial(torch.mean, dim=-1, keepdim=True)
"""The mean of each row of a stack, [n, r, 1]."""


def normalize_neurons(
    update_nrc: Tensor,
    second_moment_nr1: Tensor,
    *,
    beta2: float,
    norm: Callable[[Tensor], Tensor] = frobenius_norm,
    row_mean: Callable[[Tensor], Tensor] = row_mean_of,
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
    Where the stack holds parts only, `norm` and `row_mean` are those of the whole matrices.
    Source: Li et al., https://arxiv.org/abs/2510.05491
    """
    norm_n11 = norm(update_nrc)
    second_moment_nr1.lerp_(row_mean(update_nrc.square()), 1 - beta2)
    normalized_nrc = update_nrc / (second_moment_nr1.sqrt() + NORMUON_EPS)
    new_norm_n11 = norm(normalized_nrc)
    result: Tensor = normalized_nrc * (norm_n11 / (new_norm_n11 + NORMUON_EPS))
    return result


def decay_cautiously(
    weights: list[Tensor], updates: list[Tensor], *, factor: float | Tensor
) -> None:
    """weight = weight - factor * weight where update * weight >= 0, in place.

    Decay pulls every weight towards zero, also where the optimizer pushes it away. Masked, it never
    works against the update: what will be subtracted makes a weight of its own sign smaller, and
    such a weight is decayed. Element by element, so the tensors may be rows of larger ones.
    Source: Chen et al., https://arxiv.org/abs/2510.12402; the speedrun has it since its record of
    2025-11-10 (https://github.com/KellerJordan/modded-nanogpt).
    """
    agrees = [(u * w >= 0).to(w.dtype) for w, u in zip(weights, updates, strict=True)]
    decayed = torch._foreach_mul(agrees, weights)
    add_scaled(weights, decayed, -factor)


Tensors = tuple[Tensor, ...] | list[Tensor]


def scalar(option: float | Tensor) -> float | Tensor:
    """Return an option's number, or its tensor of one element without axes."""
    return option.reshape(()) if isinstance(option, Tensor) else option


def multiply(tensors: Tensors, factor: float | Tensor) -> None:
    """Multiply tensors in place by a number, or by a tensor of one, which may lie on the CPU."""
    if isinstance(factor, Tensor):
        for tensor in tensors:
            tensor.mul_(factor)
    else:
        torch._foreach_mul_(tensors, factor)


def add_scaled(tensors: Tensors, others: Tensors, factor: float | Tensor) -> None:
    """Add factor * others to tensors in place; a factor that is a tensor changes the others."""
    if isinstance(factor, Tensor):
        multiply(others, factor)
        factor = 1.0
    torch._foreach_add_(tensors, others, alpha=factor)


class Muon(torch.optim.Optimizer):
    """Orthogonalises the momentum of every weight matrix, as a `torch.optim.Optimizer`.

    `params` are parameters, (name, parameter) pairs or groups, as of every optimizer. Muon is for
    the matrices of hidden layers: embeddings, heads, vectors and scalars belong to AdamW. A
    parameter [r, c] is one matrix and [e, r, c] a batch of e, such as experts; with `flatten`
    kernels [out, in, ...] of a convolution are one matrix [out, the rest]; `split`, a number of
    parts or a list of their rows, orthogonalises parts of the rows apart, such as a fused q, k, v;
    `transposed` is for weights stored as [in, out], such as those of transformers' `Conv1D`.
    Raises `QuinticError`, a `ValueError`, with the name of what it cannot take.

    `lr` means something only together with `scale`, max_dim, aspect, rms or none, the factor of an
    update by its shape (`update_scale`); a tensor of one element may take its place. `weight_decay`
    is decoupled. `ns_dtype` is the precision of Newton-Schulz, by default bfloat16 on CUDA and
    float32 or better elsewhere. `momentum_dtype` is that of the momentum, by default the weights'.
    Each of these may differ between groups, and be changed between steps.

    `nonfinite` says what a step does about a gradient that is not finite: propagate it, which costs
    nothing; raise `QuinticError` with the parameters' names; or skip the whole step. The last two
    wait for the device once a step. All three leave everything untouched or do a whole step.

    A parameter without a gradient or frozen (`requires_grad` False) is left as it is, its momentum
    too. Matrices of one shape are stacked for the time of a step and orthogonalised in batches;
    state belongs to the parameter, `state[p]["momentum"]`, and is made by its first step.

    On several processes that have the same weights and the same summed gradients, as under
    DistributedDataParallel, `process_group`, a group or True for the default one, gives each
    matrix to one process and the update to all; without it every process computes everything.
    Parameters that are DTensors, as under FSDP2, need nothing: how they lie says who does what.
    All processes must then have gradients of the same parameters.

    `compile` compiles the update, `polynomial` replaces the products of Newton-Schulz. Where
    parameters are rows of larger matrices, a group names the whole ones' `shapes`, and `whole`
    brings them together (`quintic.optim.fsdp`).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        scale: str = "max_dim",
        weight_decay: float = 0.0,
        cautious: bool = False,
        ns_steps: int = 5,
        ns_dtype: torch.dtype | None = None,
        ns_coefficients: str = "quintic",
        normuon: bool = False,
        beta2: float = 0.95,
        flatten: bool = False,
        split: Split = None,
        transposed: bool = False,
        momentum_dtype: torch.dtype | None = None,
        nonfinite: str = "propagate",
        compile: bool = False,
        polynomial: GramPolynomial = gram_polynomial,
        process_group: Any = None,
        whole: WholeMatrices | None = None,
    ) -> None:
        if is_default(process_group):
            process_group = True
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
            "flatten": flatten,
            "split": split,
            "transposed": transposed,
            "momentum_dtype": momentum_dtype,
        }
        check_options(defaults)
        if nonfinite not in NONFINITE:
            raise QuinticError(
                f"Muon: nonfinite is {nonfinite!r} and must be one of {', '.join(NONFINITE)}"
            )
        if not may_share(process_group):
            raise QuinticError(
                f"Muon: process_group is {process_group!r} and must be a group of "
                "torch.distributed that this process is in, True for the default one, or None"
            )
        self._outside_groups: dict[str, Any] = {
            "nonfinite": nonfinite,
            "compile": compile,
            "polynomial": polynomial,
            "process_group": process_group,
            "whole": whole,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:  # for pickle and deepcopy
        return {**super().__getstate__(), "_outside_groups": self._outside_groups}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        group = self._outside_groups["process_group"]
        memo[id(group)] = group  # which cannot be copied, nor need it be
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own where it names any.

        Raises `QuinticError`, and adds nothing, where it cannot be used.
        """
        others = list(self.param_groups)
        if isinstance(param_group, dict) and "params" not in param_group:
            keys = ", ".join(map(str, param_group))
            raise QuinticError(f"Muon: a parameter group has {keys or 'nothing'} and no 'params'")
        try:
            with warnings.catch_warnings():  # of duplicates, which are refused below
                warnings.filterwarnings("ignore", message="optimizer contains a parameter group w")
                super().add_param_group(param_group)
        except ValueError as error:
            if "in more than one parameter group" in str(error):
                check_members(param_group, others)  # which names it
            raise
        group = self.param_groups.pop()
        self._check_new_group(group, others)
        self.param_groups.append(group)

    def _check_new_group(self, group: dict[str, Any], others: list[dict[str, Any]]) -> None:
        if group.get("optimizer", "muon") != "muon":
            raise QuinticError(
                f"Muon: a group says optimizer={group['optimizer']}: give the groups to "
                "MuonWithAdamW, or that one to another optimizer"
            )
        check_foreign_options(group)
        check_names(group, self.defaults)
        check_options(group)
        check_members(group, others)
        check_matrices(group, others)

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the options of the groups, with a `torch.dtype` as its name, since
        `torch.distributed.checkpoint` takes none."""
        state = super().state_dict()
        return {**state, "param_groups": [dtypes_named(group) for group in state["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, to any device; options of the groups are loaded too.

        Tensors are copied. Momentum keeps the precision of `momentum_dtype`, where PyTorch would
        round it to the weights'. An option that the saved version had not stays as it is.

        Raises `QuinticError`, and loads nothing, where it is not Muon's over these parameters.
        """
        if not isinstance(state_dict, Mapping):
            raise QuinticError(f"Muon: a state dict is a dict, and this is {state_dict!r:.60}")
        saved: dict[str, Any] = {}

        def check(_: Any, found: dict[str, Any]) -> dict[str, Any]:
            check_groups(found, self.param_groups)
            groups = [dtypes_read(group) for group in found["param_groups"]]
            found = {**found, "param_groups": groups}
            self._check_state_dict(found)
            pairs = zip(self.param_groups, found["param_groups"], strict=True)
            saved.update(found, param_groups=[{**group, **loaded} for group, loaded in pairs])
            return saved

        def copy_tensors(_: Any) -> None:
            for group, loaded in zip(self.param_groups, saved["param_groups"], strict=True):
                for p, key in zip(group["params"], loaded["params"], strict=True):
                    for name, value in saved["state"].get(key, {}).items():
                        if name not in STATE:
                            # PyTorch keeps the very tensors where precision and device are right.
                            if isinstance(value, Tensor):
                                self.state[p][name] = self.state[p][name].clone()
                        else:
                            dtype = group.get("momentum_dtype") or p.dtype
                            value = value.to(p.device, dtype, copy=True).contiguous()
                            self.state[p][name] = value

        handles = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(copy_tensors, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every matrix that has a gradient; return what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with without_autocast(p.device.type for g in self.param_groups for p in g["params"]):
            self._step()
        return loss

    def _step(self) -> None:
        self._check_gradients()
        if self._may_step():
            self._update_others()  # first, since PyTorch has rules of its own that refuse
            whole = self._outside_groups["whole"] or shared_work(
                self._outside_groups["process_group"]
            )
            alone: list[tuple[Room, Callable[[Tensor], None]]] = []
            turns: Turns = {}
            for group in self._orthogonalized():
                for stack in stacks_of(group, partial(self._state_of, group=group), whole):
                    update = partial(self._update_stack, group, stack, turns)
                    if stack.alone:
                        alone.append((_room_of(group, stack), update))
                    else:
                        update()
            if alone:
                _update_alone(alone)

    def _check_gradients(self) -> None:
        """Raise `QuinticError` for a gradient or an option that no step can be made of, before one
        is begun."""
        for group in self._orthogonalized():
            if not torch.compiler.is_compiling():
                check_complete(group, self.defaults)
                check_options(group)
            for p, gradient, shape in to_update(group):
                check_gradient(gradient, p, self.param_groups)
                check_shape_of(p, shape, group, self.param_groups, lying=False)
                if not torch.compiler.is_compiling():
                    check_momentum(self.state.get(p, {}), p, self.param_groups)

    def _orthogonalized(self) -> list[dict[str, Any]]:
        """Return the groups of matrices to orthogonalise: all, but in `MuonWithAdamW`."""
        return self.param_groups

    def _update_others(self) -> None:
        """Update the parameters of the other groups."""

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_state_dict(state_dict, self.param_groups)

    def allocate_state(self) -> None:
        """Create the state of all parameters that are not frozen, as their first steps would."""
        for group in self._orthogonalized():
            for p in group["params"]:
                if not frozen(p):
                    self._state_of(p, group)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        dtype = group["momentum_dtype"] or p.dtype
        if "momentum" not in state:
            state["momentum"] = zeros(p, dtype)
        if group["normuon"]:
            shape = second_moment_shape(p, group)
            if "second_moment" not in state or state["second_moment"].shape != shape:
                state["second_moment"] = zeros(p, dtype, shape)
        for name in STATE:  # the option may have been changed
            if name in state and state[name].dtype != dtype:
                state[name] = state[name].to(dtype)
        return state

    def _may_step(self) -> bool:
        """Return whether `nonfinite` lets this step be done."""
        nonfinite = self._outside_groups["nonfinite"]
        if nonfinite == "propagate":
            return True
        found = [(p, g) for group in self.param_groups for p, g, _ in to_update(group)]
        finite = finite_everywhere(found)
        if nonfinite == "raise" and not all(finite):
            bad = [p for (p, _), good in zip(found, finite, strict=True) if not good]
            names = ", ".join(name_of(p, self.param_groups) for p in bad)
            raise QuinticError(f"{type(self).__name__}: the gradient of {names} is not finite")
        return all(finite)

    @torch.no_grad()
    def _update_stack(
        self,
        group: dict[str, Any],
        stack: Stack,
        turns: Turns,
        memory_u8: Tensor | None = None,
    ) -> None:
        """Update matrices of one whole shape; one that is alone needs the memory of its `Room`."""
        (rows, columns), whole, weights = stack.shape, stack.whole, stack.weights
        update, momentum = muon_update, scalar(group["momentum"])
        if self._outside_groups["compile"] and whole is None and not stack.alone:
            # As a tensor, since a compiled function is compiled again for every new number.
            home = momentum.device if isinstance(momentum, Tensor) else torch.device("cpu")
            momentum = torch.as_tensor(momentum, dtype=torch.float64, device=home)
            update = _compiled_update()
        room = _room_of(group, stack)
        out, work = (None, None) if memory_u8 is None else room.within(memory_u8)
        update_nrc = update(
            stack.gradients,
            stack.buffers,
            momentum=momentum,
            nesterov=group["nesterov"],
            ns_steps=group["ns_steps"],
            ns_dtype=room.ns_dtype,
            ns_coefficients=group["ns_coefficients"],
            polynomial=self._outside_groups["polynomial"],
            on_whole=None if whole is None else partial(whole.apply, rows=rows, turns=turns),
            out=out,
            work=work,
        )
        if stack.moments:
            moment_nr1 = torch.stack(stack.moments)
            if moment_nr1.dtype is torch.float16:  # in which squares and the eps would be zero
                moment_nr1, update_nrc = moment_nr1.float(), update_nrc.float()
            sums = {} if whole is None else {"norm": whole.norm, "row_mean": whole.row_mean}
            update_nrc = normalize_neurons(update_nrc, moment_nr1, beta2=group["beta2"], **sums)
            torch._foreach_copy_(stack.moments, moment_nr1.unbind())
        updates = [u.view(w.shape) for w, u in zip(weights, update_nrc.unbind(), strict=True)]
        lr = scalar(group["lr"])
        if group["weight_decay"]:
            decay = lr * scalar(group["weight_decay"])
            if group["cautious"]:
                decay_cautiously(weights, updates, factor=decay)
            else:
                multiply(weights, 1 - decay)
        add_scaled(weights, updates, -lr * update_scale(group["scale"], rows, columns))

    def load_foreign(
        self, state: Mapping[str, Any], kind: str, *, momentum: float | None = None
    ) -> str:
        """Take over the momentum of another Muon; return in words what was converted.

        `kind` is torch or muon-optimizer, with `state` a state dict of theirs over the same
        matrices, or keras or optax, with the momentum arrays by the names of the parameters here.
        Averages become sums by a division by 1 - `momentum`, by default that of the other's groups
        or else of these; kernels (in, out) are transposed, but for what is `transposed` here too.
        Options are not taken over.

        Raises `QuinticError`, and loads nothing, where a parameter has none or another shape.
        """
        found, words = momenta_of(state, kind, self._orthogonalized(), momentum)
        for group in self._orthogonalized():
            for p in group["params"]:
                if p in found:
                    value = found[p].to(p.device, group["momentum_dtype"] or p.dtype)
                    self.state[p]["momentum"] = like(value, p)
        return words


@contextmanager
def without_autocast(device_types: Iterable[str]) -> Iterator[None]:
    """Compute in the precisions that the tensors have, also where a caller is in autocast."""
    with ExitStack() as stack:
        for kind in dict.fromkeys(device_types):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _room_of(group: dict[str, Any], stack: Stack) -> Room:
    weight = stack.weights[0]
    ns_dtype = group["ns_dtype"] or newton_schulz_dtype("auto", weight.device, weight.dtype)
    return Room(stack.shape, stack.buffers[0].dtype, ns_dtype)


def _update_alone(updates: list[tuple[Room, Callable[[Tensor], None]]]) -> None:
    """Do the updates of large matrices side by side; each thread has memory for one at a time."""
    memory_bytes = max(room.bytes for room, _ in updates)
    # Here, since what a thread of its own allocates the C library keeps for that thread.
    free = [
        torch.empty(memory_bytes, dtype=torch.uint8, device="cpu")
        for _ in range(workers_for(updates))
    ]

    def do(update: Callable[[Tensor], None]) -> None:
        memory_u8 = free.pop()
        try:
            update(memory_u8)
        finally:
            free.append(memory_u8)

    # The largest first: no thread ends long after the others.
    updates.sort(key=lambda of: math.prod(of[0].shape), reverse=True)
    side_by_side([partial(do, update) for _, update in updates])


@cache
def _compiled_update() -> Callable[..., Tensor]:
    return torch.compile(muon_update, dynamic=False)


def build_muon(config: MuonConfig, groups: Groups, placement: Placement) -> Muon:
    """Build the trainer's Muon."""
    device, settings = placement.device, asdict(config)
    ns_dtype = newton_schulz_dtype(config.ns_dtype, device, groups[0]["params"][0].dtype)
    kernel, _ = settings.pop("kernel"), settings.pop("momentum_warmup_steps")
    muon = Muon(
        groups,
        **{**settings, "ns_dtype": ns_dtype},
        compile=placement.compile,
        polynomial=polynomial_for(kernel, device, ns_dtype),
        whole=placement.whole,
    )
    muon.allocate_state()
    return muon

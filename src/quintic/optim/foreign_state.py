"""The momentum of other Muons in the form that ours has: a sum of gradients, [out, in].

At a constant momentum m an average, buffer = m buffer + (1 - m) gradient, is 1 - m times the sum,
buffer = m buffer + gradient. `docs/muons.md` has what else differs between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quintic.errors import QuinticError
from quintic.optim.muon_checks import check_options, name_of
from quintic.optim.stacks import Group


@dataclass(frozen=True)
class Kind:
    """Says how another Muon keeps its momentum."""

    label: str
    key: str | None
    """In a state dict of PyTorch's form; None: arrays by the names of the parameters."""
    averages: bool
    transposed: bool
    """Kernels are (in, out)."""


KINDS = {
    "torch": Kind("torch.optim.Muon", "momentum_buffer", averages=True, transposed=False),
    "muon-optimizer": Kind("muon-optimizer", "momentum_buffer", averages=True, transposed=False),
    "keras": Kind("keras.optimizers.Muon", None, averages=False, transposed=True),
    "optax": Kind("optax.contrib.muon", None, averages=True, transposed=True),
}
"""Read and run: torch 2.13.0, muon-optimizer 0.1.0, keras 3.15.1, optax 0.2.8."""


ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
"""The moments of Adam, as PyTorch and muon-optimizer call them; both average from zero."""


def momenta_of(
    state: Mapping[str, Any], kind: str, groups: list[Group], momentum: float | None
) -> tuple[dict[Tensor, Tensor], str]:
    """Return the momentum of every parameter that is not frozen, and in words what was converted.

    Raises `QuinticError` where a parameter has none or one of another shape.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise QuinticError(f"Muon: kind is {kind!r} and must be one of {', '.join(KINDS)}")
    of = KINDS[kind]
    if not isinstance(state, Mapping):
        form = "a state dict" if of.key else "a dict of arrays by the names of the parameters"
        raise QuinticError(f"Muon: the state of {of.label} is {state!r:.60} and must be {form}")
    parameters = [(p, group) for group in groups for p in group["params"]]
    given = _from_state_dict(state, of, parameters) if of.key else _by_name(state, groups)
    found, factors, turned = {}, set(), False
    for p, group in parameters:
        name = name_of(p, groups)
        if p not in given:
            if not p.requires_grad:
                continue
            raise QuinticError(
                f"Muon: the state of {of.label} has no momentum for {name}"
                + (" (on several processes each has its own ones)" if of.key else "")
            )
        value, saved_with = given[p]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise QuinticError(
                f"Muon: the momentum of {of.label} for {name} is {value!r:.60} and must be an "
                "array of real numbers"
            )
        if of.transposed and value.ndim == 2 and not group["transposed"]:
            value, turned = value.mT, True
        if value.shape != p.shape:
            raise QuinticError(
                f"Muon: the momentum of {of.label} for {name} has the shape {list(value.shape)} "
                f"and not {list(p.shape)}"
            )
        if of.averages:
            m = next(m for m in (momentum, saved_with, group["momentum"]) if m is not None)
            check_options({"momentum": m})
            factors.add(float(m))
            value = value.double() / (1 - m)
        found[p] = value
    words = f"{len(found)} momentum buffers of {of.label}"
    if of.averages:
        divisors = ", ".join(f"{1 - m:g}" for m in sorted(factors))
        words += f", averages divided by 1 - momentum = {divisors} into sums"
    if turned:
        words += ", (in, out) transposed"
    if not of.key and (extra := [str(n) for n in state if n not in _names(groups)]):
        words += f"; no matrix here is named {', '.join(extra)}, so left out"
    return found, words


def adam_states_of(
    state: Mapping[str, Any], kind: str, groups: list[Group]
) -> tuple[dict[Tensor, dict[str, Tensor]], str]:
    """Return the state of AdamW for the parameters of its groups that another optimizer has beside
    its Muon's, and in words what was taken over or left out, which `momenta_of` has checked.

    Known is that of muon-optimizer's classes with Adam: theirs is AdamW's own, of the same order.
    """
    of = KINDS[kind]
    if not of.key:
        return {}, ""
    saved = [
        state["state"].get(number, {})
        for group in state["param_groups"]
        if not group.get("use_muon", True)
        for number in group["params"]
    ]
    if not any(saved):
        return {}, ""
    own = [p for group in groups for p in group["params"]]
    fit = len(saved) == len(own) and all(map(_is_adam_state_of, own, saved))
    names = zip(
        _names(g for g in state["param_groups"] if not g.get("use_muon", True)),
        _names(groups),
        strict=False,
    )
    if not fit or any(a != b for a, b in names if a is not None and b is not None):
        return {}, (
            f"; the state of Adam for {len(saved)} parameters is left out, since it is not of the "
            f"{len(own)} of AdamW here in their order"
        )
    found = {
        p: {"step": torch.tensor(float(one["step"]))} | {key: one[key] for key in ADAM_MOMENTS}
        for p, one in zip(own, saved, strict=True)
        if one
    }
    return found, f", and the state of Adam for {len(found)} parameters"


def _is_adam_state_of(p: Tensor, state: Mapping[str, Any]) -> bool:
    """Return whether a state is Adam's of a parameter of this shape, or empty."""
    moments = [state.get(name) for name in ADAM_MOMENTS]
    return not state or (
        isinstance(state.get("step"), int)
        and all(isinstance(m, Tensor) and m.shape == p.shape for m in moments)
    )


def _by_name(
    arrays: Mapping[str, Any], groups: list[Group]
) -> dict[Tensor, tuple[Tensor, float | None]]:
    found: dict[Tensor, tuple[Tensor, float | None]] = {}
    names = Counter(name for name in _names(groups) if name is not None)
    if twice := [name for name, count in names.items() if count > 1]:
        raise QuinticError(f"Muon: {twice[0]} is the name of {names[twice[0]]} parameters here")
    for group in groups:
        for p in group["params"]:
            if (array := arrays.get(name_of(p, groups))) is not None:
                if not isinstance(array, Tensor):
                    with suppress(TypeError, ValueError):  # what stays is no array: refused there
                        # Doubles hold every number of the precisions that PyTorch does not know.
                        array = torch.from_numpy(np.array(array, dtype=np.float64))
                found[p] = array, None
    return found


def _names(groups: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """Return the names of the parameters of groups, None for those of a group without."""
    return [n for g in groups for n in g.get("param_names") or [None] * len(g["params"])]


def _from_state_dict(
    state: Mapping[str, Any], of: Kind, parameters: list[tuple[Tensor, Group]]
) -> dict[Tensor, tuple[Tensor, float | None]]:
    try:
        # Beside AdamW in one optimizer, the groups of Muon are marked.
        groups = [group for group in state["param_groups"] if group.get("use_muon", True)]
        saved = [
            (state["state"].get(number, {}).get(of.key), group.get("momentum"))
            for group in groups
            for number in group["params"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise QuinticError(f"Muon: this is no state dict of {of.label}: {error!r}") from error
    if len(saved) != len(parameters):
        raise QuinticError(
            f"Muon: the state of {of.label} has {len(saved)} matrices and this optimizer has "
            f"{len(parameters)}"
        )
    own_groups = {id(group): group for _, group in parameters}.values()
    for name, now in zip(_names(groups), _names(own_groups), strict=True):
        if name is not None and now is not None and name != now:
            raise QuinticError(f"Muon: the other state dict has {name} in the place of {now}")
    own = [p for p, _ in parameters]
    in_order = all(
        not isinstance(b, Tensor) or b.shape == p.shape
        for (b, _), p in zip(saved, own, strict=True)
    )
    if not in_order and of.label == "muon-optimizer":
        # Its classes for several processes sort what they are given.
        own.sort(key=lambda p: p.size(), reverse=True)
    return {
        p: (buffer, momentum)
        for p, (buffer, momentum) in zip(own, saved, strict=True)
        if buffer is not None
    }

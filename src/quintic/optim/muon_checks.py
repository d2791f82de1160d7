"""What Muon refuses, in one line that names the parameter or the value, before anything changes."""

from __future__ import annotations

import difflib
import math
import numbers
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from quintic.config import MuonConfig
from quintic.errors import QuinticError
from quintic.optim.dtensor import parts_of
from quintic.optim.newton_schulz import COEFFICIENTS
from quintic.optim.stacks import Group, group_matrices, whole_shapes

SCALES: tuple[str, ...] = get_args(get_type_hints(MuonConfig)["scale"])
"""Those of `optim.muon.scale`, which is the same option."""

MEMBERS = ("params", "param_names", "names", "shapes", "optimizer")
"""Keys of a group that are no options."""

FLAGS = ("nesterov", "cautious", "normuon", "flatten", "transposed")
NONFINITE = ("propagate", "raise", "skip")


def name_of(parameter: Tensor, groups: Iterable[Group]) -> str:
    """Return the name of a parameter, or else its number in a state dict and its shape."""
    number = 0
    for group in groups:
        names = group.get("param_names") or group.get("names")
        for place, p in enumerate(group["params"]):
            if p is parameter:
                shape = "" if is_lazy(p) else f" {list(p.shape)}"
                return str(names[place]) if names else f"parameter {number}{shape}"
            number += 1
    raise KeyError("the optimizer does not have this parameter")


def check_options(group: Mapping[str, Any], *, whose: str = "Muon") -> None:
    """Raise `QuinticError` for an option that a group has and whose value cannot be used.

    `whose` the options are, Muon or AdamW, is said.
    """
    for name, (allowed, rule) in _rules().items():
        if name in group and not allowed(group[name]):
            raise QuinticError(f"{whose}: {name} is {group[name]!r} and must be {rule}")


@cache
def _rules() -> dict[str, tuple[Callable[[Any], bool], str]]:
    """Return for every option of Muon and AdamW that has one a rule, and the same in words."""
    dtypes = "a floating-point torch.dtype of 16 bits or more, or None"
    return {
        "lr": (_is_rate, "0 or more, a number or a tensor of one element"),
        "momentum": (_is_beta, "at least 0 and below 1"),
        "weight_decay": (_is_rate, "0 or more"),
        "beta2": (_is_beta, "at least 0 and below 1"),
        "betas": (_are_betas, "two numbers, each at least 0 and below 1"),
        "eps": (_is_rate, "0 or more"),
        "ns_steps": (_is_count, "a whole number, 1 or more"),
        "scale": (_is_one_of(SCALES), f"one of {', '.join(SCALES)}"),
        "ns_coefficients": (_is_one_of(COEFFICIENTS), f"one of {', '.join(COEFFICIENTS)}"),
        "ns_dtype": (_is_dtype, dtypes),
        "momentum_dtype": (_is_dtype, dtypes),
        **dict.fromkeys(FLAGS, (lambda flag: isinstance(flag, bool), "True or False")),
        "split": (_is_split, "a number of parts, a list of their rows, or None"),
    }


ALIASES = {"wd": "weight_decay", "decay": "weight_decay", "learning_rate": "lr", "mu": "momentum"}
"""What other optimizers call options of these."""

CUSTOM = {"name"}
"""Keys of a group that are near an option's name and are others'."""


def check_names(group: Group, options: Collection[str], *, whose: str = "Muon") -> None:
    """Raise `QuinticError` for a key of a group that is one of these options misspelt.

    Other keys are kept, as PyTorch keeps them: schedulers and people have some of their own there.
    """
    for key in group.keys() - {*options, *_rules(), *MEMBERS, *CUSTOM}:
        # Those of schedulers, such as max_momentum, contain an option's name and are longer.
        alike = [name for name in options if abs(len(name) - len(str(key))) <= 2]
        near = difflib.get_close_matches(str(key).lower(), alike, n=1, cutoff=0.75)
        if option := ALIASES.get(key) or next(iter(near), None):
            raise QuinticError(
                f"{whose}: a group has {key}={group[key]!r:.60}, which is no option: did you mean "
                f"{option}?"
            )


FOREIGN = {
    "use_muon": (True, "give the group to MuonWithAdamW with optimizer=adamw"),
    "maximize": (False, "give it negative gradients"),
    "adjust_lr_fn": (None, "scale says it here: original is aspect, match_rms_adamw is rms"),
}
"""Options of other Muons' groups: the value that changes nothing here, and the way out else."""


def check_foreign_options(group: Group) -> None:
    """Raise `QuinticError` for an option of another Muon that this one would not follow."""
    for key, (neutral, hint) in FOREIGN.items():
        if key in group and group[key] != neutral:
            raise QuinticError(
                f"Muon: a group has {key}={group[key]!r:.60}, which Muon does not follow: {hint}"
            )


def check_complete(group: Group, options: Iterable[str], *, whose: str = "Muon") -> None:
    """Raise `QuinticError` where a group has lost one of these options since it was added."""
    # PyTorch adds differentiable to the defaults of any optimizer that has loaded a state.
    here = group.keys() | {"differentiable"}
    if missing := [name for name in options if name not in here]:
        raise QuinticError(
            f"{whose}: a group has no {', '.join(missing)} and must keep all options"
        )


DTYPES = ("ns_dtype", "momentum_dtype")
"""Options that are a `torch.dtype`."""


def dtypes_named(group: Mapping[str, Any]) -> Group:
    """Return a group with the names of dtypes, such as torch.float32, in the place of these."""
    dtypes = {key: group[key] for key in DTYPES if isinstance(group.get(key), torch.dtype)}
    return {**group, **{key: str(dtype) for key, dtype in dtypes.items()}}


def dtypes_read(group: Mapping[str, Any]) -> Group:
    """Return a group as `dtypes_named` was given it; what is no dtype's name stays as it is."""
    names = {key: group[key] for key in DTYPES if isinstance(group.get(key), str)}
    found = {key: getattr(torch, name.removeprefix("torch."), name) for key, name in names.items()}
    return {**group, **found}


def check_members(group: Group, others: list[Group], *, whose: str = "Muon") -> None:
    """Raise `QuinticError` for a group without parameters, and for one that is given twice or whose
    numbers have eight bits."""
    if not group["params"]:
        raise QuinticError(f"{whose}: a parameter group is empty (was its generator used before?)")
    groups = [*others, group]
    for p in group["params"]:
        if is_lazy(p):
            raise QuinticError(
                f"{whose}: {name_of(p, groups)} has no shape yet: call its module once before"
            )
        if p.is_floating_point() and p.dtype.itemsize < 2:
            raise QuinticError(
                f"{whose}: {name_of(p, groups)} is {p.dtype}, which no step can be computed in: "
                "give its master weight of 16 bits or more"
            )
    count = Counter(id(p) for g in groups for p in g["params"])
    for p in group["params"]:
        if count[id(p)] > 1:
            raise QuinticError(f"{whose}: {name_of(p, groups)} is given twice")


def check_matrices(group: Group, others: list[Group]) -> None:
    """Raise `QuinticError` for a parameter of a group that Muon cannot update, by its name."""
    groups = [*others, group]
    for p, shape in zip(group["params"], whole_shapes(group), strict=True):
        if reason := _not_real_and_dense(p):
            raise QuinticError(f"Muon: {name_of(p, groups)} is {reason}")
        check_shape_of(p, shape, group, groups)


def check_shape_of(
    p: Tensor,
    shape: tuple[int, ...],
    group: Group,
    groups: list[Group],
    *,
    lying: bool = True,
) -> None:
    """Raise `QuinticError` where a parameter of this whole shape is no matrix, or none that the
    options of its group can cut; with `lying`, also where a DTensor's placements leave none whole.
    """
    try:
        cut = group_matrices(shape, group)
        if cut.transposed and group["normuon"]:
            raise ValueError("normuon=True has no form for transposed=True")
        if lying and isinstance(p, DTensor):
            parts_of(p, cut)
    except ValueError as error:
        name = name_of(p, groups)
        raise QuinticError(f"Muon: {name} has the shape {list(shape)}: {error}") from None


def check_gradient(gradient: Tensor, p: Tensor, groups: list[Group]) -> None:
    """Raise `QuinticError` for a gradient that Muon cannot use."""
    if reason := _not_real_and_dense(gradient):
        raise QuinticError(f"Muon: the gradient of {name_of(p, groups)} is {reason}")


def check_momentum(state: dict[str, Tensor], p: Tensor, groups: list[Group]) -> None:
    """Raise `QuinticError` where a parameter's data was replaced by that of another shape since its
    last step, to which its momentum would be added by broadcasting or not at all."""
    if "momentum" in state and state["momentum"].shape != p.shape:
        raise QuinticError(
            f"Muon: {name_of(p, groups)} has the shape {list(p.shape)} now, and its momentum "
            f"{list(state['momentum'].shape)}: make a new optimizer, or forget its state with "
            "optimizer.state.pop(parameter)"
        )


def check_dense_gradient(gradient: Tensor, p: Tensor, groups: list[Group]) -> None:
    """Raise `QuinticError` for a gradient that AdamW cannot use."""
    if reason := _not_dense(gradient):
        raise QuinticError(
            f"AdamW: the gradient of {name_of(p, groups)} is {reason}: an embedding with "
            "sparse=False has one that is"
        )


def _not_dense(tensor: Tensor) -> str | None:
    return None if tensor.layout is torch.strided else f"{tensor.layout} and must be dense"


def _not_real_and_dense(tensor: Tensor) -> str | None:
    if reason := _not_dense(tensor):
        return reason
    return None if tensor.is_floating_point() else f"{tensor.dtype} and must be of real numbers"


def check_groups(state_dict: Mapping[str, Any], groups: list[Group]) -> None:
    """Raise `QuinticError` where a state dict has not a state dict's form, not as many parameters
    in as many groups, or the state of none of them."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise QuinticError("Muon: a state dict has the keys state and param_groups")
    state, saved_groups = state_dict["state"], state_dict["param_groups"]
    for name, value in (("state", state), *_entries("state", state)):
        if not isinstance(value, Mapping):
            raise QuinticError(f"Muon: the state dict's {name} is {value!r:.60} and must be a dict")
    if not isinstance(saved_groups, list | tuple):
        raise QuinticError(
            f"Muon: the state dict's param_groups is {saved_groups!r:.60} and must be a list"
        )
    for number, group in enumerate(saved_groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list | tuple):
            raise QuinticError(
                f"Muon: the state dict's group {number} is {group!r:.60} and must be a dict with "
                "a list 'params'"
            )
    saved, own = ([len(g["params"]) for g in s] for s in (saved_groups, groups))
    if saved != own:
        raise QuinticError(
            f"Muon: the state dict has groups of {saved} parameters, and this optimizer of {own}"
        )
    keys = {key for group in saved_groups for key in group["params"]}
    if strange := [key for key in state if key not in keys]:
        raise QuinticError(
            f"Muon: the state dict has a state for {strange[0]!r:.60}, which its groups do not "
            "have as a parameter"
        )


def _entries(name: str, value: Any) -> list[tuple[str, Any]]:
    return [(f"{name} of {k}", v) for k, v in value.items()] if isinstance(value, Mapping) else []


def check_state_dict(state_dict: Mapping[str, Any], groups: list[Group]) -> None:
    """Raise `QuinticError` where a state dict that has passed `check_groups` is not one of Muon's
    over these parameters."""
    for saved, group in zip(state_dict["param_groups"], groups, strict=True):
        if not {"lr", "momentum", "nesterov", "scale"} <= saved.keys():
            raise QuinticError(
                "Muon: the state dict is another optimizer's, whose groups have "
                f"{', '.join(key for key in saved if key != 'params')}: see Muon.load_foreign"
            )
        check_options({**group, **saved})
        names, own = saved.get("param_names"), group.get("param_names")
        if names and own and names != own and sorted(names) == sorted(own):
            first, now = next(pair for pair in zip(names, own, strict=True) if len(set(pair)) > 1)
            raise QuinticError(f"Muon: the state dict has {first} in the place of {now}")
        loaded = {**group, **saved, "params": group["params"]}
        for p, shape in zip(group["params"], whole_shapes(group), strict=True):
            check_shape_of(p, shape, loaded, groups)
        for key, p in zip(saved["params"], group["params"], strict=True):
            _check_state(name_of(p, groups), p, loaded, state_dict["state"].get(key, {}))


def second_moment_shape(p: Tensor, group: Group) -> tuple[int, ...]:
    """Return the shape of NorMuon's second moment of a parameter, one number for each row."""
    rows = p.shape[:1] if group["flatten"] else p.shape[:-1]
    return (*rows, 1)


def _check_state(name: str, p: Tensor, group: Group, state: Mapping[str, Any]) -> None:
    if not state:
        return
    if "momentum" not in state:
        raise QuinticError(
            f"Muon: the state of {name} has {', '.join(map(str, state))} and not momentum: it is "
            "another optimizer's; see Muon.load_foreign"
        )
    check_tensor(name, p, state, "momentum")
    check_tensor(name, p, state, "second_moment", second_moment_shape(p, group))


def check_tensor(
    name: str,
    p: Tensor,
    state: Mapping[str, Any],
    key: str,
    shape: tuple[int, ...] | None = None,
    whose: str = "Muon",
) -> None:
    """Raise `QuinticError` where what a state has of a parameter under `key`, if anything, is no
    tensor of real numbers of this shape, by default the parameter's, that lies as that does; the
    message begins with `whose`, the optimizer that the parameter is updated by."""
    if key not in state:
        return
    value, shape = state[key], tuple(p.shape) if shape is None else shape
    if not isinstance(value, Tensor):
        raise QuinticError(f"{whose}: the {key} of {name} is {value!r:.60}, no tensor")
    if isinstance(value, DTensor) != isinstance(p, DTensor):
        raise QuinticError(
            f"{whose}: {name} and its {key} must both be DTensors or neither; "
            "torch.distributed.checkpoint.state_dict converts between them"
        )
    if tuple(value.shape) != shape:
        raise QuinticError(
            f"{whose}: the {key} of {name} has the shape {list(value.shape)} and must have "
            f"{list(shape)}"
        )
    if not value.is_floating_point():
        raise QuinticError(
            f"{whose}: the {key} of {name} is {value.dtype} and must be of real numbers"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_one_of(names: Collection[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names


def _is_below(value: Any, bound: float) -> bool:
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            return False
        # One on a GPU is not waited for.
        return value.device.type != "cpu" or 0 <= value.item() < bound
    return _is_number(value) and 0 <= float(value) < bound


def _is_rate(value: Any) -> bool:
    return _is_below(value, math.inf)


def _is_beta(value: Any) -> bool:
    return _is_below(value, 1)


def _are_betas(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_beta, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_split(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_count, value))
    return value is None or _is_count(value)


def _is_dtype(value: Any) -> bool:
    return value is None or (
        isinstance(value, torch.dtype) and value.is_floating_point and value.itemsize >= 2
    )

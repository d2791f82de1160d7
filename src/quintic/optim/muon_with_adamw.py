"""One optimizer for a whole model: Muon on its hidden matrices and AdamW on everything else.

Trainers such as those of transformers and Lightning want one. Its groups come from
`quintic.param_groups`, or have the key `optimizer`, muon or adamw, from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from quintic.errors import QuinticError
from quintic.optim.dtensor import like
from quintic.optim.foreign_state import ADAM_MOMENTS, adam_states_of
from quintic.optim.muon import Muon
from quintic.optim.muon_checks import (
    check_complete,
    check_dense_gradient,
    check_members,
    check_names,
    check_options,
    check_state_dict,
    check_tensor,
    name_of,
)
from quintic.optim.stacks import to_update

ADAMW_STATE = ("step", *ADAM_MOMENTS)
"""What a parameter's state has after a step of AdamW."""

ADAMW_TENSORS = (*ADAM_MOMENTS, "max_exp_avg_sq")
"""What a parameter's state may have of the parameter's shape; the last is that of `amsgrad`."""


class MuonWithAdamW(Muon):
    """Updates the groups that say `optimizer` muon as `Muon`, and those that say adamw as
    `torch.optim.AdamW`.

    `lr`, `betas`, `eps` and `weight_decay` are for groups that do not have their own; all other
    options are Muon's. `nonfinite` is about the gradients of all groups. `state_dict`, schedulers
    and whatever else works on an optimizer see one. Raises `QuinticError`, a `ValueError`, where a
    group does not say whose it is.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **muon: Any,
    ) -> None:
        own: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        check_options(own, whose="AdamW")
        # It has no parameters of its own, but those of a step while that lasts.
        self._adamw = torch.optim.AdamW([torch.zeros(1)], **own)
        self._adamw.param_groups = []
        if of_groups := [name for name in muon if name in self._adamw.defaults]:
            raise QuinticError(
                f"MuonWithAdamW: {', '.join(of_groups)} is AdamW's alone: give it to the groups "
                "that say optimizer=adamw"
            )
        super().__init__(params, lr, weight_decay=weight_decay, **muon)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_adamw": self._adamw}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with the key `optimizer`, muon or adamw."""
        optimizer = isinstance(param_group, dict) and param_group.get("optimizer")
        if optimizer not in ("muon", "adamw"):
            raise QuinticError(
                "MuonWithAdamW: each group says optimizer=muon or optimizer=adamw; "
                "quintic.param_groups(model, ...) makes them"
            )
        muons = self.defaults
        if optimizer == "adamw":
            self.defaults = self._adamw.defaults
        try:
            super().add_param_group(param_group)
        finally:
            self.defaults = muons

    def _check_new_group(self, group: dict[str, Any], others: list[dict[str, Any]]) -> None:
        if group["optimizer"] == "muon":
            super()._check_new_group(group, others)
        else:
            check_names(group, self._adamw.defaults, whose="AdamW")
            check_options(group, whose="AdamW")
            check_members(group, others, whose="AdamW")

    def load_foreign(
        self, state: Mapping[str, Any], kind: str, *, momentum: float | None = None
    ) -> str:
        """Take over the momentum of another Muon as `Muon.load_foreign` does, and of Keller
        Jordan's classes with Adam its state too; return in words what was converted."""
        groups = [group for group in self.param_groups if group["optimizer"] == "adamw"]
        momenta = super().load_foreign(state, kind, momentum=momentum)
        found, words = adam_states_of(state, kind, groups)
        for p, one in found.items():
            moments = {
                key: like(one[key].to(p.device, p.dtype, copy=True), p) for key in ADAM_MOMENTS
            }
            self.state[p] = {"step": one["step"], **moments}
        return momenta + words

    def _orthogonalized(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["optimizer"] == "muon"]

    def _check_gradients(self) -> None:
        kinds = [group.get("optimizer") for group in self.param_groups]
        if strange := [kind for kind in kinds if kind not in ("muon", "adamw")]:
            raise QuinticError(
                f"MuonWithAdamW: a group says optimizer={strange[0]!r:.60} and must "
                "say muon or adamw"
            )
        super()._check_gradients()
        for group in self.param_groups:
            if group["optimizer"] == "adamw":
                if not torch.compiler.is_compiling():
                    check_complete(group, self._adamw.defaults, whose="AdamW")
                    check_options(group, whose="AdamW")
                    for p, _, _ in to_update(group):
                        self._check_adamw_state(p, group, self.state.get(p, {}))
                for p, gradient, _ in to_update(group):
                    check_dense_gradient(gradient, p, self.param_groups)

    def _check_adamw_state(
        self, p: torch.Tensor, group: Mapping[str, Any], state: Mapping[str, Any]
    ) -> None:
        """Raise `QuinticError` where a state lacks what AdamW needs under a group's options."""
        needed = [*ADAMW_STATE, *(["max_exp_avg_sq"] if group.get("amsgrad") else [])]
        if state and any(key not in state for key in needed):
            raise QuinticError(
                f"MuonWithAdamW: the state of {name_of(p, self.param_groups)} has "
                f"{', '.join(map(str, state))} and not {', '.join(needed)}"
            )

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, own = state_dict["param_groups"], self.param_groups
        if [g.get("optimizer") for g in saved] != [g["optimizer"] for g in own]:
            raise QuinticError("MuonWithAdamW: the state dict's groups are of other optimizers")
        muons = [group for group in saved if group["optimizer"] == "muon"]
        check_state_dict({**state_dict, "param_groups": muons}, self._orthogonalized())
        for saved_group, group in zip(saved, own, strict=True):
            if group["optimizer"] == "adamw":
                check_options(saved_group, whose="AdamW")
                for key, p in zip(saved_group["params"], group["params"], strict=True):
                    state = state_dict["state"].get(key, {})
                    self._check_adamw_state(p, {**group, **saved_group}, state)
                    for tensor in ADAMW_TENSORS:
                        check_tensor(name_of(p, own), p, state, tensor, whose="AdamW")
                    if state and not _is_step(state["step"]):
                        raise QuinticError(
                            f"MuonWithAdamW: the step of {name_of(p, own)} is "
                            f"{state['step']!r:.60} and must be a number"
                        )

    def _update_others(self) -> None:
        adamw = self._adamw
        adamw.param_groups = []
        for group in self.param_groups:
            if group["optimizer"] == "adamw":
                params = [p for p, _, _ in to_update(group)]  # it would move frozen ones
                adamw.param_groups.append({**group, "params": params})
                for p in params:
                    state = self.state.get(p, {})
                    for key in ADAMW_TENSORS:  # the precision of the weights may have been changed
                        if key in state and state[key].dtype != p.dtype:
                            state[key] = state[key].to(p.dtype)
        adamw.state = self.state
        try:
            # As it is without hooks: those for all optimizers are called for this one.
            type(adamw).step.__wrapped__(adamw)  # type: ignore[attr-defined]
        finally:
            adamw.param_groups, adamw.state = [], type(self.state)(dict)


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    )

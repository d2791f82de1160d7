"""From accumulated gradients to updated weights: what the loop calls, and how one process does it.

Before each backward pass the loop says by `set_requires_gradient_sync` if it is the last of the
step, and after that one it calls `step`. What happens in between, and if other processes have a
part in it (`zero1.py`, `fsdp.py`), it does not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from quintic.distributed.world import World
from quintic.errors import QuinticError
from quintic.optim.param_groups import ParamSpec

BuildOptimizers = Callable[
    [Mapping[str, nn.Parameter], Sequence[ParamSpec]], list[torch.optim.Optimizer]
]
"""Optimizers over the given parameters, by name, with the settings of their specs."""

CLIP_EPS = 1e-6
"""Added to the norm that is divided by, as in `torch.nn.utils.clip_grad_norm_`."""


class Stepper(ABC):
    """Applies the optimizers to the gradient that the backward passes accumulated."""

    optimizers: list[torch.optim.Optimizer]

    @abstractmethod
    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None:
        """Say if the next backward pass is the last of the step, as FSDP2's method of this name."""

    @abstractmethod
    def step(self, clip_norm: float | None) -> Tensor | None:
        """Update all weights and drop the gradients; return the gradient's norm where clipping
        needed it."""


def require_gradients(missing: Iterable[str]) -> None:
    """Raise `QuinticError` with the names of parameters without a gradient, if there are any.

    Optimizers would leave them as they are without a word.
    """
    if names := ", ".join(missing):
        raise QuinticError(
            f"the backward pass gave no gradient to {names}: use it in the model's forward pass, "
            "or take it out of the model"
        )


class LocalStepper(Stepper):
    """Updates all parameters on one process.

    With `keep_gradients` the gradients stay where they are in memory and are set to zero: what a
    CUDA graph computed is overwritten by its next replay, unless it was added to something.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        specs: Sequence[ParamSpec],
        build: BuildOptimizers,
        *,
        keep_gradients: bool = False,
    ) -> None:
        self.optimizers = build(parameters, specs)
        self._parameters = dict(parameters)
        self._keep_gradients = keep_gradients
        if keep_gradients:
            for p in parameters.values():
                p.grad = torch.zeros_like(p)

    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None:
        """Do nothing: gradients accumulate in `.grad` and stay there."""

    def step(self, clip_norm: float | None) -> Tensor | None:
        """Clip and update; drop the gradients."""
        require_gradients(name for name, p in self._parameters.items() if p.grad is None)
        norm = None
        if clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=not self._keep_gradients)
        return norm


def clip_shards(gradients: list[Tensor], clip_norm: float, like: Tensor, world: World) -> Tensor:
    """Clip gradients whose other parts are on other ranks; return the norm over all of them."""
    total = like.new_zeros(())
    if gradients:
        total = total + torch.stack(torch._foreach_norm(gradients)).square().sum()
    norm = world.all_reduce(total).sqrt()
    if gradients:
        torch._foreach_mul_(gradients, (clip_norm / (norm + CLIP_EPS)).clamp(max=1.0))
    return norm

"""Weights in the compute precision, cast once a step instead of once a micro-batch.

Weights are float32 masters, and every `Linear` casts its own when it is used. Over the
micro-batches of a step that gives the same numbers again and again. Here each keeps its cast in a
buffer, and the loop renews them all at once before a step. Gradients still arrive at the masters,
one micro-batch after another in the masters' precision, so that losses are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor


class _Cast(torch.autograd.Function):
    """A cast that is there already, with the gradient that casting has."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return cast.view_as(cast)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        return grad.to(ctx.dtype), None


def use_cached(weight: Tensor, cast: Tensor) -> Tensor:
    """`cast`, which must be `weight.to(cast.dtype)`; the gradient goes to `weight`."""
    used: Tensor = _Cast.apply(weight, cast)
    return used


class HasWeightCache(Protocol):
    """A module that computes with `cast` where it has one."""

    weight: Tensor
    cast: Tensor | None


class WeightCache:
    """The casts of several modules, kept by them and renewed together.

    They are neither parameters nor in a checkpoint.
    """

    def __init__(self, modules: Iterable[HasWeightCache], dtype: torch.dtype) -> None:
        self._weights, self._casts = [], []
        for module in modules:
            module.cast = module.weight.detach().to(dtype)
            self._weights.append(module.weight.detach())
            self._casts.append(module.cast)

    def renew(self) -> None:
        """Cast all weights again: before every step and every validation."""
        torch._foreach_copy_(self._casts, self._weights)

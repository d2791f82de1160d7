"""A linear layer with float32 master weights, and their cache in the compute precision.

Every `Linear` casts its weight to the precision of its input where it is used. Over the
micro-batches of a step that gives the same numbers again and again, so `WeightCache` keeps them in
a buffer of each layer and renews all at once before a step. Gradients still arrive at the masters,
one micro-batch after another in the masters' precision, so that losses are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` with float32 master weights, computed in the precision of its input."""

    cached_weight: Tensor | None
    """The weight in that precision, where a `WeightCache` keeps it."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("cached_weight", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.cached_weight is None:
            return F.linear(x, self.weight.to(x.dtype), bias)
        return F.linear(x, _Cached.apply(self.weight, self.cached_weight), bias)


class _Cached(torch.autograd.Function):
    """Stands for `weight.to(cached.dtype)`, which is there already, with its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, cached: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return cached.view_as(cached)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        return grad.to(ctx.dtype), None


class WeightCache:
    """The cached weights of several layers, kept by them and renewed together.

    They are neither parameters nor in a checkpoint.
    """

    def __init__(self, layers: Iterable[Linear], dtype: torch.dtype) -> None:
        self._weights: list[Tensor] = []
        self._cached: list[Tensor] = []
        for layer in layers:
            layer.cached_weight = layer.weight.detach().to(dtype)
            self._weights.append(layer.weight.detach())
            self._cached.append(layer.cached_weight)

    def renew(self) -> None:
        """Cast all weights again: before every step and every validation."""
        torch._foreach_copy_(self._cached, self._weights)

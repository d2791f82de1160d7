"""Bytes of optimizer state, counted from the tensors that hold it."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes of state that this process holds for each parameter, by name.

    Counted from shapes and types, so that optimizers of a model on the meta device count like
    those of a real one. The gradient and what a step needs for its duration are no state.
    """
    return {
        name: sum(t.numel() * t.element_size() for t in optimizer.state[p].values())
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    }

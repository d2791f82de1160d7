"""Cautious weight decay: only where it goes the way of the update.

Decay pulls every weight towards zero, also where the optimizer pushes it away. Masked, it never
works against the update: a weight shrinks further where it shrinks anyway, and else is left alone.
Source: Chen et al., https://arxiv.org/abs/2510.12402; the speedrun has it since its record of
2025-11-10 (https://github.com/KellerJordan/modded-nanogpt).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decay_cautiously(
    weights: Sequence[Tensor], updates: Sequence[Tensor], *, factor: float
) -> None:
    """weight = weight - factor * weight where update * weight >= 0, in place.

    The update is what will be subtracted: of the weight's own sign it makes the weight smaller.
    Element by element, so the tensors may be rows of larger ones.
    """
    agrees = [(u * w >= 0).to(w.dtype) for w, u in zip(weights, updates, strict=True)]
    decayed = torch._foreach_mul(agrees, list(weights))
    torch._foreach_add_(list(weights), decayed, alpha=-factor)

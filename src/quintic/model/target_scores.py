"""How likely targets are, out of the head's input, without the logits of all tokens in memory.

The head computes a part of the vocabulary at a time and keeps of it the largest logit and the sum
of exponentials relative to it, which are corrected when a later part has a larger one (Milakov and
Gimelshein 2018, https://arxiv.org/abs/1805.02867). The loss has its own, which also has a gradient
(loss.py); here several targets may stand behind one token.

Shapes: N tokens that predict, P targets, D model width, V vocabulary, C part of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quintic.model.head import logits_of

VOCABULARY_PART = {"cpu": 512, "cuda": 65_536, "mps": 65_536}
"""Columns of logits at a time: on a CPU they should stay in the cache."""


class TargetScores(NamedTuple):
    """What a model says about targets."""

    nats_P: Tensor
    """The log-probability of each, float32 (float64 for float64)."""
    likeliest_P: Tensor
    """True where no token is likelier."""


def target_scores(
    x_ND: Tensor, head_VD: Tensor, behind_P: Tensor, target_P: Tensor, softcap: float | None
) -> TargetScores:
    """Return the scores of the targets, each behind the token whose row of x is `behind_P`."""
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    largest_N = x_ND.new_full((len(x_ND),), -torch.inf, dtype=dtype)
    sum_N, logit_P = torch.zeros_like(largest_N), largest_N.new_empty(len(target_P))
    # Targets in the order of the vocabulary, so that each part has a slice of them.
    sorted_P, order_P = target_P.sort()
    starts = range(0, len(head_VD), VOCABULARY_PART[x_ND.device.type])
    ends = torch.tensor([start + starts.step for start in starts], device=x_ND.device)
    first = 0
    for start, end in zip(starts, torch.searchsorted(sorted_P, ends).tolist(), strict=True):
        logits_NC = logits_of(x_ND @ head_VD[start : start + starts.step].T, softcap)
        own = order_P[first:end]
        logit_P[own] = logits_NC[behind_P[own], target_P[own] - start]
        before_N, largest_N = largest_N, torch.maximum(largest_N, logits_NC.amax(dim=1))
        sum_N *= (before_N - largest_N).exp()
        sum_N += logits_NC.sub_(largest_N[:, None]).exp_().sum(dim=1)
        first = end
    nats_P = logit_P - (largest_N + sum_N.log())[behind_P]
    return TargetScores(nats_P, logit_P >= largest_N[behind_P])

"""The loss on a CPU a chunk of logits at a time that stays in the cache, for
`train.cpu_kernels fused`.

Shapes: N tokens, C of them in a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**18
"""Logits of one chunk: 1 MiB in float32, half of a core's second cache or less."""


def loss_and_gradients(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean cross-entropy and its gradients by x and the weight, as
    `quintic.model.loss.loss_and_gradients` has them, to rounding.

    With e = exp(z - max z) and s its sum, the gradient by a token's logits z is e - s one_hot,
    divided by s N. What it is divided by is a number of each row, so it is left to the rows of x
    and of its gradient, which are shorter than those of the logits.
    """
    N, V = len(x_ND), len(weight_VD)
    size = max(1, CHUNK_ELEMENTS // V)
    room_CV = x_ND.new_empty(min(size, N), V)
    slope_CV = torch.empty_like(room_CV) if softcap is not None else None
    grad_x_ND, grad_weight_VD = torch.empty_like(x_ND), torch.empty_like(weight_VD)
    losses = []
    for start in range(0, N, size):
        x_CD, target_C1 = x_ND[start : start + size], targets_N[start : start + size, None]
        z_CV, grad_x_CD = room_CV[: len(x_CD)], grad_x_ND[start : start + size]
        torch.mm(x_CD, weight_VD.T, out=z_CV)
        if softcap is not None and slope_CV is not None:
            z_CV.div_(softcap).tanh_()
            slope = torch.mul(z_CV, z_CV, out=slope_CV[: len(x_CD)]).neg_().add_(1)
            z_CV.mul_(softcap)
        max_C1 = z_CV.amax(-1, keepdim=True)
        target_z_C1 = z_CV.gather(1, target_C1)
        z_CV.sub_(max_C1).exp_()
        sum_C1 = z_CV.sum(-1, keepdim=True)
        losses.append((sum_C1.log() + max_C1 - target_z_C1).sum())
        z_CV.scatter_add_(1, target_C1, -sum_C1)
        if slope_CV is not None:
            z_CV.mul_(slope)
        factor_C1 = 1 / (sum_C1 * N)
        torch.mm(z_CV, weight_VD, out=grad_x_CD)
        grad_x_CD.mul_(factor_C1)
        beta = 0.0 if start == 0 else 1.0
        torch.addmm(grad_weight_VD, z_CV.T, x_CD * factor_C1, beta=beta, out=grad_weight_VD)
    return torch.stack(losses).sum() / N, grad_x_ND, grad_weight_VD

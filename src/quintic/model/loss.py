"""Next-token cross-entropy: the head's matrix product and the loss in one function.

All functions have one signature and give the mean loss in nats per token, computed in float32
(float64 for float64 input). `plain_cross_entropy` is the reference, and keeps the [tokens,
vocabulary] matrix of logits, its float32 copy and its gradient alive. `chunked_cross_entropy`
never holds more than one chunk of it.

With a softcap c, logits z become c tanh(z / c): nearly themselves while small, and never beyond
-c and c. Source: Gemma 2 (https://arxiv.org/abs/2408.00118), with c = 30; the speedrun took it on
2024-11-06, and 15 on 2025-01-04.

Shapes: N tokens, M targets of each, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quintic.model.fused_loss import fused_cross_entropy, operands
from quintic.model.head import logits_of
from quintic.model.multi_token import NO_TOKEN, target_weights


class CrossEntropy(Protocol):
    """Mean cross-entropy of `softmax(x @ weight.T)` against targets [N], as a scalar in nats.

    With `weights_M` the targets are [N, M], as `quintic.model.multi_token` makes them, and it is the sum
    of M cross-entropies times these weights; each is added up over the targets that there are and
    divided by N, as a mean over whole sequences.
    """

    def __call__(
        self,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets: Tensor,
        softcap: float | None = None,
        weights_M: Tensor | None = None,
    ) -> Tensor: ...


CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28, "mps": 2**26}
"""Logits of one chunk. On a CPU a chunk should stay in the cache; on a GPU it should be large
enough to fill the device, and is still a fraction of GPT-2's [65536, 50304]."""


def plain_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    weights_M: Tensor | None = None,
) -> Tensor:
    """The definition: `CrossEntropy`."""
    logits_NV = logits_of(F.linear(x_ND, weight_VD.to(x_ND.dtype)), softcap)
    if weights_M is None:
        return F.cross_entropy(logits_NV, targets)
    losses = [
        F.cross_entropy(logits_NV, targets_N, ignore_index=NO_TOKEN, reduction="sum")
        for targets_N in targets.unbind(-1)
    ]
    return (torch.stack(losses) * weights_M).sum() / len(targets)


def chunked_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    weights_M: Tensor | None = None,
) -> Tensor:
    """`plain_cross_entropy`, a chunk of tokens at a time, with the gradient taken on the way.

    The gradient of the logits is `softmax - one_hot`, known as soon as the softmax is, so the
    forward pass multiplies it out at once and the backward pass has nothing to recompute. This is
    the idea of Liger Kernel's fused linear cross-entropy (https://arxiv.org/abs/2410.10989).
    A softcap multiplies it by its derivative, 1 - tanh(z / c)^2. One softmax serves all targets.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(
        *operands(x_ND, weight_VD, targets, weights_M), softcap, weights_M
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_NM: Tensor,
        softcap: float | None,
        weights_M: Tensor | None,
    ) -> Tensor:
        tokens, vocabulary = x_ND.shape[0], weight_VD.shape[0]
        size = max(1, CHUNK_ELEMENTS.get(x_ND.device.type, 2**26) // vocabulary)
        need_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        head_VD = weight_VD.to(x_ND.dtype)
        grad_x_ND = torch.empty_like(x_ND) if need_gradient else None
        grad_weight_VD = torch.zeros_like(weight_VD) if need_gradient else None
        losses = []
        for start in range(0, tokens, size):
            rows = slice(start, min(start + size, tokens))
            x_CD, targets_CM = x_ND[rows], targets_NM[rows]
            shares_CM = None  # of each target in the gradient; None: all of it is the one's
            if weights_M is not None:
                targets_CM, shares_CM = target_weights(targets_CM, weights_M)
            logits_CV = logits_of(x_CD @ head_VD.T, softcap)
            slope_CV = None if softcap is None else 1 - (logits_CV / softcap).square()
            log_p_CV = F.log_softmax(logits_CV, dim=-1)
            del logits_CV  # so that no more chunks are alive than it takes
            log_p_CM = log_p_CV.gather(1, targets_CM)
            losses.append(-(log_p_CM if shares_CM is None else log_p_CM * shares_CM).sum())
            if grad_x_ND is not None and grad_weight_VD is not None:
                grad_CV = log_p_CV.exp_()
                if shares_CM is None:
                    shares_CM = torch.ones_like(log_p_CM)
                else:
                    grad_CV.mul_(shares_CM.sum(1, keepdim=True))
                grad_CV.scatter_add_(1, targets_CM, -shares_CM)
                if slope_CV is not None:
                    grad_CV.mul_(slope_CV)
                grad_CV = grad_CV.mul_(1 / tokens).to(x_ND.dtype)
                grad_x_ND[rows] = grad_CV @ head_VD
                # Each chunk's product is added in the weight's own precision.
                grad_weight_VD += (grad_CV.T @ x_CD).to(weight_VD.dtype)
        ctx.save_for_backward(grad_x_ND, grad_weight_VD)
        return torch.stack(losses).sum() / tokens

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad_loss,) = grad_outputs
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        grad_x_ND = grad_x_ND * grad_loss.to(grad_x_ND.dtype)
        return grad_x_ND, grad_weight_VD * grad_loss, None, None, None


CROSS_ENTROPIES: dict[str, CrossEntropy] = {
    "chunked": chunked_cross_entropy,
    "fused": fused_cross_entropy,
    "plain": plain_cross_entropy,
}
"""The values of `train.loss`."""

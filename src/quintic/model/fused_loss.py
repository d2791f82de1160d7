"""`chunked_cross_entropy` with a Triton kernel between its products, for GPUs.

The logits of a chunk are stored once, in the compute precision. One kernel turns them into losses
and overwrites them with their gradient, which the two products of the backward pass then read;
nothing of [tokens, vocabulary] exists in float32. Ideas: Liger Kernel's fused linear cross-entropy
(https://arxiv.org/abs/2410.10989) and Apple's Cut Cross-Entropy (https://arxiv.org/abs/2411.09009),
which multiplies inside the kernel, saving the logits, and pays with computing them twice.

Shapes: N tokens, C of them in a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**30
"""Logits of one chunk: 21,345 tokens of GPT-2's vocabulary, 2 GiB in bfloat16. Every chunk reads
and writes the gradient of the head once, in float32, so there should be few."""


def fused_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None = None
) -> Tensor:
    """`plain_cross_entropy` with the gradient taken in the forward pass, by a kernel; with a
    softcap c, that of c tanh(logits / c).

    `quintic.kernels.runnable` says where it can run.
    """
    if not torch.is_grad_enabled():
        # `needs_input_grad` below does not know of no_grad: validation would pay for a gradient.
        x_ND, weight_VD = x_ND.detach(), weight_VD.detach()
    loss: Tensor = _FusedCrossEntropy.apply(x_ND, weight_VD, targets_N, softcap)
    return loss


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None
    ) -> Tensor:
        need_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        loss: Tensor
        loss, grad_x_ND, grad_weight_VD = _head_and_loss(
            x_ND, weight_VD, targets_N, softcap, need_gradient
        )
        ctx.save_for_backward(grad_x_ND, grad_weight_VD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad_loss,) = grad_outputs
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        return grad_x_ND * grad_loss.to(grad_x_ND.dtype), grad_weight_VD * grad_loss, None, None


def head_and_loss(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss and its gradients by x and the weight; these are empty where none is needed."""
    from quintic.kernels.cross_entropy import cross_entropy_

    tokens, vocabulary = x_ND.shape[0], weight_VD.shape[0]
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    head_VD, targets_N = weight_VD.to(x_ND.dtype), targets_N.contiguous()
    loss_dtype, grad_x_ND, grad_weight_VD = _outputs(x_ND, weight_VD, gradient)
    losses_N = x_ND.new_empty(tokens, dtype=loss_dtype)
    for start in range(0, tokens, size):
        rows = slice(start, min(start + size, tokens))
        x_CD, targets_C, losses_C = x_ND[rows], targets_N[rows], losses_N[rows]
        logits_CV = x_CD @ head_VD.T
        cross_entropy_(
            logits_CV,
            targets_C,
            losses_C,
            gradient_of=tokens if gradient else None,
            softcap=softcap,
        )
        if gradient:
            grad_CV = logits_CV
            torch.mm(grad_CV, head_VD, out=grad_x_ND[rows])
            # Each chunk's product is added in the weight's own precision.
            grad_weight_VD += (grad_CV.T @ x_CD).to(weight_VD.dtype)
    return losses_N.sum() / tokens, grad_x_ND, grad_weight_VD


_head_and_loss = torch.library.custom_op("quintic::head_and_loss", head_and_loss, mutates_args=())
"""One operator, which torch.compile takes as it is: nothing in it could be fused further, and the
compiled program does not grow with the number of chunks."""


@_head_and_loss.register_fake
def _(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss_dtype, grad_x_ND, grad_weight_VD = _outputs(x_ND, weight_VD, gradient)
    return x_ND.new_empty((), dtype=loss_dtype), grad_x_ND, grad_weight_VD


def _outputs(x_ND: Tensor, weight_VD: Tensor, gradient: bool) -> tuple[torch.dtype, Tensor, Tensor]:
    """The precision of the loss, and the gradients of x, uninitialised, and the weight, zero."""
    loss_dtype = torch.promote_types(x_ND.dtype, torch.float32)
    if not gradient:
        return loss_dtype, x_ND.new_empty(0), weight_VD.new_empty(0)
    # Contiguous, where empty_like would keep the strides of a transposed view.
    return loss_dtype, x_ND.new_empty(x_ND.shape), weight_VD.new_zeros(weight_VD.shape)

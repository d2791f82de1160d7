"""Head and loss as one operator: chunks of tokens, a kernel between the products, float8.

The logits of a chunk are stored once, in the compute precision. One Triton kernel turns them into
losses and overwrites them with their gradient, which the two products of the backward pass then
read; nothing of [tokens, vocabulary] exists in float32. Ideas: Liger Kernel's fused linear
cross-entropy (https://arxiv.org/abs/2410.10989) and Apple's Cut Cross-Entropy
(https://arxiv.org/abs/2411.09009), which multiplies inside the kernel, saving the logits, and pays
with computing them twice.

Shapes: N tokens, C of them in a chunk, M targets of each, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quintic.model.head import Float8Products, HeadProducts, Products, logits_of
from quintic.model.multi_token import target_weights

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**30}
"""Logits of one chunk: on a CPU few, for its cache; on a GPU 21,344 tokens of GPT-2's vocabulary,
2 GiB in bfloat16. Every chunk reads and writes the gradient of the head once, in float32, so there
should be few."""

ALIGNMENT = 16
"""Tokens of a chunk are a multiple of this, for products in float8."""


def fused_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    weights_M: Tensor | None = None,
) -> Tensor:
    """`plain_cross_entropy` with the gradient taken in the forward pass, by a kernel; with a
    softcap c, that of c tanh(logits / c).

    `quintic.kernels.runnable` says where it can run.
    """
    return _mean_loss(x_ND, weight_VD, targets, softcap, weights_M, kernel=True, float8=False)


def fused_float8_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    weights_M: Tensor | None = None,
) -> Tensor:
    """`fused_cross_entropy` with its products in float8 where there is a gradient.

    Validation is without, since that is how a trained model is evaluated, exported and generates.
    """
    return _mean_loss(x_ND, weight_VD, targets, softcap, weights_M, kernel=True, float8=True)


def chunked_float8_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    weights_M: Tensor | None = None,
) -> Tensor:
    """The same without a kernel, for every device."""
    return _mean_loss(x_ND, weight_VD, targets, softcap, weights_M, kernel=False, float8=True)


def _mean_loss(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None,
    weights_M: Tensor | None,
    *,
    kernel: bool,
    float8: bool,
) -> Tensor:
    loss: Tensor = _HeadAndLoss.apply(
        *operands(x_ND, weight_VD, targets, weights_M), softcap, weights_M, kernel, float8
    )
    return loss


def operands(
    x_ND: Tensor, weight_VD: Tensor, targets: Tensor, weights_M: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x, the weight and targets_NM for a function that takes its gradient in the forward pass."""
    if not torch.is_grad_enabled():
        # Its `needs_input_grad` does not know of no_grad: validation would pay for a gradient.
        x_ND, weight_VD = x_ND.detach(), weight_VD.detach()
    return x_ND, weight_VD, targets[:, None] if weights_M is None else targets


class _HeadAndLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_NM: Tensor,
        softcap: float | None,
        weights_M: Tensor | None,
        kernel: bool,
        float8: bool,
    ) -> Tensor:
        gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        loss: Tensor
        loss, grad_x_ND, grad_weight_VD = _head_and_loss(
            x_ND, weight_VD, targets_NM, softcap, weights_M, gradient, kernel, float8 and gradient
        )
        ctx.save_for_backward(grad_x_ND, grad_weight_VD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        return (
            *(grad_x_ND * grad_loss.to(grad_x_ND.dtype), grad_weight_VD * grad_loss),
            *(None, None, None, None, None),
        )


def head_and_loss(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_NM: Tensor,
    softcap: float | None,
    weights_M: Tensor | None,
    gradient: bool,
    kernel: bool,
    float8: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss and its gradients by x and the weight; these are empty where none is needed.

    Without `weights_M` each token has one target, of weight 1.
    """
    if kernel:
        from quintic.kernels.cross_entropy import cross_entropy_
    else:
        cross_entropy_ = torch_cross_entropy_

    tokens, vocabulary = x_ND.shape[0], weight_VD.shape[0]
    size = CHUNK_ELEMENTS.get(x_ND.device.type, 2**26) // (ALIGNMENT * vocabulary) * ALIGNMENT
    size = max(ALIGNMENT, size)
    products: HeadProducts = (Float8Products if float8 else Products)(x_ND, weight_VD)
    targets_NM = targets_NM.contiguous()
    loss_dtype, grad_x_ND, grad_weight_VD = _outputs(x_ND, weight_VD, gradient)
    losses_N = x_ND.new_empty(tokens, dtype=loss_dtype)
    for start in range(0, tokens, size):
        rows = slice(start, min(start + size, tokens))
        x_CD = x_ND[rows]
        logits_CV = products.logits(x_CD)
        grad_CV = products.grad_buffer(logits_CV) if gradient else None
        cross_entropy_(
            logits_CV,
            targets_NM[rows],
            losses_N[rows],
            weights_M=weights_M,
            grad_CV=grad_CV,
            divisor=products.grad_divisor,
            softcap=softcap,
        )
        if grad_CV is not None:
            grad_x_ND[rows] = products.grad_x(grad_CV)
            # Each chunk's product is added in the weight's own precision.
            grad_weight_VD += products.grad_weight(grad_CV, x_CD).to(weight_VD.dtype)
    return losses_N.sum() / tokens, grad_x_ND, grad_weight_VD


_head_and_loss = torch.library.custom_op("quintic::head_and_loss", head_and_loss, mutates_args=())
"""One operator, which torch.compile takes as it is: nothing in it could be fused further, and the
compiled program does not grow with the number of chunks."""


@_head_and_loss.register_fake
def _(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_NM: Tensor,
    softcap: float | None,
    weights_M: Tensor | None,
    gradient: bool,
    kernel: bool,
    float8: bool,
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


def torch_cross_entropy_(
    logits_CV: Tensor,
    targets_CM: Tensor,
    losses_C: Tensor,
    *,
    weights_M: Tensor | None = None,
    grad_CV: Tensor | None = None,
    divisor: float = 1.0,
    softcap: float | None = None,
) -> None:
    """`quintic.kernels.cross_entropy.cross_entropy_` in plain PyTorch, which says what it does."""
    capped_CV = logits_of(logits_CV, softcap)
    log_p_CV = F.log_softmax(capped_CV, dim=-1)
    weights_M = log_p_CV.new_ones(1) if weights_M is None else weights_M
    targets_CM, shares_CM = target_weights(targets_CM, weights_M)
    losses_C.copy_(-(log_p_CV.gather(1, targets_CM) * shares_CM).sum(1))
    if grad_CV is not None:
        p_CV = log_p_CV.exp_().mul_(shares_CM.sum(1, keepdim=True))
        p_CV.scatter_add_(1, targets_CM, -shares_CM)
        if softcap is not None:
            p_CV *= 1 - (capped_CV / softcap).square()
        grad_CV.copy_(p_CV.div_(divisor))


FLOAT8_CROSS_ENTROPIES = {
    "chunked": chunked_float8_cross_entropy,
    "fused": fused_float8_cross_entropy,
}
"""The values of `train.loss` with `train.float8_head`."""

"""Next-token cross-entropy: the head's matrix product and the loss in one function.

Every loss is a `CrossEntropy`. `plain_cross_entropy` is the reference, and keeps the [tokens,
vocabulary] matrix of logits, its float32 copy and its gradient alive. `chunked_cross_entropy` never
holds more than one chunk of it.

Shapes: N tokens, C of them in a chunk, M targets of each, D model width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quintic.kernels import cpu_cross_entropy
from quintic.model.head import Float8Products, Products, logits_of
from quintic.model.multi_token import NO_TOKEN

Reduction = Literal["mean", "none"]


class CrossEntropy(Protocol):
    """The mean cross-entropy in nats of `softmax(x @ weight.T)` against targets [N], a scalar; with
    `reduction` "none", which is for evaluation and has no gradient, that of each target, [N].

    It is computed in float32 (float64 for float64 input). With `weights_M` the targets are [N, M],
    as `quintic.model.multi_token` makes them, and it is the sum of M cross-entropies times these
    weights; each is added up over the targets that there are and divided by N, as a mean over whole
    sequences.

    With a softcap c, logits z become c tanh(z / c): nearly themselves while small, and never beyond
    -c and c. Source: Gemma 2 (https://arxiv.org/abs/2408.00118), with c = 30; the speedrun took it
    on 2024-11-06, and 15 on 2025-01-04.
    """

    def __call__(
        self,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets: Tensor,
        softcap: float | None = None,
        weights_M: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor: ...


CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28, "mps": 2**26}
"""Logits of one chunk. On a CPU a chunk should stay in the cache; on a GPU it should be large
enough to fill the device, and is still a fraction of GPT-2's [65536, 50304]."""

KERNEL_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**30}
"""Logits of one chunk with the kernel, which stores them once, in the compute precision: on a GPU
21,344 tokens of GPT-2's vocabulary, 2 GiB in bfloat16. Every chunk reads and writes the gradient of
the head once, in float32, so there should be few."""

ALIGNMENT = 16
"""Tokens of the operator's chunks are a multiple of this, for products in float8."""


def plain_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    weights_M: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the loss as `CrossEntropy` defines it."""
    logits_NV = logits_of(F.linear(x_ND, weight_VD.to(x_ND.dtype)), softcap)
    if weights_M is None:
        return F.cross_entropy(logits_NV, targets, reduction=reduction)
    assert reduction == "mean", "validation is of the next token alone"
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
    reduction: Reduction = "mean",
    *,
    kernel: bool = False,
    float8: bool = False,
) -> Tensor:
    """Compute `plain_cross_entropy` a chunk of tokens at a time, with the gradient on the way.

    The gradient of the logits is `softmax - one_hot`, known as soon as the softmax is, so the
    forward pass multiplies it out at once and the backward pass has nothing to recompute. Ideas:
    Liger Kernel's fused linear cross-entropy (https://arxiv.org/abs/2410.10989) and Apple's Cut
    Cross-Entropy (https://arxiv.org/abs/2411.09009), which multiplies inside the kernel, saving the
    logits, and pays with computing them twice.

    With `kernel` a Triton kernel stands between the products; `quintic.kernels.runnable` says where
    it can run. With `float8` the products are in float8 where there is a gradient: validation is
    without, since that is how a trained model is evaluated, exported and generates.
    """
    gradient = torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad)
    assert reduction == "mean" or not gradient, "the gradient is that of the mean"
    assert reduction == "mean" or weights_M is None, "validation is of the next token alone"
    compute = _loss_operator if kernel or float8 else loss_and_gradients
    targets_NM = targets[:, None] if weights_M is None else targets
    with torch.no_grad():
        loss, grad_x_ND, grad_weight_VD = compute(
            x_ND,
            weight_VD,
            targets_NM,
            softcap,
            weights_M,
            gradient,
            kernel,
            float8 and gradient,
            reduction == "mean",
        )
    if gradient:
        loss = _WithGradients.apply(loss, x_ND, weight_VD, grad_x_ND, grad_weight_VD)
    return loss


def in_cache_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    weights_M: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute `chunked_cross_entropy` with less of it written to memory, on a CPU.

    Validation, and a loss of several targets, are computed by that itself.
    """
    gradient = torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad)
    if not gradient or weights_M is not None:
        return chunked_cross_entropy(x_ND, weight_VD, targets, softcap, weights_M, reduction)
    with torch.no_grad():
        loss, *grads = cpu_cross_entropy.loss_and_gradients(x_ND, weight_VD, targets, softcap)
    return _WithGradients.apply(loss, x_ND, weight_VD, *grads)  # type: ignore[no-any-return]


class _WithGradients(torch.autograd.Function):
    """Gives a loss the gradients by x and the weight that were computed with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *tensors: Tensor) -> Tensor:
        _, _, grad_x_ND, grad_weight_VD = tensors
        ctx.save_for_backward(grad_x_ND, grad_weight_VD)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        grad_x_ND = grad_x_ND * grad_loss.to(grad_x_ND.dtype)
        return None, grad_x_ND, grad_weight_VD * grad_loss, None, None


def loss_and_gradients(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_NM: Tensor,
    softcap: float | None,
    weights_M: Tensor | None,
    gradient: bool,
    kernel: bool,
    float8: bool,
    mean: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss, or else that of each token, [N], and the gradients of the mean by x and
    the weight, empty where none is asked for."""
    cross_entropy = torch_cross_entropy
    if kernel:
        from quintic.kernels.cross_entropy import cross_entropy
    products = (Float8Products if float8 else Products)(x_ND, weight_VD)
    grad_dtype = products.grad_dtype if gradient else None
    tokens, vocabulary, multiple = len(x_ND), len(weight_VD), ALIGNMENT if kernel or float8 else 1
    elements = (KERNEL_CHUNK_ELEMENTS if kernel else CHUNK_ELEMENTS).get(x_ND.device.type, 2**26)
    size = max(1, elements // (multiple * vocabulary)) * multiple
    grad_x_ND, grad_weight_VD = _gradient_buffers(x_ND, weight_VD, gradient)
    losses = []
    for start in range(0, tokens, size):
        rows = slice(start, min(start + size, tokens))
        x_CD, targets_CM = x_ND[rows], targets_NM[rows]
        losses_CM, grad_CV = cross_entropy(
            products.logits(x_CD), targets_CM, weights_M, softcap, grad_dtype, products.grad_divisor
        )
        losses.append(losses_CM.sum() if mean else losses_CM.flatten())
        if grad_CV is not None:
            grad_x_ND[rows] = products.grad_x(grad_CV)
            # Each chunk's product is added in the weight's own precision.
            grad_weight_VD += products.grad_weight(grad_CV, x_CD).to(weight_VD.dtype)
    loss = torch.stack(losses).sum() / tokens if mean else torch.cat(losses)
    return loss, grad_x_ND, grad_weight_VD


_loss_operator = torch.library.custom_op(
    "quintic::loss_and_gradients", loss_and_gradients, mutates_args=()
)
"""One operator, which torch.compile takes as it is: nothing around the kernel could be fused
further, and the compiled program does not grow with the number of chunks."""


@_loss_operator.register_fake
def _(x_ND: Tensor, weight_VD: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, _, gradient, _, _, mean = options
    shape = () if mean else (len(x_ND),)
    loss = x_ND.new_empty(shape, dtype=torch.promote_types(x_ND.dtype, torch.float32))
    return loss, *_gradient_buffers(x_ND, weight_VD, gradient)


def _gradient_buffers(x_ND: Tensor, weight_VD: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """Return memory for the gradients of x, uninitialised, and of the weight, zero."""
    if not gradient:
        return x_ND.new_empty(0), weight_VD.new_empty(0)
    # Contiguous, where empty_like would keep the strides of a transposed view.
    return x_ND.new_empty(x_ND.shape), weight_VD.new_zeros(weight_VD.shape)


def torch_cross_entropy(
    logits_CV: Tensor,
    targets_CM: Tensor,
    weights_M: Tensor | None,
    softcap: float | None,
    grad_dtype: torch.dtype | None,
    divisor: float,
) -> tuple[Tensor, Tensor | None]:
    """Return a chunk's losses, [C, M], and, in `grad_dtype`, the gradient of their sum / divisor.

    The gradient, [C, V], is that by the logits, which are given without their softcap.
    """
    weights_CM = None  # all of the loss is the one target's
    if weights_M is not None:
        weights_CM = weights_M * (targets_CM != NO_TOKEN)
        targets_CM = targets_CM.clamp(min=0)
    logits_CV = logits_of(logits_CV, softcap)
    slope_CV = None if softcap is None else 1 - (logits_CV / softcap).square()
    log_p_CV = F.log_softmax(logits_CV, dim=-1)
    del logits_CV  # so that no more chunks are alive than it takes
    log_p_CM = log_p_CV.gather(1, targets_CM)
    losses_CM = -(log_p_CM if weights_CM is None else log_p_CM * weights_CM)
    if grad_dtype is None:
        return losses_CM, None
    grad_CV = log_p_CV.exp_()
    if weights_CM is None:
        weights_CM = torch.ones_like(log_p_CM)
    else:
        grad_CV.mul_(weights_CM.sum(1, keepdim=True))
    grad_CV.scatter_add_(1, targets_CM, -weights_CM)
    if slope_CV is not None:
        grad_CV.mul_(slope_CV)
    return losses_CM, grad_CV.mul_(1 / divisor).to(grad_dtype)


fused_cross_entropy = partial(chunked_cross_entropy, kernel=True)
chunked_float8_cross_entropy = partial(chunked_cross_entropy, float8=True)

CROSS_ENTROPIES: dict[str, CrossEntropy] = {
    "chunked": chunked_cross_entropy,
    "fused": fused_cross_entropy,
    "plain": plain_cross_entropy,
}
"""The values of `train.loss`."""

FLOAT8_CROSS_ENTROPIES: dict[str, CrossEntropy] = {
    "chunked": chunked_float8_cross_entropy,
    "fused": partial(fused_cross_entropy, float8=True),
}
"""The values of `train.loss` with `train.float8_head`."""

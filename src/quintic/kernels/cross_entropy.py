"""Cross-entropy of rows of logits and its gradient, which takes their place in memory.

Shapes: C tokens, M targets of each, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 4
"""Logits of a row that are held at once: 32 in each of a program's 128 threads, whose code then
needs 55 registers, so that a multiprocessor of Hopper works on nine rows at once."""


@triton.jit
def _tanh(x):
    """Return tanh(x), which Triton does not have.

    Near zero the quotient of exponentials loses digits, which float64 has to spare and float32 has
    not: there the series to x^9 is as exact as float32.
    """
    e = tl.exp(-2.0 * tl.abs(x))
    tanh = tl.where(x < 0, e - 1.0, 1.0 - e) / (1.0 + e)
    if x.dtype == tl.float64:
        return tanh
    s = x * x
    series = x * (1 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315 - s * (62 / 2835)))))
    return tl.where(s < 0.0625, series, tanh)


@triton.jit
def _logits(ptrs, inside, softcap, FLOAT: tl.constexpr, CAPPED: tl.constexpr):
    """Load logits and cap them if asked; outside the vocabulary return -inf, of softmax zero."""
    logits = tl.load(ptrs, mask=inside, other=0.0).to(FLOAT)
    if CAPPED:
        logits = softcap * _tanh(logits / softcap)
    return tl.where(inside, logits, float("-inf"))


@triton.jit
def _target(targets_ptr, weights_ptr, m, FLOAT: tl.constexpr, WEIGHTED: tl.constexpr):
    """Return one target of a row and its weight in the loss; a target below zero is none."""
    target = tl.load(targets_ptr + m)
    weight = tl.full((), 1.0, FLOAT)
    if WEIGHTED:
        weight = tl.where(target >= 0, tl.load(weights_ptr + m).to(FLOAT), 0.0)
    return target, weight


@triton.jit
def _cross_entropy_row(
    logits_ptr,
    targets_ptr,
    weights_ptr,
    losses_ptr,
    grad_ptr,
    stride,
    divisor,
    softcap,
    VOCABULARY: tl.constexpr,
    TARGETS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr,
    FLOAT: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # times the stride beyond 2**31 in a large chunk
    logits_ptr += row * stride
    grad_ptr += row * stride
    targets_ptr += row * TARGETS
    columns = tl.arange(0, BLOCK)

    # Online softmax: one pass over the row finds its maximum and the sum of exponentials, scaled
    # anew where a block has a larger maximum.
    maximum = tl.full((), float("-inf"), FLOAT)
    total = tl.full((), 0.0, FLOAT)
    for start in range(0, VOCABULARY, BLOCK):
        inside = start + columns < VOCABULARY
        logits = _logits(logits_ptr + start + columns, inside, softcap, FLOAT, CAPPED)
        larger = tl.maximum(maximum, tl.max(logits, axis=0))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(logits - larger), axis=0)
        maximum = larger
    log_total = maximum + tl.log(total)

    loss = tl.full((), 0.0, FLOAT)
    weights = tl.full((), 0.0, FLOAT)
    for m in tl.static_range(TARGETS):
        target, weight = _target(targets_ptr, weights_ptr, m, FLOAT, WEIGHTED)
        logit = _logits(logits_ptr + target, target >= 0, softcap, FLOAT, CAPPED)
        loss += weight * (log_total - tl.where(target >= 0, logit, 0.0))
        weights += weight
    tl.store(losses_ptr + row, loss)

    if GRADIENT:
        # The second pass, mostly out of the L2 cache: (weights softmax - weights at the
        # targets) / divisor.
        for start in range(0, VOCABULARY, BLOCK):
            inside = start + columns < VOCABULARY
            logits = _logits(logits_ptr + start + columns, inside, softcap, FLOAT, CAPPED)
            gradient = weights * tl.exp(logits - log_total)
            for m in tl.static_range(TARGETS):
                target, weight = _target(targets_ptr, weights_ptr, m, FLOAT, WEIGHTED)
                gradient -= tl.where(start + columns == target, weight, 0.0)
            gradient /= divisor
            if CAPPED:
                tanh = logits / softcap
                gradient *= tl.where(inside, 1.0 - tanh * tanh, 0.0)
            ptrs = grad_ptr + start + columns
            tl.store(ptrs, gradient.to(grad_ptr.dtype.element_ty), mask=inside)


def cross_entropy(
    logits_CV: Tensor,
    targets_CM: Tensor,
    weights_M: Tensor | None,
    softcap: float | None,
    grad_dtype: torch.dtype | None,
    divisor: float,
) -> tuple[Tensor, Tensor | None]:
    """Compute `quintic.model.loss.torch_cross_entropy` by a kernel that reads a row at most twice;
    the losses are [C, 1], those of a token's targets added up.

    The gradient, (softmax - one_hot) / divisor for one target, takes the logits' own memory if
    `grad_dtype` is theirs. Targets below zero are none; all others must be in [0, V). With a
    softcap c the loss is that of c tanh(logits / c). All is computed in float32, or float64 for
    float64 logits. A row is read once, and for its gradient once more.

    Online softmax: Milakov & Gimelshein, https://arxiv.org/abs/1805.02867. The gradient in place of
    the logits: Liger Kernel, https://arxiv.org/abs/2410.10989.
    """
    (rows, vocabulary), targets = logits_CV.shape, targets_CM.shape[1]
    assert targets == (1 if weights_M is None else len(weights_M))
    assert logits_CV.stride(1) == 1
    grad_CV = None
    if grad_dtype is not None:
        in_place = grad_dtype is logits_CV.dtype
        grad_CV = logits_CV if in_place else torch.empty_like(logits_CV, dtype=grad_dtype)
    float_dtype = torch.promote_types(logits_CV.dtype, torch.float32)
    losses_C = logits_CV.new_empty(rows, dtype=float_dtype)
    _cross_entropy_row[(rows,)](
        logits_CV,
        targets_CM.contiguous(),
        targets_CM if weights_M is None else weights_M,
        losses_C,
        logits_CV if grad_CV is None else grad_CV,
        logits_CV.stride(0),
        divisor,
        softcap or 1.0,
        VOCABULARY=vocabulary,
        TARGETS=targets,
        WEIGHTED=weights_M is not None,
        GRADIENT=grad_CV is not None,
        FLOAT=tl.float64 if float_dtype is torch.float64 else tl.float32,
        CAPPED=softcap is not None,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return losses_C[:, None], grad_CV

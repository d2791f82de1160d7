"""Cross-entropy of rows of logits and its gradient, which takes their place in memory.

Shapes: C tokens, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 4
"""Logits of a row that are held at once: 32 in each of a program's 128 threads, whose code then
needs 55 registers, so that a multiprocessor of Hopper works on nine rows at once."""


@triton.jit
def _cross_entropy_row(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    stride,
    tokens,
    VOCABULARY: tl.constexpr,
    GRADIENT: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # times the stride beyond 2**31 in a large chunk
    logits_ptr += row * stride
    target = tl.load(targets_ptr + row)
    target_logit = tl.load(logits_ptr + target).to(FLOAT)
    columns = tl.arange(0, BLOCK)

    # Online softmax: one pass over the row finds its maximum and the sum of exponentials, scaled
    # anew where a block has a larger maximum.
    maximum = tl.full((), float("-inf"), FLOAT)
    total = tl.full((), 0.0, FLOAT)
    for start in range(0, VOCABULARY, BLOCK):
        inside = start + columns < VOCABULARY
        logits = tl.load(logits_ptr + start + columns, mask=inside, other=float("-inf")).to(FLOAT)
        larger = tl.maximum(maximum, tl.max(logits, axis=0))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(logits - larger), axis=0)
        maximum = larger
    log_total = maximum + tl.log(total)
    tl.store(losses_ptr + row, log_total - target_logit)

    if GRADIENT:
        # The second pass, mostly out of the L2 cache: (softmax - one_hot) / tokens.
        for start in range(0, VOCABULARY, BLOCK):
            inside = start + columns < VOCABULARY
            logits = tl.load(logits_ptr + start + columns, mask=inside, other=0.0).to(FLOAT)
            one_hot = tl.where(start + columns == target, 1.0, 0.0)
            gradient = (tl.exp(logits - log_total) - one_hot) / tokens
            tl.store(
                logits_ptr + start + columns,
                gradient.to(logits_ptr.dtype.element_ty),
                mask=inside,
            )


def cross_entropy_(logits_CV: Tensor, targets_C: Tensor, losses_C: Tensor, tokens: int) -> None:
    """Write each row's cross-entropy in nats, and its gradient over the logits.

    The gradient is that of the mean over `tokens`, of which these C are a part. All is computed in
    the precision of `losses_C`: float32, or float64 for float64 logits. A row is read once, and
    where `logits_CV` is to become the gradient once more. Targets must be in [0, V).

    Online softmax: Milakov & Gimelshein, https://arxiv.org/abs/1805.02867. The gradient in place of
    the logits: Liger Kernel, https://arxiv.org/abs/2410.10989.
    """
    _launch(logits_CV, targets_C, losses_C, tokens, gradient=True)


def cross_entropy(logits_CV: Tensor, targets_C: Tensor, losses_C: Tensor) -> None:
    """Write each row's cross-entropy in nats; the logits stay."""
    _launch(logits_CV, targets_C, losses_C, 1, gradient=False)


def _launch(
    logits_CV: Tensor, targets_C: Tensor, losses_C: Tensor, tokens: int, *, gradient: bool
) -> None:
    rows, vocabulary = logits_CV.shape
    assert logits_CV.stride(1) == targets_C.stride(0) == losses_C.stride(0) == 1
    _cross_entropy_row[(rows,)](
        logits_CV,
        targets_C,
        losses_C,
        logits_CV.stride(0),
        tokens,
        VOCABULARY=vocabulary,
        GRADIENT=gradient,
        FLOAT=tl.float64 if losses_C.dtype is torch.float64 else tl.float32,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )

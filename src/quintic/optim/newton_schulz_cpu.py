"""Newton-Schulz of large matrices on a CPU, with about 0.6 of the operations.

Two savings, both of exact arithmetic, so that only rounding differs from the plain iteration:

- G = X X^T and every polynomial of G are symmetric, and so is the product of two of them, since
  they commute. Of a symmetric product only strips of the lower triangle are computed.
- Where X is wide, C > R, an iteration costs two products with C columns. Several of them need only
  two altogether: with P_i = a_i + b_i G_i + c_i G_i^2 and G_0 = X X^T, they are

      G_{i+1} = P_i G_i P_i,    X_n = (P_{n-1} ... P_0) X_0,

  all but the first and the last product of size R. A Gram matrix has singular values squared, so
  those below sqrt(eps) are lost in it, and what it has of them instead grows with every iteration:
  therefore G is computed from X again every `GRAM_ITERATIONS`.

Shapes: X [R, C] with R <= C, G [R, R].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_ROWS = 256
"""Rows R from which on this is used: of smaller matrices a stack is computed at once."""

STRIP_ROWS = 128
"""Rows of a strip: products of fewer are slower by more than they save."""

GRAM_ITERATIONS = 3
"""Iterations with one Gram matrix: five are 3 + 2, with at most twice the plain iteration's error
in float32 whatever the spectrum (`tests/optim/test_newton_schulz_cpu.py`); 4 + 1: 2.6 times."""

GRAM_RATIO = 2
"""Ratio C / R from which on iterations share a Gram matrix. From 1.2 on there is something to gain,
but then the error is 2.1 times that of the plain iteration."""


def one_at_a_time(shape: Sequence[int], device: torch.device) -> bool:
    """Return whether matrices of this shape are computed one by one here, and not as a stack.

    Not in what is compiled: a hundred products, of which nothing could be fused.
    """
    large = device.type == "cpu" and min(shape) >= SMALLEST_ROWS
    return large and not torch.compiler.is_compiling()


def iterate_in_place(
    X_nRC: Tensor, coefficients: Sequence[tuple[float, float, float]], spare_RC: Tensor
) -> None:
    """Apply X <- a X + (b G + c G G) X with G = X X^T to each matrix, once for each (a, b, c).

    `spare_RC` is room to compute in.
    """
    _, R, C = X_nRC.shape
    # bfloat16 has too few bits for a Gram matrix of more than one iteration.
    wide = C >= GRAM_RATIO * R and X_nRC.dtype is not torch.bfloat16
    each = GRAM_ITERATIONS if wide else 1
    parts = [coefficients[i : i + each] for i in range(0, len(coefficients), each)]
    work_5RR = X_nRC.new_empty(5, R, R)
    for X_RC in X_nRC:
        now_RC, next_RC = X_RC, spare_RC
        for part in parts:
            _iterate(now_RC, part, work_5RR, out=next_RC)
            now_RC, next_RC = next_RC, now_RC
        if now_RC is not X_RC:
            X_RC.copy_(now_RC)


def _iterate(
    X_RC: Tensor, coefficients: Sequence[tuple[float, float, float]], work_5RR: Tensor, out: Tensor
) -> None:
    """Write the result of several iterations with one Gram matrix to `out`."""
    G_RR, B_RR, GP_RR, Q_RR, spare_RR = work_5RR.unbind()
    symmetric_product(X_RC, X_RC.T, out=G_RR)
    *first, (a, b, c) = coefficients
    for i, (a_i, b_i, c_i) in enumerate(first):
        # P = a + B with B = b G + c G G; of P Q = a Q + B Q, PyTorch adds the first term itself.
        symmetric_product(G_RR, G_RR, out=B_RR, plus=G_RR, beta=b_i, alpha=c_i)
        symmetric_product(B_RR, G_RR, out=GP_RR, plus=G_RR, beta=a_i)
        symmetric_product(B_RR, GP_RR, out=G_RR, plus=GP_RR, beta=a_i)
        if i == 0:
            Q_RR.copy_(B_RR).diagonal().add_(a_i)
        else:
            symmetric_product(B_RR, Q_RR, out=spare_RR, plus=Q_RR, beta=a_i)
            Q_RR, spare_RR = spare_RR, Q_RR
    symmetric_product(G_RR, G_RR, out=B_RR, plus=G_RR, beta=b, alpha=c)
    if first:
        symmetric_product(B_RR, Q_RR, out=spare_RR, plus=Q_RR, beta=a)
        torch.mm(spare_RR, X_RC, out=out)
    else:
        torch.addmm(X_RC, B_RR, X_RC, beta=a, out=out)


def symmetric_product(
    left: Tensor,
    right: Tensor,
    *,
    out: Tensor,
    plus: Tensor | None = None,
    beta: float = 0.0,
    alpha: float = 1.0,
) -> None:
    """Write beta plus + alpha left right to `out`, [R, R], which the caller knows to be symmetric.

    Strips of its lower triangle are computed and mirrored.
    """
    rows = out.shape[0]
    for start in range(0, rows, STRIP_ROWS):
        stop = min(start + STRIP_ROWS, rows)
        strip = out[start:stop, :stop]
        if plus is None:
            torch.mm(left[start:stop], right[:, :stop], out=strip)
        else:
            torch.addmm(
                plus[start:stop, :stop],
                left[start:stop],
                right[:, :stop],
                beta=beta,
                alpha=alpha,
                out=strip,
            )
        out[:start, start:stop] = strip[:, :start].T

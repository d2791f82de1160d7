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

Products in bfloat16 are computed by a CPU's float32 units where these are the faster ones
(`product_dtype`): the product of two bfloat16 numbers is exact in float32, which is what their sums
are taken in either way, and every product of matrices is rounded to bfloat16.

Everything happens in the memory of X and in `Room`, which the matrices of a thread take in turn.

Shapes: X [R, C] with R <= C, often the transpose of what lies in memory, G [R, R].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

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


@cache
def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision whose units compute products in `dtype`: float32 for a slow bfloat16.

    On x86 a product of 768 rows takes 5 ms in float32 and in bfloat16 485 where there are no units
    for it, and 9 with AVX512_BF16 on an Intel CPU without AMX, as in many virtual machines
    (`docs/muon.md` has the command). AMX is taken to be fast, and so is AMD's AVX512_BF16,
    known by the want of AVX512_FP16: neither has been measured.
    """
    if dtype is not torch.bfloat16:
        return dtype
    # Not in every release.
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    slow = not has.get("avx512_bf16") or has.get("avx512_fp16")
    x86 = has.get("architecture") == "x86_64"
    return torch.float32 if x86 and slow and not has.get("amx_bf16") else dtype


def gram_iterations(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return how many iterations in `dtype` share a Gram matrix."""
    wide = max(shape) >= GRAM_RATIO * min(shape)
    # bfloat16 and float16 have too few bits for a Gram matrix of more than one iteration.
    return GRAM_ITERATIONS if wide and dtype.itemsize > 2 else 1


def work_elements(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return the numbers in the matrices [R, R] that iterations in `dtype` are computed in."""
    matrices = 2 if gram_iterations(shape, dtype) == 1 else 4
    return int(matrices * min(shape) ** 2)


@dataclass(frozen=True)
class Room:
    """Describes the memory that the update of one large matrix needs beside its momentum."""

    shape: tuple[int, int]
    momentum_dtype: torch.dtype
    ns_dtype: torch.dtype

    @property
    def work_bytes(self) -> int:
        """Bytes of the matrices that an iteration computes in."""
        return work_elements(self.shape, self.ns_dtype) * product_dtype(self.ns_dtype).itemsize

    @property
    def _matrix_start(self) -> int:
        """The byte at which the matrix begins: a number of any precision may lie there."""
        return -(-self.work_bytes // 8) * 8

    @property
    def bytes(self) -> int:
        """Bytes of all of it."""
        return self._matrix_start + math.prod(self.shape) * self.momentum_dtype.itemsize

    def within(self, memory_u8: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matrix [1, r, c] and the room to compute in, as views of bytes."""
        work, matrix = memory_u8[: self.work_bytes], memory_u8[self._matrix_start : self.bytes]
        matrix_1rc = matrix.view(self.momentum_dtype).view(1, *self.shape)
        return matrix_1rc, work.view(product_dtype(self.ns_dtype))


def iterate_in_place(
    X_nRC: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    dtype: torch.dtype,
    work: Tensor | None = None,
) -> None:
    """Apply X <- a X + (b G + c G G) X with G = X X^T to each matrix, once for each (a, b, c).

    Every product is rounded to `dtype`, where that is less precise than X. `work` is room for
    `work_elements` numbers of X's precision.
    """
    R, C = X_nRC.shape[1:]
    each = gram_iterations((R, C), dtype)
    if work is None:
        work = X_nRC.new_empty(work_elements((R, C), dtype))
    # In one piece for all products: what comes and goes in a thread scatters its memory.
    exact = X_nRC.dtype is dtype
    rounded = None if exact else X_nRC.new_empty(STRIP_ROWS * R, dtype=dtype)
    for X_RC in X_nRC:
        for block in X_RC.split(R, dim=1):
            _round(block, rounded)
        for i in range(0, len(coefficients), each):
            _iterate(X_RC, coefficients[i : i + each], work.view(-1, R, R), rounded)


def _round(x: Tensor, rounded: Tensor | None) -> None:
    """Round in place to the precision of `rounded`, room for `STRIP_ROWS` rows of R numbers."""
    if rounded is None:
        return
    lying = x if x.stride(1) == 1 else x.T
    for rows in lying.split(STRIP_ROWS):
        part = rounded[: rows.numel()].view(rows.shape)
        rows.copy_(part.copy_(rows))


def _iterate(
    X_RC: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    work_mRR: Tensor,
    rounded: Tensor | None,
) -> None:
    """Apply several iterations with one Gram matrix to X."""
    G_RR, B_RR, *more = work_mRR.unbind()
    product = partial(symmetric_product, rounded=rounded)
    product(X_RC, X_RC.T, out=G_RR)
    *first, (a, b, c) = coefficients
    if first:
        GP_RR, Q_RR = more
    for i, (a_i, b_i, c_i) in enumerate(first):
        # P = a + B with B = b G + c G G; of P Q = a Q + B Q, PyTorch adds the first term itself.
        product(G_RR, G_RR, out=B_RR, plus=G_RR, beta=b_i, alpha=c_i)
        product(B_RR, G_RR, out=GP_RR, plus=G_RR, beta=a_i)
        product(B_RR, GP_RR, out=G_RR, plus=GP_RR, beta=a_i)
        if i == 0:
            Q_RR.copy_(B_RR).diagonal().add_(a_i)
        else:
            product(B_RR, Q_RR, out=GP_RR, plus=Q_RR, beta=a_i)
            Q_RR, GP_RR = GP_RR, Q_RR
    product(G_RR, G_RR, out=B_RR, plus=G_RR, beta=b, alpha=c)
    left_RR = B_RR
    if first:
        product(B_RR, Q_RR, out=GP_RR, plus=Q_RR, beta=a)
        left_RR, a = GP_RR, 0.0
    # By blocks of columns, for which the room of G is enough, and as X lies in memory.
    room_RR = G_RR if X_RC.stride(1) == 1 else G_RR.T
    for block in X_RC.split(len(X_RC), dim=1):
        out = torch.addmm(block, left_RR, block, beta=a, out=room_RR[:, : block.shape[1]])
        _round(out, rounded)
        block.copy_(out)


def symmetric_product(
    left: Tensor,
    right: Tensor,
    *,
    out: Tensor,
    plus: Tensor | None = None,
    beta: float = 0.0,
    alpha: float = 1.0,
    rounded: Tensor | None = None,
) -> None:
    """Write beta plus + alpha left right to `out`, [R, R], which the caller knows to be symmetric.

    Strips of its lower triangle are computed, rounded as by `_round`, and mirrored.
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
        _round(strip, rounded)
        out[:start, start:stop] = strip[:, :start].T

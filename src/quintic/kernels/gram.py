"""The symmetric products of Newton-Schulz: half of each computed, the other half mirrored.

X X^T is symmetric, and so is the polynomial b A + c A A of a symmetric A. A product of [R, C] with
its transpose is computed in square tiles of the lower triangle, T (T + 1) / 2 of T^2, and each tile
is stored twice.
Idea: modded-nanogpt's records from 2025 (https://github.com/KellerJordan/modded-nanogpt) and dion
(https://github.com/microsoft/dion).

Shapes: n matrices of R rows and C columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quintic.kernels.runnable import interpreted

BLOCKS = {torch.bfloat16: (128, 64), torch.float32: (64, 32)}
"""Rows of a tile, and columns that are multiplied at once, by precision. In bfloat16 three stages
of loads take 96 KiB, which every GPU with bfloat16 units has, and a tile 64 registers of each of
256 threads: two programs run on one of Hopper's multiprocessors. Without tensor cores, in float32,
tiles as large would not fit into the registers."""

WARPS, STAGES = 8, 3


@triton.jit
def _lower_triangle(index):
    """The tile (i, j), j <= i, with this number when they are counted row by row."""
    i = ((tl.sqrt(8.0 * index + 1.0) - 1.0) / 2.0).to(tl.int32)
    # The root is of a rounded number.
    i = tl.where(i * (i + 1) // 2 > index, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= index, i + 1, i)
    return i, index - i * (i + 1) // 2


@triton.jit
def _gram_tile(
    x_ptr,
    out_ptr,
    b,
    c,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,
):
    i, j = _lower_triangle(tl.program_id(0))
    matrix = tl.program_id(1).to(tl.int64)
    x_ptr += matrix * ROWS * COLUMNS
    out_ptr += matrix * ROWS * ROWS
    i_rows = i * BLOCK + tl.arange(0, BLOCK)
    j_rows = j * BLOCK + tl.arange(0, BLOCK)
    k_columns = tl.arange(0, BLOCK_K)
    left_ptrs = x_ptr + i_rows[:, None] * COLUMNS + k_columns[None, :]
    right_ptrs = x_ptr + j_rows[None, :] * COLUMNS + k_columns[:, None]

    tile = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, COLUMNS, BLOCK_K):
        there = start + k_columns < COLUMNS
        left = tl.load(left_ptrs + start, mask=(i_rows < ROWS)[:, None] & there[None, :], other=0.0)
        right = tl.load(
            right_ptrs + start, mask=(j_rows < ROWS)[None, :] & there[:, None], other=0.0
        )
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        # "ieee": the default for float32 is TF32, with 10 bits of mantissa.
        tile = tl.dot(left, right, tile, input_precision="ieee")

    inside = (i_rows < ROWS)[:, None] & (j_rows < ROWS)[None, :]
    lower = i_rows[:, None] * ROWS + j_rows[None, :]
    if ADD:
        tile = b * tl.load(x_ptr + lower, mask=inside, other=0.0).to(tl.float32) + c * tile
    result = tile.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + lower, result, mask=inside)
    if i != j:
        upper = j_rows[:, None] * ROWS + i_rows[None, :]
        inside = (j_rows < ROWS)[:, None] & (i_rows < ROWS)[None, :]
        tl.store(out_ptr + upper, tl.trans(result), mask=inside)


def gram(X_nRC: Tensor) -> Tensor:
    """X X^T of each matrix, symmetric to the last bit, accumulated in float32."""
    return _launch(X_nRC, add=False, b=0.0, c=1.0)


def symmetric_polynomial(A_nRR: Tensor, b: float, c: float) -> Tensor:
    """b A + c A A of each symmetric matrix, accumulated in float32 and rounded once."""
    return _launch(A_nRR, add=True, b=b, c=c)


def gram_polynomial(X_nRC: Tensor, b: float, c: float) -> Tensor:
    """`quintic.optim.newton_schulz.gram_polynomial`: b A + c A A for A = X X^T, of each matrix."""
    B_nRR: Tensor = _gram_polynomial(X_nRC, b, c)
    return B_nRR


@torch.library.custom_op("quintic::gram_polynomial", mutates_args=())
def _gram_polynomial(X_nRC: Tensor, b: float, c: float) -> Tensor:
    """One operator, which torch.compile takes as it is."""
    return symmetric_polynomial(gram(X_nRC), b, c)


@_gram_polynomial.register_fake
def _(X_nRC: Tensor, b: float, c: float) -> Tensor:
    n, R, _ = X_nRC.shape
    return X_nRC.new_empty(n, R, R)


def _launch(X_nRC: Tensor, *, add: bool, b: float, c: float) -> Tensor:
    n, rows, columns = X_nRC.shape
    X_nRC = X_nRC.contiguous()
    out_nRR = X_nRC.new_empty(n, rows, rows)
    block, block_k = BLOCKS[X_nRC.dtype]
    tiles = triton.cdiv(rows, block)
    _gram_tile[(tiles * (tiles + 1) // 2, n)](
        X_nRC,
        out_nRR,
        b,
        c,
        ROWS=rows,
        COLUMNS=columns,
        ADD=add,
        BLOCK=block,
        BLOCK_K=block_k,
        # The interpreter would multiply bfloat16's bit patterns; float32 has the same products.
        WIDEN=interpreted(),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out_nRR

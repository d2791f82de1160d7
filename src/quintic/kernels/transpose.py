"""The transpose of a matrix of one-byte numbers, in tiles that are read and written by whole rows.

PyTorch copies a transposed float8 matrix byte by byte, each to another row of memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 128, 8
"""Rows and columns of a tile: 128 bytes are what one access to memory moves at most. A thread holds
64 numbers of a tile."""


@triton.jit
def _transpose_tile(source_ptr, out_ptr, rows, columns, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tile = tl.load(source_ptr + i[:, None] * columns + j[None, :], mask=inside, other=0)
    inside = (j < columns)[:, None] & (i < rows)[None, :]
    tl.store(out_ptr + j[:, None] * rows + i[None, :], tl.trans(tile), mask=inside)


def transposed(matrix_RC: Tensor) -> Tensor:
    """Return the contiguous transpose, [C, R], of a contiguous matrix of a one-byte type."""
    assert matrix_RC.element_size() == 1 and matrix_RC.is_contiguous()
    rows, columns = matrix_RC.shape
    out_CR = matrix_RC.new_empty(columns, rows)
    _transpose_tile[(triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK))](
        # As bytes: the numbers are moved, not read, and the interpreter knows no float8.
        matrix_RC.view(torch.uint8),
        out_CR.view(torch.uint8),
        rows,
        columns,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return out_CR

"""A parameter as the matrices that Muon orthogonalises: itself, a batch of them, parts of its rows.

Shapes: e matrices in a batch, r rows and c columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Split = int | Sequence[int] | None
"""Parts of a matrix's rows that are orthogonalised apart: their number, their sizes, or one."""


@dataclass(frozen=True)
class Matrices:
    """Says which matrices a parameter is."""

    batch: int | None
    """How many lie along the first axis; None where the first axis is that of the rows."""
    rows: tuple[int, ...]
    """Of each part that is orthogonalised apart."""
    columns: int
    transposed: bool
    """The parameter has them as [c, r]."""

    def views(self, tensor: Tensor, rows: Sequence[int]) -> list[list[Tensor]]:
        """Return the parts [r, c] of every matrix of the parameter, or of what is cut as it is, as
        views.

        `rows` has how many of each part the tensor has, which may be a process's share of a larger
        one. Kernels of a convolution keep their axes.
        """
        if self.transposed:
            tensor = tensor.mT
        each = [tensor] if self.batch is None else tensor.unbind()
        return [list(one.split(list(rows))) for one in each]


def matrices_of(
    shape: Sequence[int], *, flatten: bool = False, split: Split = None, transposed: bool = False
) -> Matrices:
    """Return the matrices of a parameter of this shape.

    (r, c) is one matrix and (e, r, c) a batch of e, such as experts. With `flatten` an (out, in,
    ...) of three axes or more is the one matrix (out, the rest): a convolution, but no transposed
    one, which has (in, out, ...). `split` cuts the
    rows of each matrix, such as those of a fused q, k, v, or of its heads. `transposed` is for
    weights that are stored as [in, out], whose columns are the rows meant here.

    Raises `ValueError` that says which rule a shape breaks.
    """
    if len(shape) < 2 or (len(shape) > 3 and not flatten):
        hint = "" if len(shape) < 2 else "; flatten=True takes a convolution's kernels as one"
        raise ValueError(f"it must be a matrix [r, c] or a batch of them [e, r, c]{hint}")
    if 0 in shape:
        raise ValueError("it is empty")
    if transposed and flatten:
        raise ValueError(
            "transposed=True is for matrices, and flatten=True for convolutions [out, in, ...]; a "
            "transposed one, [in, out, ...], is AdamW's"
        )
    batch, rows, columns = None, shape[0], math.prod(shape[1:])
    if len(shape) == 3 and not flatten:
        batch, rows, columns = shape
    if transposed:
        rows, columns = columns, rows
    if isinstance(split, int):
        if rows % split:
            raise ValueError(f"split={split} does not divide its {rows} rows")
        sizes = [rows // split] * split
    else:
        sizes = [rows] if split is None else list(split)
    if sum(sizes) != rows:
        raise ValueError(f"split={sizes} are {sum(sizes)} rows and it has {rows}")
    return Matrices(batch, tuple(sizes), columns, transposed)

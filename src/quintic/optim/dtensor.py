"""Parameters that are DTensors, such as those of FSDP2 (`fully_shard`): how their matrices lie.

Every placement on a mesh of one or more dimensions: `Replicate`, `Shard` of the rows, the columns
or the matrices of a batch, uneven ones too, and FSDP's `_StridedShard` over tensor parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from quintic.optim.matrices import Matrices
from quintic.optim.whole import Cut, Layout, Replicated, WholeMatrices, chunk_sizes


@dataclass(frozen=True)
class Part:
    """Says how one part of the rows of a parameter's matrices lies over the processes."""

    rows: int
    """How many are here."""
    layout: WholeMatrices | None
    """None where this process has all of it, for itself."""


def local(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_here(gradient: Tensor, p: Tensor) -> Tensor:
    """Return a gradient with the placements of its parameter."""
    if isinstance(gradient, DTensor) and isinstance(p, DTensor):
        return gradient.redistribute(placements=p.placements)
    return gradient


def zeros(p: Tensor, dtype: torch.dtype, column_of: Sequence[int] | None = None) -> Tensor:
    """Return zeros that lie as a parameter does: of its shape, or one column of `column_of`, the
    sizes [..., r, 1], with the rows that the process has and whole where its columns are cut."""
    shape, here = tuple(p.shape), tuple(local(p).shape)
    placements = p.placements if isinstance(p, DTensor) else ()
    if column_of is not None:
        shape, last = tuple(column_of), len(column_of) - 1
        here = (*here[:last], 1)
        placements = tuple(
            Replicate() if getattr(placement, "dim", None) == last else placement
            for placement in placements
        )
    found = torch.zeros(here, dtype=dtype, device=p.device)
    if not isinstance(p, DTensor):
        return found
    meta = torch.empty(shape, device="meta")
    return DTensor.from_local(
        found, p.device_mesh, placements, run_check=False, shape=meta.size(), stride=meta.stride()
    )


def like(value: Tensor, p: Tensor) -> Tensor:
    """Return a whole tensor, which every process has, as the parameter lies."""
    if not isinstance(p, DTensor):
        return value.contiguous()
    return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)


def finite_everywhere(found: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """Return which gradients are finite, of (parameter, gradient), on all their processes."""
    if not found:
        return []
    norms = torch._foreach_norm([_not_empty(local(g)) for _, g in found], math.inf)
    home = norms[0].device
    finite = torch.stack([norm.isfinite().to(home) for norm in norms]).int()
    for mesh in dict.fromkeys(p.device_mesh for p, _ in found if isinstance(p, DTensor)):
        for dimension in range(mesh.ndim):
            dist.all_reduce(finite, dist.ReduceOp.MIN, group=mesh.get_group(dimension))
    return [bool(flag) for flag in finite.tolist()]


def _not_empty(tensor: Tensor) -> Tensor:
    return tensor if tensor.numel() else tensor.new_zeros(1)


def parts_of(p: DTensor, matrices: Matrices) -> list[Part]:
    """Return how each part of the rows that is orthogonalised apart lies over the processes.

    Raises `ValueError` that names a placement which no whole matrix can be had from.
    """
    shared: list[Replicated] = []
    cuts: dict[int, list[int]] = {1: [], 2: []}
    """Dimensions of the mesh that cut the rows and the columns, in the order of cutting."""
    for dimension, placement in enumerate(p.placements):
        if p.device_mesh.size(dimension) == 1:
            continue
        if isinstance(placement, Replicate):
            shared.append(Replicated(p.device_mesh.get_group(dimension)))
            continue
        axis = _axis_of(placement, p, matrices)
        if axis > 0:
            cuts[axis].append(dimension)
    strided = [d for d in cuts[1] if type(p.placements[d]) is not Shard]
    cuts[1] = [d for d in cuts[1] if d not in strided] + strided  # FSDP cuts what is cut already
    columns, _ = _cut(p, 2, cuts[2], 0, matrices.columns, matrices.columns)
    parts = []
    stops = list(accumulate(matrices.rows))
    for start, stop in pairwise([0, *stops]):
        rows, here = _cut(p, 1, cuts[1], start, stop, stops[-1])
        levels: tuple[Cut | Replicated, ...] = (*shared, *reversed(columns), *reversed(rows))
        parts.append(Part(here, Layout(levels) if levels else None))
    return parts


def _axis_of(placement: Placement, p: DTensor, matrices: Matrices) -> int:
    """Return what a placement cuts: 0 the batch, 1 the rows of the matrices, 2 their columns."""
    dim = getattr(placement, "dim", None)
    flattened = matrices.batch is None and p.ndim > 2
    if dim is None or (flattened and dim > 0):
        raise ValueError(f"its placement {placement} leaves no rows or columns to put together")
    axis: int = dim + (matrices.batch is None)
    return 3 - axis if matrices.transposed and axis else axis


def _cut(
    p: DTensor, axis: int, dimensions: list[int], start: int, stop: int, length: int
) -> tuple[list[Cut], int]:
    """Return the cuts of [start, stop) along an axis of `length`, outermost first, and how much of
    it this process has."""

    def inside(bound: int) -> int:
        return min(max(bound, start), stop)

    cuts, low, high = [], 0, length
    for dimension in dimensions:
        sizes = chunk_sizes(high - low, p.device_mesh.size(dimension))
        bounds = list(accumulate(sizes, initial=low))
        own = tuple(inside(b) - inside(a) for a, b in pairwise(bounds))
        cuts.append(Cut(p.device_mesh.get_group(dimension), axis, own))
        place = p.device_mesh.get_local_rank(dimension)
        low, high = bounds[place], bounds[place + 1]
    return cuts, inside(high) - inside(low)

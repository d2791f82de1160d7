"""A plan of which rank owns which part of the optimizer's work: no tensors, no communication.

ZeRO stage 1 (Rajbhandari et al., https://arxiv.org/abs/1910.02054) with Muon's constraint: a matrix
is orthogonalised whole, so it has one owner; what AdamW updates element by element is cut by rows.
Every rank has all weights; the state of the optimizer exists once across the ranks.

A bucket is what one pair of collectives carries: gradients to their owners, updated weights back.
Matrices of one shape are dealt out N at a time, one to each of N ranks, so that in most models
every rank gets the same work and no byte is padding; what does not deal out evenly is left to a
last bucket, heaviest first to whoever has least (longest processing time first, Graham 1969).
`docs/muon.md` has the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quintic.optim.matrix_optimizer import facts_of
from quintic.optim.newton_schulz import newton_schulz_flops
from quintic.optim.param_groups import ParamSpec

BUCKET_ELEMENTS = 2**24
"""Elements of a bucket, about: large enough to use the links, small enough that the first is on
its way while the backward pass still computes the others."""


@dataclass(frozen=True)
class Piece:
    """Names rows [start, stop) of a parameter; of a vector, elements."""

    name: str
    shape: tuple[int, ...]
    """The whole parameter's."""
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Return how many numbers this is."""
        return (self.stop - self.start) * math.prod(self.shape[1:])


@dataclass(frozen=True)
class Bucket:
    """Names parameters that travel together."""

    pieces: tuple[tuple[Piece, ...], ...]
    """What each rank owns."""
    ready: int
    """Place in the model of the earliest parameter: the backward pass finishes that one last."""

    @property
    def rank_elements(self) -> int:
        """Return L, the elements of one rank's share, padded to the largest."""
        return max(sum(piece.elements for piece in own) for own in self.pieces)

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the parameters."""
        return frozenset(piece.name for own in self.pieces for piece in own)


def plan_buckets(specs: Sequence[ParamSpec], size: int) -> list[Bucket]:
    """Return the buckets for `size` ranks, in the order in which the backward pass fills them.

    They depend on names, shapes and optimizers only, so every rank makes the same plan.
    """
    elementwise = {name: facts_of(name).elementwise for name in {s.optimizer for s in specs}}
    whole = [item for item in enumerate(specs) if not elementwise[item[1].optimizer]]
    by_rows = [item for item in enumerate(specs) if elementwise[item[1].optimizer]]
    buckets = _deal_matrices(whole, size) + _cut_rows(by_rows, size)
    return sorted(buckets, key=lambda bucket: -bucket.ready)


def _deal_matrices(specs: list[tuple[int, ParamSpec]], size: int) -> list[Bucket]:
    by_shape: dict[tuple[int, ...], list[tuple[int, ParamSpec]]] = {}
    for place, spec in reversed(specs):
        by_shape.setdefault(spec.shape, []).append((place, spec))
    buckets, left_over = [], []
    for shape, same in by_shape.items():
        even = len(same) // size * size
        per_bucket = size * max(1, BUCKET_ELEMENTS // (size * math.prod(shape)))
        for start in range(0, even, per_bucket):
            dealt = same[start : min(start + per_bucket, even)]
            buckets.append(_bucket([dealt[rank::size] for rank in range(size)]))
        left_over += same[even:]
    if left_over:
        own: list[list[tuple[int, ParamSpec]]] = [[] for _ in range(size)]
        load = [0.0] * size
        for place, spec in sorted(left_over, key=lambda item: -_flops(item[1])):
            rank = min(range(size), key=lambda rank: load[rank])
            own[rank].append((place, spec))
            load[rank] += _flops(spec)
        buckets.append(_bucket(own))
    return buckets


def _flops(spec: ParamSpec) -> float:
    return newton_schulz_flops(*spec.shape)


def _bucket(own: list[list[tuple[int, ParamSpec]]]) -> Bucket:
    return Bucket(
        tuple(
            tuple(
                Piece(spec.name, spec.shape, 0, spec.shape[0])
                for _, spec in sorted(mine, key=lambda item: item[0])
            )
            for mine in own
        ),
        min(place for mine in own for place, _ in mine),
    )


def _cut_rows(specs: list[tuple[int, ParamSpec]], size: int) -> list[Bucket]:
    groups: list[list[tuple[int, ParamSpec]]] = []
    elements = BUCKET_ELEMENTS
    for place, spec in reversed(specs):
        if elements + math.prod(spec.shape) > BUCKET_ELEMENTS:
            groups.append([])
            elements = 0
        groups[-1].append((place, spec))
        elements += math.prod(spec.shape)
    return [
        Bucket(
            tuple(
                tuple(
                    Piece(spec.name, spec.shape, start, stop)
                    for _, spec in group
                    for start, stop in [row_range(spec.shape[0], rank, size)]
                    if stop > start
                )
                for rank in range(size)
            ),
            min(place for place, _ in group),
        )
        for group in groups
    ]


def row_range(rows: int, rank: int, size: int) -> tuple[int, int]:
    """Return the rows of a rank, ceil(rows / size) each and the last ones fewer or none, as
    `torch.chunk` and DTensor's `Shard(0)` cut them."""
    each = -(-rows // size)
    return min(rank * each, rows), min((rank + 1) * each, rows)

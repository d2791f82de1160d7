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


Owned = list[list[Piece]]
"""What each rank owns of a bucket."""


def plan_buckets(specs: Sequence[ParamSpec], size: int) -> list[Bucket]:
    """Return the buckets for `size` ranks, in the order in which the backward pass fills them.

    They depend on names, shapes and optimizers only, so every rank makes the same plan.
    """
    place = {spec.name: number for number, spec in enumerate(specs)}
    elementwise = {name: facts_of(name).elementwise for name in {s.optimizer for s in specs}}
    whole = [spec for spec in reversed(specs) if not elementwise[spec.optimizer]]
    by_rows = [spec for spec in reversed(specs) if elementwise[spec.optimizer]]
    dealt = [
        [sorted(own, key=lambda piece: place[piece.name]) for own in owned]
        for owned in _deal_matrices(whole, size)
    ]
    buckets = [
        Bucket(tuple(map(tuple, owned)), min(place[piece.name] for own in owned for piece in own))
        for owned in dealt + _cut_rows(by_rows, size)
    ]
    return sorted(buckets, key=lambda bucket: -bucket.ready)


def _deal_matrices(specs: list[ParamSpec], size: int) -> list[Owned]:
    by_shape: dict[tuple[int, ...], list[Piece]] = {}
    for spec in specs:
        piece = Piece(spec.name, spec.shape, 0, spec.shape[0])
        by_shape.setdefault(spec.shape, []).append(piece)
    buckets, left_over = [], []
    for shape, same in by_shape.items():
        even = len(same) // size * size
        per_bucket = size * max(1, BUCKET_ELEMENTS // (size * math.prod(shape)))
        for start in range(0, even, per_bucket):
            dealt = same[start : min(start + per_bucket, even)]
            buckets.append([dealt[rank::size] for rank in range(size)])
        left_over += same[even:]
    if left_over:
        own: Owned = [[] for _ in range(size)]
        load = [0.0] * size
        for piece in sorted(left_over, key=_flops, reverse=True):
            rank = min(range(size), key=lambda rank: load[rank])
            own[rank].append(piece)
            load[rank] += _flops(piece)
        buckets.append(own)
    return buckets


def _flops(matrix: Piece) -> float:
    return newton_schulz_flops(*matrix.shape)


def _cut_rows(specs: list[ParamSpec], size: int) -> list[Owned]:
    groups: list[list[ParamSpec]] = []
    elements = BUCKET_ELEMENTS
    for spec in specs:
        if elements + math.prod(spec.shape) > BUCKET_ELEMENTS:
            groups.append([])
            elements = 0
        groups[-1].append(spec)
        elements += math.prod(spec.shape)
    return [[_rows_of(rank, size, group) for rank in range(size)] for group in groups]


def _rows_of(rank: int, size: int, specs: list[ParamSpec]) -> list[Piece]:
    """Return a rank's rows: ceil(rows / size) of each parameter and on the last ranks fewer or
    none, as `torch.chunk` and DTensor's `Shard(0)` cut them."""
    pieces = []
    for spec in specs:
        rows = spec.shape[0]
        each = -(-rows // size)
        start, stop = min(rank * each, rows), min((rank + 1) * each, rows)
        pieces.append(Piece(spec.name, spec.shape, start, stop))
    return [piece for piece in pieces if piece.elements]

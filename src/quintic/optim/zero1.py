"""Which rank owns which part of the optimizer's work: a plan, without tensors or communication.

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

from quintic.optim.param_groups import ParamSpec

ELEMENTWISE = frozenset({"adamw", "sgd"})
"""Optimizers whose update of an element depends on that element alone: these may be cut by rows."""

BUCKET_ELEMENTS = 2**24
"""Elements of a bucket, about: large enough to use the links, small enough that the first is on
its way while the backward pass still computes the others."""


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a parameter; of a vector, elements."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """How many numbers this is."""
        return (self.stop - self.start) * math.prod(self.shape[1:])


@dataclass(frozen=True)
class Bucket:
    """Parameters that travel together."""

    pieces: tuple[tuple[Piece, ...], ...]
    """For each rank what it owns."""
    ready: int
    """Place in the model of the earliest parameter: the backward pass finishes that one last."""

    @property
    def rank_elements(self) -> int:
        """L, elements of one rank's share, padded to the largest."""
        return max(sum(piece.elements for piece in own) for own in self.pieces)

    @property
    def names(self) -> frozenset[str]:
        """The parameters."""
        return frozenset(piece.name for own in self.pieces for piece in own)


def newton_schulz_flops(rows: int, columns: int, steps: int = 5) -> float:
    """Floating-point operations to orthogonalise one matrix: per step X X^T, A A and B X, with
    R = min(rows, columns) and C = max: 2 R R C + 2 R R R + 2 R R C."""
    R, C = min(rows, columns), max(rows, columns)
    return steps * (4.0 * R * R * C + 2.0 * R**3)


def plan_buckets(specs: Sequence[ParamSpec], size: int) -> list[Bucket]:
    """The buckets of a model for `size` ranks, in the order in which the backward pass fills them.

    Depends on names, shapes and optimizers only, so every rank makes the same plan.
    """
    whole = [(i, r) for i, r in enumerate(specs) if r.optimizer not in ELEMENTWISE]
    by_rows = [(i, r) for i, r in enumerate(specs) if r.optimizer in ELEMENTWISE]
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
                Piece(r.name, r.shape, 0, r.shape[0]) for _, r in sorted(mine, key=lambda i: i[0])
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
    """The rows of a rank: ceil(rows / size) each, the last ones fewer or none, as `torch.chunk`
    and DTensor's `Shard(0)` cut them."""
    each = -(-rows // size)
    return min(rank * each, rows), min((rank + 1) * each, rows)


@dataclass(frozen=True)
class ShareReport:
    """What a plan costs, counted from it."""

    size: int
    sent_bytes: int
    """Bytes that each rank sends in a step: gradients to owners and weights back."""
    bound_bytes: int
    """The same without padding: no plan in which every rank ends with all weights sends less."""
    flops: tuple[float, ...]
    """Newton-Schulz operations of each rank."""
    state_elements: tuple[int, ...]
    """Elements of optimizer state on each rank: one for each of Muon's, two for AdamW's."""

    @property
    def balance(self) -> float:
        """Largest over mean of the ranks' operations; 1 where Muon has nothing."""
        mean = sum(self.flops) / self.size
        return max(self.flops) / mean if mean else 1.0


def share_report(specs: Sequence[ParamSpec], size: int, element_bytes: int = 4) -> ShareReport:
    """Count bytes, operations and memory of the plan for `size` ranks."""
    buckets = plan_buckets(specs, size)
    optimizer = {spec.name: spec.optimizer for spec in specs}
    flops, state = [0.0] * size, [0] * size
    for bucket in buckets:
        for rank, own in enumerate(bucket.pieces):
            for piece in own:
                muon = optimizer[piece.name] == "muon"
                flops[rank] += newton_schulz_flops(*piece.shape) if muon else 0.0
                state[rank] += piece.elements * (1 if muon else 2)
    others = 2 * (size - 1) * element_bytes
    return ShareReport(
        size,
        sum(bucket.rank_elements for bucket in buckets) * others,
        sum(math.prod(spec.shape) for spec in specs) * others // size,
        tuple(flops),
        tuple(state),
    )

"""Whole matrices from the parts that processes have, and back.

Shapes: n matrices [r, c] of one shape, of which this process has l rows, or m columns, or all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from quintic.distributed.world import all_gather, exchange

Orthogonalize = Callable[[Tensor], Tensor]
"""From whole matrices [n, r, c] to as many of the same shape and type."""


Turns = dict[object, int]
"""How many matrices were dealt out in this step, by the groups of ranks among which. There all have
the same number, and other ranks may have another one: where each has experts of its own."""


class WholeMatrices(Protocol):
    """Does what needs whole matrices, for stacks of which every process has parts, or all."""

    def apply(self, function: Orthogonalize, part: Tensor, *, rows: int, turns: Turns) -> Tensor:
        """Apply a function to whole matrices [n, rows, c]; return this process's part of each.

        `turns` is kept for a step, so that the ranks take turns.
        """

    def norm(self, part: Tensor) -> Tensor:
        """Return the Frobenius norm of each whole matrix, [n, 1, 1]."""

    def row_mean(self, part: Tensor) -> Tensor:
        """Return the mean of each whole row, [n, l, 1]."""


def shares(count: int, ranks: int, dealt: int) -> list[int]:
    """Return how many of a stack's matrices each rank gets, the next in turn after `dealt` others.

    A matrix whose shape no other has would always be the first rank's, were the turn not kept.
    """
    each, left = divmod(count, ranks)
    return [each + ((rank - dealt) % ranks < left) for rank in range(ranks)]


def chunk_sizes(length: int, parts: int) -> list[int]:
    """Return the sizes of `torch.chunk` and of DTensor's `Shard`: the last are smaller or zero."""
    each = -(-length // parts)
    return [max(0, min(each, length - part * each)) for part in range(parts)]


def at_owners(
    function: Orthogonalize,
    part: Tensor,
    *,
    axis: int,
    sizes: Sequence[int],
    rank: int,
    exchange: Callable[[Sequence[Tensor], Sequence[Sequence[int]]], list[Tensor]],
    counts: Sequence[int],
) -> Tensor:
    """Apply a function to n matrices of which every rank has a part along `axis`, of these sizes.

    The matrices are dealt out, to each rank as many as `counts` says: it gets the parts of its own
    ones from all others, applies the function, and sends the parts back. Each matrix travels twice,
    as much as a gradient's reduce-scatter and a weight's all-gather. `exchange` sends a tensor to
    each rank and returns those that came, of the given shapes.
    """
    shapes = [list(part.shape) for _ in sizes]
    for shape, size in zip(shapes, sizes, strict=True):
        shape[0], shape[axis] = counts[rank], size
    whole = torch.cat(exchange(part.split(counts), shapes), dim=axis)
    done = function(whole) if len(whole) else whole
    shapes = [[count, *part.shape[1:]] for count in counts]
    return torch.cat(exchange(done.split(list(sizes), dim=axis), shapes))


@dataclass(frozen=True)
class Cut:
    """Says that matrices are cut along an axis over the ranks of a group."""

    group: Any
    axis: int
    sizes: tuple[int, ...]

    def apply(self, function: Orthogonalize, part: Tensor, *, dealt: int) -> Tensor:
        """Apply a function to the matrices that the group has together."""
        return at_owners(
            function,
            part,
            axis=self.axis,
            sizes=self.sizes,
            rank=dist.get_rank(self.group),
            exchange=partial(exchange, group=self.group),
            counts=shares(len(part), len(self.sizes), dealt),
        )

    def sum(self, sums: Tensor) -> Tensor:
        """Return the sum over the parts, which it changes."""
        dist.all_reduce(sums, group=self.group)
        return sums


@dataclass(frozen=True)
class Replicated:
    """Says that all ranks of a group have the same, and share the work on it."""

    group: Any

    def apply(self, function: Orthogonalize, part: Tensor, *, dealt: int) -> Tensor:
        """Apply a function to some of the matrices on each rank, and give the results to all."""
        counts = shares(len(part), dist.get_world_size(self.group), dealt)
        own = part.split(counts)[dist.get_rank(self.group)]
        done = function(own) if len(own) else own
        padded = F.pad(done, (0, 0, 0, 0, 0, max(counts) - len(own))).contiguous()
        found = all_gather(padded, self.group).split(max(counts))
        return torch.cat([of[:count] for of, count in zip(found, counts, strict=True)])


@dataclass(frozen=True)
class Layout:
    """Brings matrices together that lie over the ranks of several groups, one within the other."""

    levels: tuple[Cut | Replicated, ...]
    """What is shared first, then the innermost cut."""

    def apply(self, function: Orthogonalize, part: Tensor, *, rows: int, turns: Turns) -> Tensor:
        """Apply a function to whole matrices [n, rows, c]; return this process's part of each."""
        among = tuple((type(level), level.group) for level in self.levels)
        dealt = turns.get(among, 0)
        turns[among] = dealt + len(part)
        for level in reversed(self.levels):
            function = partial(level.apply, function, dealt=dealt)
        return function(part)

    def norm(self, part: Tensor) -> Tensor:
        """Return the Frobenius norm of each whole matrix, [n, 1, 1]."""
        return self._sum(part.square().sum(dim=(-2, -1), keepdim=True), axes=(1, 2)).sqrt()

    def row_mean(self, part: Tensor) -> Tensor:
        """Return the mean of each whole row, [n, l, 1]."""
        # A rank without a column adds zero: all of a group take part in each sum.
        columns = self._sum(part.new_full((1, 1, 1), part.shape[-1]), axes=(2,))
        return self._sum(part.sum(dim=-1, keepdim=True), axes=(2,)) / columns

    def _sum(self, sums: Tensor, axes: tuple[int, ...]) -> Tensor:
        for level in self.levels:
            if isinstance(level, Cut) and level.axis in axes:
                sums = level.sum(sums)
        return sums


def is_default(group: Any) -> bool:
    """Return whether it is the default process group, for which True stands and can be pickled."""
    return group is not None and group is dist.group.WORLD


def may_share(group: Any) -> bool:
    """Return whether work can be shared within this: a process group, or True, or nothing."""
    return group is None or isinstance(group, bool | dist.ProcessGroup)


def shared_work(group: Any) -> Layout | None:
    """Return what shares the work on whole matrices within a group; True is the default one."""
    if group is True:
        group = dist.group.WORLD if dist.is_initialized() else None
    if not group or dist.get_world_size(group) == 1:
        return None
    return Layout((Replicated(group),))

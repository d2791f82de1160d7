"""ZeRO stage 1: gradients are summed at the owner of a parameter, which updates it for all.

What belongs to whom says `bucket_plan.py`. Shapes: N processes, L elements of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from quintic.distributed.world import AsyncCollective, World
from quintic.optim.bucket_plan import Bucket, Piece, plan_buckets
from quintic.optim.param_groups import ParamSpec
from quintic.optim.step import BuildOptimizers, Stepper, clip_shards, require_gradients


class Zero1Stepper(Stepper):
    """Sums the gradients of all ranks' sequences at their owners, which update.

    While the last backward pass runs, each bucket that is complete starts on its way to its owners.
    Owners update their pieces bucket by bucket, and send the new weights back while they compute
    the next. `parameters` are the model's, the same on all ranks, and `specs` those of all of them;
    `build` gives the optimizers of the pieces that this rank owns.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        specs: Sequence[ParamSpec],
        build: BuildOptimizers,
        world: World,
    ) -> None:
        self._world = world
        by_name = {spec.name: spec for spec in specs}
        self._buckets = [
            _Bucket(bucket, parameters, by_name, build, world)
            for bucket in plan_buckets(specs, world.size)
        ]
        self.optimizers = [o for bucket in self._buckets for o in bucket.optimizers]
        self._requires_gradient_sync = False
        self._launched = 0
        for bucket in self._buckets:
            for name in bucket.plan.names:
                parameters[name].register_post_accumulate_grad_hook(self._hook(bucket, name))

    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None:
        """Let complete buckets leave as soon as it is their turn, in the last pass only."""
        self._requires_gradient_sync, self._launched = requires_gradient_sync, 0

    def _hook(self, bucket: _Bucket, name: str) -> Callable[[Tensor], None]:
        def accumulated(parameter: Tensor) -> None:
            if not self._requires_gradient_sync:
                return
            bucket.missing.discard(name)
            # In the plan's order, since all ranks must start the same collectives one by one.
            while self._launched < len(self._buckets) and not self._buckets[self._launched].missing:
                self._buckets[self._launched].send_gradients()
                self._launched += 1

        return accumulated

    def step(self, clip_norm: float | None) -> Tensor | None:
        """Receive, clip, update and give back, a bucket at a time."""
        unsent = self._buckets[self._launched :]
        require_gradients(name for bucket in unsent for name in sorted(bucket.missing))
        self._requires_gradient_sync = False
        norm = None
        if clip_norm is not None:
            gradients = [g for bucket in self._buckets for g in bucket.receive_gradients()]
            norm = clip_shards(gradients, clip_norm, self._buckets[0].like, self._world)
        for bucket in self._buckets:
            bucket.update()
        for bucket in self._buckets:
            bucket.receive_weights()
        return norm


class _Bucket:
    """Carries and updates one bucket on one rank."""

    def __init__(
        self,
        plan: Bucket,
        parameters: Mapping[str, nn.Parameter],
        specs: Mapping[str, ParamSpec],
        build: BuildOptimizers,
        world: World,
    ) -> None:
        self.plan, self._world = plan, world
        self.missing = set(plan.names)
        self._parameters = {name: parameters[name] for name in plan.names}
        first = next(iter(self._parameters.values()))
        self.like = first.detach()
        self._own = plan.pieces[world.rank]
        # Views: updating one of these updates those rows of the model.
        self._shards = {
            piece.name: nn.Parameter(parameters[piece.name].detach()[piece.start : piece.stop])
            for piece in self._own
        }
        self.optimizers = build(self._shards, [specs[p.name] for p in self._own])
        self._gradients: AsyncCollective | None = None
        self._weights: AsyncCollective | None = None

    def send_gradients(self) -> None:
        """Start the sum of all ranks' gradients on its way to their owners."""
        parts_NL = self._empty()
        for part_L, pieces in zip(parts_NL, self.plan.pieces, strict=True):
            _copy(_split(part_L, pieces), [_rows(self._gradient(p.name), p) for p in pieces])
        for parameter in self._parameters.values():
            parameter.grad = None
        self._gradients = self._world.reduce_scatter(parts_NL)
        self.missing = set(self.plan.names)

    def _gradient(self, name: str) -> Tensor:
        gradient = self._parameters[name].grad
        assert gradient is not None, "its hook has run"
        return gradient

    def receive_gradients(self) -> list[Tensor]:
        """Put the summed gradients of this rank's pieces where its optimizers find them."""
        if self._gradients is not None:
            sum_L = self._gradients.wait()
            self._gradients = None
            for piece, part in zip(self._own, _split(sum_L, self._own), strict=True):
                self._shards[piece.name].grad = part
        return [shard.grad for shard in self._shards.values() if shard.grad is not None]

    def update(self) -> None:
        """Update this rank's pieces and start them on their way to all."""
        self.receive_gradients()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        parts_NL = self._empty()
        own_L = parts_NL[self._world.rank]
        _copy(_split(own_L, self._own), [shard.detach() for shard in self._shards.values()])
        self._weights = self._world.all_gather(parts_NL)

    def receive_weights(self) -> None:
        """Put the other ranks' updated pieces into the model."""
        assert self._weights is not None, "update comes first"
        parts_NL, self._weights = self._weights.wait(), None
        targets, sources = [], []
        for rank, pieces in enumerate(self.plan.pieces):
            if rank != self._world.rank:
                targets += [_rows(self._parameters[p.name].detach(), p) for p in pieces]
                sources += _split(parts_NL[rank], pieces)
        _copy(targets, sources)

    def _empty(self) -> Tensor:
        # Ranks with less than the largest share send padding as it lies, which nobody reads.
        return self.like.new_empty(self._world.size, self.plan.rank_elements)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


def _rows(tensor: Tensor, piece: Piece) -> Tensor:
    return tensor[piece.start : piece.stop]


def _split(part_L: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    """Return a rank's share as its pieces, each in its shape."""
    used = sum(piece.elements for piece in pieces)
    parts = part_L[:used].split([piece.elements for piece in pieces]) if pieces else ()
    return [
        part.view(piece.stop - piece.start, *piece.shape[1:])
        for part, piece in zip(parts, pieces, strict=True)
    ]

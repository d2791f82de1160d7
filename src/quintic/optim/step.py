"""From accumulated gradients to updated weights: on one process, and sharded over several.

The loop calls `expect` before the last backward pass of a step and `step` after it. What is in
between, and whether other processes have a part in it, it does not know.

Shapes: N processes, L elements of one of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from quintic.distributed.world import AsyncCollective, World
from quintic.optim.param_groups import ParamSpec
from quintic.optim.zero1 import Bucket, Piece, plan_buckets

BuildOptimizers = Callable[
    [Mapping[str, nn.Parameter], Sequence[ParamSpec]], list[torch.optim.Optimizer]
]
"""Optimizers over the given parameters, by name, with the settings of their routes."""

CLIP_EPS = 1e-6
"""Added to the norm that is divided by, as in `torch.nn.utils.clip_grad_norm_`."""


class Stepper(ABC):
    """Applies the optimizers to the gradient that the backward passes accumulated."""

    optimizers: list[torch.optim.Optimizer]

    @abstractmethod
    def set_requires_gradient_sync(self, last: bool) -> None:
        """The next backward pass is, or is not, the last of the step."""

    @abstractmethod
    def step(self, clip_norm: float | None) -> Tensor | None:
        """Update all weights and drop the gradients; returns the gradient's norm where clipping
        needed it."""


class LocalStepper(Stepper):
    """One process, or all parameters on every one.

    With `keep_gradients` the gradients stay where they are in memory and are set to zero: what a
    CUDA graph computed is overwritten by its next replay, unless it was added to something.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        specs: Sequence[ParamSpec],
        build: BuildOptimizers,
        *,
        keep_gradients: bool = False,
    ) -> None:
        self.optimizers = build(parameters, specs)
        self._parameters = list(parameters.values())
        self._keep_gradients = keep_gradients
        if keep_gradients:
            for p in self._parameters:
                p.grad = torch.zeros_like(p)

    def set_requires_gradient_sync(self, last: bool) -> None:
        """Gradients accumulate in `.grad` and stay there."""

    def step(self, clip_norm: float | None) -> Tensor | None:
        """Clip, update, drop."""
        norm = None
        if clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=not self._keep_gradients)
        return norm


def clip_shards(gradients: list[Tensor], clip_norm: float, like: Tensor, world: World) -> Tensor:
    """Clip gradients whose other parts are on other ranks; returns the norm over all of them."""
    total = like.new_zeros(())
    if gradients:
        total = total + torch.stack(torch._foreach_norm(gradients)).square().sum()
    norm = world.all_reduce(total).sqrt()
    if gradients:
        torch._foreach_mul_(gradients, (clip_norm / (norm + CLIP_EPS)).clamp(max=1.0))
    return norm


class Zero1Stepper(Stepper):
    """Every rank computes the gradient of its own sequences; owners add up and update.

    While the last backward pass runs, each bucket that is complete starts on its way to its owners.
    Owners update their pieces bucket by bucket, and send the new weights back while they compute
    the next.

    Args:
        parameters: the model's, the same on all ranks.
        routes: of all parameters.
        build: gives the optimizers of the pieces that this rank owns.
        world: the ranks.
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
        self._last = False
        self._launched = 0
        for bucket in self._buckets:
            for name in bucket.plan.names:
                parameters[name].register_post_accumulate_grad_hook(self._hook(bucket))

    def set_requires_gradient_sync(self, last: bool) -> None:
        """From the last pass on, complete buckets leave as soon as it is their turn."""
        self._last, self._launched = last, 0

    def _hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def accumulated(parameter: Tensor) -> None:
            if not self._last:
                return
            bucket.missing -= 1
            # In the plan's order, since all ranks must start the same collectives one by one.
            while (
                self._launched < len(self._buckets) and self._buckets[self._launched].missing == 0
            ):
                self._buckets[self._launched].send_gradients()
                self._launched += 1

        return accumulated

    def step(self, clip_norm: float | None) -> Tensor | None:
        """Receive, clip, update and give back, a bucket at a time."""
        assert self._launched == len(self._buckets), "a parameter has no gradient"
        self._last = False
        norm = self._clip(clip_norm) if clip_norm is not None else None
        for bucket in self._buckets:
            bucket.update()
        for bucket in self._buckets:
            bucket.receive_weights()
        return norm

    def _clip(self, clip_norm: float) -> Tensor:
        gradients = [g for bucket in self._buckets for g in bucket.receive_gradients()]
        return clip_shards(gradients, clip_norm, self._buckets[0].like, self._world)


class _Bucket:
    """One bucket at work on one rank."""

    def __init__(
        self,
        plan: Bucket,
        parameters: Mapping[str, nn.Parameter],
        specs: Mapping[str, ParamSpec],
        build: BuildOptimizers,
        world: World,
    ) -> None:
        self.plan, self._world = plan, world
        self.missing = len(plan.names)
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
        parts_NL = self._pack(lambda piece: _rows(self._gradient(piece.name), piece))
        for p in self._parameters.values():
            p.grad = None
        self._gradients = self._world.reduce_scatter(parts_NL)
        self.missing = len(self.plan.names)

    def _gradient(self, name: str) -> Tensor:
        gradient = self._parameters[name].grad
        assert gradient is not None, "its hook has run"
        return gradient

    def receive_gradients(self) -> list[Tensor]:
        """The summed gradients of this rank's pieces, put where its optimizers find them."""
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
        self._fill(parts_NL[self._world.rank], [s.detach() for s in self._shards.values()])
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
        if targets:
            torch._foreach_copy_(targets, sources)

    def _pack(self, rows_of: Callable[[Piece], Tensor]) -> Tensor:
        parts_NL = self._empty()
        for part_L, pieces in zip(parts_NL, self.plan.pieces, strict=True):
            self._fill(part_L, [rows_of(piece) for piece in pieces])
        return parts_NL

    def _fill(self, part_L: Tensor, tensors: Sequence[Tensor]) -> None:
        filled = sum(t.numel() for t in tensors)
        if tensors:
            targets = part_L[:filled].split([t.numel() for t in tensors])
            torch._foreach_copy_(list(targets), [t.reshape(-1) for t in tensors])
        part_L[filled:].zero_()

    def _empty(self) -> Tensor:
        shape = (self._world.size, self.plan.rank_elements)
        return self.like.new_empty(shape)


def _rows(tensor: Tensor, piece: Piece) -> Tensor:
    return tensor[piece.start : piece.stop]


def _split(part_L: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    """A rank's share as its pieces, each in its shape."""
    used = sum(piece.elements for piece in pieces)
    parts = part_L[:used].split([piece.elements for piece in pieces]) if pieces else ()
    return [
        part.view(piece.stop - piece.start, *piece.shape[1:])
        for part, piece in zip(parts, pieces, strict=True)
    ]

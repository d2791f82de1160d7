"""Models that do not fit on one device: every rank holds some rows of each parameter.

PyTorch's fully sharded data parallel (FSDP2, `fully_shard`) brings a block's weights together when
it is computed and sums its gradients into rows again. The optimizers work on the rows a rank has;
Muon's orthogonalisation alone needs whole matrices, and gets each on one rank by an all-to-all.

Shapes: N ranks, n matrices [r, c] of one shape, l rows of them on this rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from quintic.distributed.world import World, local_rows
from quintic.model.base import LanguageModel
from quintic.optim.matrix_optimizer import facts_of
from quintic.optim.param_groups import ParamSpec
from quintic.optim.step import BuildOptimizers, Stepper, clip_shards, require_gradients
from quintic.optim.whole import Orthogonalize, Turns, at_owners, chunk_sizes, shares


def shard_model(model: LanguageModel, world: World, device: torch.device) -> None:
    """Keep this rank's rows of every parameter; the blocks are gathered one at a time."""
    # PyTorch 2.13 warns of what would go wrong if a block's output were changed in place; none is.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    mesh = init_device_mesh(device.type, (world.size,))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss", "score_targets"):
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are already shares of the global mean, so gradients are summed as they are.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


class WholeAtOwners:
    """Brings matrices together of which every rank has some rows, for Muon."""

    def __init__(self, world: World) -> None:
        self._world = world

    def norm(self, part_nlc: Tensor) -> Tensor:
        """Return the Frobenius norm of each whole matrix, [n, 1, 1]."""
        squares_n11 = part_nlc.square().sum(dim=(-2, -1), keepdim=True)
        return self._world.all_reduce(squares_n11).sqrt()

    def row_mean(self, part_nlc: Tensor) -> Tensor:
        """Return the mean of each row, [n, l, 1]: rows are whole."""
        return part_nlc.mean(dim=-1, keepdim=True)

    def apply(
        self, function: Orthogonalize, part_nlc: Tensor, *, rows: int, turns: Turns
    ) -> Tensor:
        """Apply `function` to n matrices of `rows` rows; l of each are here and come back."""
        world, dealt = self._world, turns.get(self, 0)
        turns[self] = dealt + len(part_nlc)
        return at_owners(
            function,
            part_nlc,
            axis=1,
            sizes=chunk_sizes(rows, world.size),
            rank=world.rank,
            exchange=world.exchange,
            counts=shares(len(part_nlc), world.size, dealt),
        )


class FsdpStepper(Stepper):
    """Updates this rank's rows; FSDP has summed their gradients in the last backward pass."""

    def __init__(
        self,
        model: LanguageModel,
        specs: Sequence[ParamSpec],
        build: BuildOptimizers,
        world: World,
    ) -> None:
        for name in {spec.optimizer for spec in specs}:
            facts_of(name).check_sharding(name)
        self._model, self._world = model, world
        self._parameters = dict(model.named_parameters())
        self._shards = {name: nn.Parameter(local_rows(p)) for name, p in self._parameters.items()}
        # A rank without rows of a matrix may yet take part in gathering those of others.
        here = [s for s in specs if facts_of(s.optimizer).gathers or len(self._shards[s.name])]
        self.optimizers = build(self._shards, here)

    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None:
        """Let gradients accumulate unreduced until the last pass."""
        model = self._model
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(requires_gradient_sync)
        model.set_is_last_backward(requires_gradient_sync)

    def step(self, clip_norm: float | None) -> Tensor | None:
        """Clip over all ranks and update; drop the gradients."""
        require_gradients(name for name, p in self._parameters.items() if p.grad is None)
        for name, p in self._parameters.items():
            self._shards[name].grad = None if p.grad is None else local_rows(p.grad)
        gradients = [s.grad for s in self._shards.values() if s.grad is not None and s.numel()]
        norm = None
        if clip_norm is not None:
            like = next(iter(self._shards.values())).detach()
            norm = clip_shards(gradients, clip_norm, like, self._world)
        for optimizer in self.optimizers:
            optimizer.step()
        for name, p in self._parameters.items():
            p.grad = self._shards[name].grad = None
        return norm

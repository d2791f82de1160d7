"""Muon on several processes in a loop of one's own: under DDP, and with DTensors as FSDP2 has."""

from __future__ import annotations

import copy
import math
import pickle
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from quintic.distributed.world import World
from quintic.optim import whole
from quintic.optim.muon import Muon
from quintic.optim.whole import Orthogonalize
from tests.multiprocess.worlds import run_world

STEPS = 3
BATCH = 12
"""Sequences of the whole batch: 1 to 4 processes divide it."""


def start(sizes: tuple[int, ...], seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(sizes, generator=random, dtype=torch.float64)


class Net(nn.Module):
    """A fused q, k, v, experts, kernels, matrices of one shape, and one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(start((21, 10), 7))
        self.up, self.gate, self.frozen = (nn.Parameter(start((7, 10), i)) for i in range(3))
        self.frozen.requires_grad_(False)
        self.experts = nn.Parameter(start((3, 5, 7), 8))
        self.kernels = nn.Parameter(start((5, 2, 3, 3), 9))

    def forward(self, x_BD: Tensor) -> Tensor:
        q, k, v = (x_BD @ self.qkv.T).chunk(3, -1)
        hidden = F.silu(x_BD @ self.gate.T) * (x_BD @ self.up.T) + q * k.tanh() + v
        outputs = torch.einsum("bd,eod->beo", hidden, self.experts).tanh().sum(1)
        loss: Tensor = (outputs @ self.kernels.flatten(1)).square().mean()
        return loss


def groups_of(net: nn.Module) -> list[dict[str, Any]]:
    named = {name.removeprefix("module."): p for name, p in net.named_parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [(n, named[n]) for n in ("up", "gate", "frozen", "experts")]},
        {"params": [("qkv", named["qkv"])], "split": [8, 8, 5]},
        {"params": [("kernels", named["kernels"])], "flatten": True},
    ]
    return groups


def muon_of(net: nn.Module, **options: Any) -> Muon:
    common = {"lr": 0.1, "scale": "aspect", "weight_decay": 0.1, "normuon": True}
    return Muon(groups_of(net), **{**common, **options})


def train(net: nn.Module, muon: Muon, world: World, first: int = 0, last: int = STEPS) -> None:
    for step in range(first, last):
        muon.zero_grad()
        net(start((BATCH, 10), 50 + step).chunk(world.size)[world.rank]).backward()
        muon.step()


Weights = dict[str, Any]
"""By name, as arrays: a tensor that another process sent does not outlive it."""


def weights(net: nn.Module) -> Weights:
    return {name.removeprefix("module."): array(p) for name, p in net.named_parameters()}


def array(p: Tensor) -> Any:
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone().numpy()


@cache
def alone() -> Weights:
    net = Net()
    train(net, muon_of(net), World())
    return weights(net)


def assert_near(found: Weights) -> None:
    for name, expected in alone().items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9, err_msg=name)


def under_ddp(world: World, **options: Any) -> tuple[Weights, int]:
    """Weights, and how many matrices this rank orthogonalised in one step."""
    net = DistributedDataParallel(Net())
    muon = muon_of(net, **options)
    train(net, muon, world)
    found = weights(net)
    counted, apply = [0], whole.Replicated.apply

    def counting(
        level: whole.Replicated, function: Orthogonalize, part: Tensor, *, dealt: int
    ) -> Tensor:
        def counted_function(own: Tensor) -> Tensor:
            counted[0] += len(own)
            return function(own)

        return apply(level, counted_function, part, dealt=dealt)

    whole.Replicated.apply = counting  # type: ignore[method-assign, assignment]
    train(net, muon, world, STEPS, STEPS + 1)
    return found, counted[0]


@pytest.mark.parametrize("size", [2, 3])
def test_ddp_orthogonalises_each_matrix_once_with_the_same_weights_on_all(size: int) -> None:
    ranks = run_world(size, under_ddp_sharing)
    assert_near(ranks[0][0])
    for found, _ in ranks[1:]:
        for name, p in found.items():
            np.testing.assert_array_equal(p, ranks[0][0][name], err_msg=name)  # bit for bit
    # up, gate; experts; q, k; v; kernels: the ranks take turns over all of them.
    counts = [count for _, count in ranks]
    assert sum(counts) == 9 and max(counts) - min(counts) <= 1


def under_ddp_sharing(world: World) -> Any:
    return under_ddp(world, process_group=True)


def copied(world: World) -> list[Weights]:
    """Weights after steps of an optimizer that was copied, and of one that was pickled."""
    found = []
    for group in (dist.new_group(), dist.group.WORLD):
        net = Net()
        both = net, muon_of(net, process_group=group)
        of_all = group is dist.group.WORLD
        net, muon = pickle.loads(pickle.dumps(both)) if of_all else copy.deepcopy(both)
        train(DistributedDataParallel(net), muon, world)
        found.append(weights(net))
    return found


def test_an_optimizer_with_a_process_group_can_be_copied() -> None:
    for ranks in run_world(2, copied):
        for found in ranks:
            assert_near(found)


def test_ddp_without_sharing_is_right_too() -> None:
    for found, counted in run_world(2, under_ddp):
        assert_near(found)
        assert counted == 0


def under_fsdp(world: World, shape: tuple[int, ...]) -> Weights:
    net, names = Net(), ("replicate", "shard")[-len(shape) :]
    fully_shard(net, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
    muon = muon_of(net, nonfinite="raise", momentum_dtype=torch.float64)
    train(net, muon, world, 0, 1)
    # Another process set continues from PyTorch's own checkpoint of the state.
    options = StateDictOptions(full_state_dict=True)
    state = get_optimizer_state_dict(net, muon, options=options)
    muon = muon_of(net, lr=9.0)
    net.zero_grad()
    set_optimizer_state_dict(
        net, muon, state, options=StateDictOptions(full_state_dict=True, strict=False)
    )
    assert muon.param_groups[0]["momentum_dtype"] is torch.float64
    train(net, muon, world, 1, STEPS)
    momentum = muon.state[net.up]["momentum"]
    assert isinstance(momentum, DTensor) and isinstance(net.up, DTensor)
    assert momentum.to_local().shape == net.up.to_local().shape
    return weights(net)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4,), (2, 2), (1, 2)])
def test_fsdp2_on_any_mesh_equals_one_process(shape: tuple[int, ...]) -> None:
    for found in run_world(math.prod(shape), under_fsdp, shape):
        assert_near(found)


PLACED: dict[str, Any] = {"lr": 0.1, "scale": "aspect", "normuon": True, "weight_decay": 0.1}


def placed(
    shape: tuple[int, ...],
    placements: list[Placement],
    sizes: tuple[int, ...],
    options: dict[str, Any],
) -> Any:
    """Weights after steps with given gradients."""
    mesh = init_device_mesh("cpu", shape)
    start_here = distribute_tensor(start(sizes), mesh, placements)
    p = nn.Parameter(start_here)
    muon = Muon([p], **{**PLACED, **options})
    for step in range(2):
        p.grad = distribute_tensor(start(sizes, step + 1), mesh, [Replicate()] * len(shape))
        muon.step()
    state = muon.state[p]
    assert state["momentum"].placements == start_here.placements
    assert "second_moment" not in state or state["second_moment"].to_local().shape[-1] == 1
    return array(p)


TURNED: dict[str, Any] = {"transposed": True, "normuon": False}


def all_placed(world: World, cases: list[Any]) -> list[Any]:
    return [placed(*case) for case in cases]


def test_any_placement_equals_one_process() -> None:
    cases: list[Any] = [
        ((4,), [Shard(0)], (5, 3), {}),  # the last rank has none
        ((4,), [Shard(1)], (4, 7), {}),
        ((4,), [Shard(1)], (5, 9), {}),  # here too
        ((4,), [Shard(2)], (3, 3, 9), {}),
        ((4,), [Shard(1)], (3, 1), {}),
        ((4,), [Replicate()], (4, 7), {}),
        ((2, 2), [Shard(0), Shard(1)], (5, 7), {}),
        ((2, 2), [Shard(1), Shard(0)], (7, 3), {}),
        ((2, 2), [Shard(0), Shard(0)], (7, 3), {}),
        ((2, 2), [Shard(1), Shard(1)], (7, 6), {}),
        ((2, 2), [Replicate(), Shard(1)], (3, 7), {}),
        ((2, 2), [Shard(0), Shard(0)], (9, 3), {"split": [2, 6, 1]}),
        ((2, 2), [Shard(0), Shard(2)], (3, 4, 5), {}),
        ((2, 2), [Shard(1), Shard(0)], (3, 5, 4), {"split": [2, 3]}),
        ((2, 2), [Shard(0), Replicate()], (5, 2, 3, 3), {"flatten": True}),
        ((2, 2), [Shard(1), Shard(0)], (3, 9), {**TURNED, "split": [2, 6, 1]}),
        ((2, 2), [Shard(2), Shard(2)], (3, 4, 7), TURNED),
    ]
    for ranks in run_world(4, all_placed, cases):
        for found, (_, _, sizes, options) in zip(ranks, cases, strict=True):
            p = nn.Parameter(start(sizes))
            muon = Muon([p], **{**PLACED, **options})
            for step in range(2):
                p.grad = start(sizes, step + 1)
                muon.step()
            np.testing.assert_allclose(found, array(p), rtol=0, atol=1e-9)


def two_layers() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 10, False), nn.Tanh(), nn.Linear(10, 6, False)).double()
    for p in net.parameters():
        nn.init.trunc_normal_(p, generator=torch.Generator().manual_seed(0))
    return net


def train_two_layers(net: nn.Module, part: int, parts: int) -> list[Any]:
    muon = Muon(net.named_parameters(), lr=0.1, scale="aspect", normuon=True)
    for step in range(2):
        muon.zero_grad()
        net(start((4, 6), step).chunk(parts)[part]).square().mean().backward()
        muon.step()
    return [array(p) for p in net.parameters()]


def over_tensor_parallelism(world: World) -> list[Any]:
    mesh, net = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor")), two_layers()
    parallelize_module(net, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net, mesh=mesh["data"])  # rows of rows, and rows of columns
    return train_two_layers(net, world.rank // 2, 2)


def test_fsdp2_over_tensor_parallelism_equals_one_process() -> None:
    expected = train_two_layers(two_layers(), 0, 1)
    for ranks in run_world(4, over_tensor_parallelism):
        for found, right in zip(ranks, expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-9)


def refused(world: World) -> list[str]:
    mesh, said = init_device_mesh("cpu", (world.size,)), []
    kernels = nn.Parameter(distribute_tensor(start((4, 4, 3, 3)), mesh, [Shard(1)]))
    try:
        Muon([("conv", kernels)], lr=0.1, flatten=True)
    except ValueError as error:
        said.append(str(error))
    p = nn.Parameter(distribute_tensor(start((4, 4)), mesh, [Shard(0)]))
    muon = Muon([("w", p)], lr=0.1, nonfinite="raise")
    gradient = start((4, 4))
    gradient[0, 0] = float("nan")  # which rank 0 alone sees
    p.grad = distribute_tensor(gradient, mesh, [Shard(0)])
    other = Muon([nn.Parameter(start((4, 4)))], lr=0.1)
    other.allocate_state()
    plain = other.state_dict()
    for action in (partial(muon.load_state_dict, plain), muon.step):
        try:
            action()
        except ValueError as error:
            said.append(str(error))
    dist.barrier()
    return said


def test_what_cannot_be_is_said_on_every_rank() -> None:
    one, two = run_world(2, refused)
    assert one == two
    assert "conv has the shape [4, 4, 3, 3]: its placement S(1) leaves no rows" in one[0]
    assert "w and its momentum must both be DTensors or neither" in one[1]
    assert one[2] == "Muon: the gradient of w is not finite"

"""Momentum of other Muons, imported: the recorded numbers are those of the packages themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintic.errors import QuinticError
from quintic.optim.muon import Muon
from quintic.optim.muon_with_adamw import MuonWithAdamW

SHAPES = ((4, 6), (6, 4), (4, 6), (8, 4))


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    random = torch.Generator().manual_seed(10 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=random)


def trained(cls: Any, **options: Any) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    params = parameters()
    optimizer: torch.optim.Optimizer = cls(params, lr=0.02, **options)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    return params, optimizer


def averages(momentum: float) -> list[Tensor]:
    """What torch.optim.Muon and muon-optimizer hold after the same steps."""
    params, muon = trained(Muon, momentum=momentum)
    return [(1 - momentum) * muon.state[p]["momentum"] for p in params]


def assert_sums(muon: Muon, params: list[nn.Parameter], momentum: float) -> None:
    expected, own = trained(Muon, momentum=momentum)
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(muon.state[p]["momentum"], own.state[q]["momentum"])


def test_averages_of_torch_become_sums_by_its_own_momentum() -> None:
    _, theirs = trained(torch.optim.Muon, momentum=0.9)
    params = parameters()
    muon = Muon(params, lr=0.02, momentum=0.95)
    said = muon.load_foreign(theirs.state_dict(), "torch")
    assert said == (
        "4 momentum buffers of torch.optim.Muon, averages divided by 1 - momentum = 0.1 into sums"
    )
    assert_sums(muon, params, 0.9)
    assert muon.param_groups[0]["momentum"] == 0.95  # options are not taken over


@pytest.mark.parametrize("sorts", [False, True], ids=["SingleDevice", "of several processes"])
def test_muon_optimizer_beside_adam_and_in_the_order_that_it_sorts(sorts: bool) -> None:
    # As muon-optimizer 0.1.0 writes it, of which the real state dicts gave the same.
    order = sorted(range(4), key=lambda i: SHAPES[i], reverse=True) if sorts else range(4)
    held = averages(0.95)
    state = {
        "state": {0: {"exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3), "step": 3}}
        | {1 + place: {"momentum_buffer": held[i]} for place, i in enumerate(order)},
        "param_groups": [
            {"params": [0], "use_muon": False, "lr": 3e-4},
            {"params": [1, 2, 3, 4], "use_muon": True, "lr": 0.02, "momentum": 0.95},
        ],
    }
    params = parameters()
    muon = Muon(params, lr=0.02)
    muon.load_foreign(state, "muon-optimizer")
    assert_sums(muon, params, 0.95)


SUM = [[-2.95, -0.0975, 2.755], [5.6075, 8.46, 11.3125]]
"""Of a kernel (2, 3) after the gradients arange(6) - t, t = 0, 1, 2, with a momentum of 0.95."""


@pytest.mark.parametrize(
    ("kind", "recorded"),
    [
        ("keras", SUM),  # keras 3.15.1, variable kernel_momentum
        (  # optax 0.2.8, contrib.muon's mu
            "optax",
            [[-0.14750001, -0.004875, 0.13775], [0.280375, 0.423, 0.565625]],
        ),
    ],
)
def test_arrays_of_keras_and_optax_are_transposed(kind: str, recorded: list[list[float]]) -> None:
    p = nn.Parameter(torch.zeros(3, 2))
    muon = Muon([("dense.weight", p)], lr=0.1)
    said = muon.load_foreign({"dense.weight": recorded, "embedding": [0.0]}, kind)
    torch.testing.assert_close(muon.state[p]["momentum"], torch.tensor(SUM).T)
    assert said.startswith(f"1 momentum buffers of {kind}.")
    assert said.endswith("transposed; no matrix here is named embedding, so left out")


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        ({}, "adam", "kind is 'adam' and must be one of torch, muon-optimizer, keras, optax"),
        ({}, ["torch"], r"kind is \['torch'\] and must be one of torch, muon-optimizer"),
        ({}, "torch", "this is no state dict of torch.optim.Muon"),
        ({"b": [[0.0]]}, "keras", "state of keras.optimizers.Muon has no momentum for a$"),
        ({"a": torch.zeros(6, 4), "b": torch.zeros(4, 6)}, "keras", r"for b has .* \[6, 4\] and"),
        ({"state": {}, "param_groups": [{"params": [0]}]}, "torch", "has 1 matrices .* has 2"),
        ([1], "keras", r"state of keras.optimizers.Muon is \[1\] and must be a dict of arrays"),
        ([1], "torch", r"state of torch.optim.Muon is \[1\] and must be a state dict"),
        ({"a": "x", "b": [[0.0]]}, "keras", "for a is 'x' and must be an array of real numbers"),
        (
            {"state": {0: {"momentum_buffer": 3}}, "param_groups": [{"params": [0, 1]}]},
            "torch",
            "for a is 3 and must be an array of real numbers",
        ),
        ({"state": {0: 3}, "param_groups": [{"params": [0, 1]}]}, "torch", "this is no state dict"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_loaded(
    state: Any, kind: Any, message: str
) -> None:
    params = [nn.Parameter(torch.zeros(4, 6)) for _ in range(2)]
    muon = Muon(zip("ab", params, strict=True), lr=0.1)
    with pytest.raises(QuinticError, match=message):
        muon.load_foreign(state, kind)
    assert not muon.state


@pytest.mark.parametrize("momentum", [1.0, float("nan"), -3.0])
def test_a_momentum_that_no_average_has_is_refused(momentum: float) -> None:
    _, theirs = trained(torch.optim.Muon, momentum=0.9)
    muon = Muon(parameters(), lr=0.02)
    with pytest.raises(QuinticError, match=f"momentum is {momentum} and must be at least 0 and"):
        muon.load_foreign(theirs.state_dict(), "torch", momentum=momentum)
    assert not muon.state


def test_beside_adamw_the_state_is_of_the_matrices_alone() -> None:
    _, theirs = trained(torch.optim.Muon, momentum=0.9)
    params, vector = parameters(), nn.Parameter(torch.zeros(3))
    both = MuonWithAdamW(
        [
            {"params": [vector], "optimizer": "adamw"},
            {"params": params, "optimizer": "muon"},
        ],
        lr=0.02,
    )
    assert both.load_foreign(theirs.state_dict(), "torch").startswith("4 momentum buffers of torch")
    assert_sums(both, params, 0.9)


def test_keller_jordans_adam_goes_on_in_adamw() -> None:
    # muon-optimizer 0.1.0: of one value, lerped from zero and corrected by step, as AdamW's.
    matrix, vector, twin = (nn.Parameter(torch.ones(s)) for s in ((4, 6), (3,), (3,)))
    adamw = torch.optim.AdamW([twin], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    gradients = [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.1, -4.0])]
    twin.grad = gradients[0]
    adamw.step()
    theirs = {
        "state": {
            0: {"exp_avg": 0.1 * gradients[0], "exp_avg_sq": 0.05 * gradients[0] ** 2, "step": 1},
            1: {"momentum_buffer": torch.ones(4, 6)},
        },
        "param_groups": [
            {"params": [0], "use_muon": False, "lr": 0.1},
            {"params": [1], "use_muon": True, "momentum": 0.95},
        ],
    }
    both = MuonWithAdamW(
        [{"params": [matrix], "optimizer": "muon"}, {"params": [vector], "optimizer": "adamw"}],
        lr=0.1,
    )
    said = both.load_foreign(theirs, "muon-optimizer")
    assert said.endswith("into sums, and the state of Adam for 1 parameters")
    with torch.no_grad():
        vector.copy_(twin)
    vector.grad, twin.grad = gradients[1], gradients[1].clone()
    both.step()
    adamw.step()
    torch.testing.assert_close(vector, twin)
    theirs["state"][0]["exp_avg"] = torch.ones(5)  # type: ignore[index]
    other = MuonWithAdamW(both.param_groups, lr=0.1)
    said = other.load_foreign(theirs, "muon-optimizer")
    assert "the state of Adam for 1 parameters is left out" in said
    assert vector not in other.state and matrix in other.state


def test_names_in_another_order_are_refused() -> None:
    one, other = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    theirs = torch.optim.Muon([("x", one), ("y", other)], lr=0.1)
    one.grad, other.grad = torch.ones(2, 2), torch.ones(2, 2)
    theirs.step()
    ours = Muon([("y", one), ("x", other)], lr=0.1)
    with pytest.raises(QuinticError, match="the other state dict has x in the place of y"):
        ours.load_foreign(theirs.state_dict(), "torch")
    assert not ours.state


@pytest.mark.parametrize("shape", [(3, 3), (2, 3)])
def test_arrays_of_keras_are_taken_as_they_are_by_what_is_stored_as_they_are(
    shape: tuple[int, int],
) -> None:
    p = nn.Parameter(torch.zeros(shape))
    kernel = torch.arange(float(p.numel())).view(shape)
    muon = Muon([("w", p)], lr=0.1, transposed=True)
    assert muon.load_foreign({"w": kernel}, "keras").endswith("buffers of keras.optimizers.Muon")
    assert torch.equal(muon.state[p]["momentum"], kernel)


def test_arrays_by_name_are_refused_where_two_parameters_have_one_name() -> None:
    pairs = [("w", nn.Parameter(torch.zeros(2, 2))) for _ in range(2)]
    muon = Muon(pairs, lr=0.1)
    with pytest.raises(QuinticError, match="Muon: w is the name of 2 parameters here"):
        muon.load_foreign({"w": torch.ones(2, 2)}, "keras")
    assert not muon.state

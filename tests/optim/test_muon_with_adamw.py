"""One optimizer for a model is Muon and AdamW apart, and keeps an optimizer's promises."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from quintic import Muon, MuonWithAdamW, param_groups
from quintic.errors import QuinticError


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.to(dtype)

    def set_gradients(self, step: int) -> None:
        random = torch.Generator().manual_seed(10 + step)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=random).to(p.dtype)


def groups_of(net: Net) -> list[dict[str, Any]]:
    return param_groups(net, lr=0.02, adamw_lr=3e-3, adamw_weight_decay=0.1, verbose=False)


def make(net: Net, **options: Any) -> MuonWithAdamW:
    return MuonWithAdamW(groups_of(net), **options)


def steps(net: Net, optimizers: list[torch.optim.Optimizer], first: int, last: int) -> list[Tensor]:
    for step in range(first, last):
        net.set_gradients(step)
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(map(torch.equal, found, expected))


def test_it_is_muon_and_adamw() -> None:
    one, two = Net(), Net()
    groups = groups_of(two)
    muon = Muon([g for g in groups if g["optimizer"] == "muon"], lr=1.0)
    adamw = torch.optim.AdamW(
        [g for g in groups if g["optimizer"] == "adamw"], betas=(0.9, 0.95), eps=1e-8
    )
    assert equal(steps(one, [make(one)], 0, 4), steps(two, [muon, adamw], 0, 4))


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy", "checkpoint"])
def test_it_continues_bit_for_bit(way: str) -> None:
    net = Net()
    expected = steps(net, [make(net)], 0, 4)
    net = Net()
    optimizer = make(net)
    steps(net, [optimizer], 0, 2)
    if way == "deepcopy":
        net, optimizer = copy.deepcopy((net, optimizer))
    elif way == "pickle":
        net, optimizer = pickle.loads(pickle.dumps((net, optimizer)))
    elif way == "state_dict":
        file = io.BytesIO()
        torch.save([net.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        net = Net()
        optimizer = make(net)
        net.load_state_dict(weights)
        optimizer.load_state_dict(state)
    else:
        state = copy.deepcopy(get_optimizer_state_dict(net, optimizer))
        weights, net = net.state_dict(), Net()
        optimizer = make(net)
        net.load_state_dict(weights)
        set_optimizer_state_dict(net, optimizer, state)
    assert equal(steps(net, [optimizer], 2, 4), expected)


def test_momentum_in_float32_of_bfloat16_weights_is_loaded_as_it_was() -> None:
    net = Net(torch.bfloat16)
    optimizer = make(net, momentum_dtype=torch.float32)
    steps(net, [optimizer], 0, 2)
    other = make(Net(torch.bfloat16), momentum_dtype=torch.float32)
    other.load_state_dict(optimizer.state_dict())
    found, expected = (
        other.state[other.param_groups[0]["params"][0]],
        optimizer.state[net.up.weight],
    )
    assert found["momentum"].dtype is torch.float32
    assert torch.equal(found["momentum"], expected["momentum"])


def test_a_scheduler_reaches_both_and_a_group_may_come_later() -> None:
    net = Net()
    groups = groups_of(net)
    optimizer = MuonWithAdamW(groups[:1])
    optimizer.add_param_group(groups[1])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    before = steps(net, [optimizer], 0, 1)
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.0]
    assert equal(steps(net, [optimizer], 1, 2), before)


def test_a_gradient_that_is_not_finite_skips_the_step_of_both() -> None:
    net = Net()
    optimizer = make(net, nonfinite="skip")
    before = steps(net, [optimizer], 0, 1)
    net.set_gradients(1)
    assert net.words.weight.grad is not None
    net.words.weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert equal([p.detach() for p in net.parameters()], before)


def test_a_gradient_that_is_not_finite_is_the_whole_optimizers() -> None:
    net = Net()
    optimizer = make(net, nonfinite="raise")
    net.set_gradients(0)
    assert net.words.weight.grad is not None
    net.words.weight.grad[0, 0] = torch.nan
    with pytest.raises(QuinticError, match=r"^MuonWithAdamW: the gradient of words\.weight is not"):
        optimizer.step()


def test_a_sparse_gradient_of_an_embedding_is_refused_before_anything_moves() -> None:
    net = Net()
    net.words = nn.Embedding(7, 4, sparse=True)
    optimizer = make(net)
    net.set_gradients(0)
    net.words.weight.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 4), (7, 4))
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(
        QuinticError, match=r"gradient of words.weight is torch.sparse_coo .*sparse"
    ):
        optimizer.step()
    assert equal([p.detach() for p in net.parameters()], before) and not optimizer.state


def test_a_hook_for_all_optimizers_is_called_once_a_step() -> None:
    called: list[torch.optim.Optimizer] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: called.append(optimizer))
    net = Net()
    try:
        optimizer = make(net)
        steps(net, [optimizer], 0, 2)
    finally:
        handle.remove()
    assert called == [optimizer, optimizer]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "AdamW: lr is -1.0 and must be 0 or more"),
        ({"weight_decay": float("nan")}, "AdamW: weight_decay is nan"),
        ({"betas": (0.9, 1.0)}, r"AdamW: betas is \(0.9, 1.0\) and must be two numbers"),
        ({"eps": -1.0}, "AdamW: eps is -1.0"),
        ({"lr": True}, "AdamW: lr is True"),
    ],
)
def test_numbers_of_adamw_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    net = Net()
    groups = groups_of(net)
    with pytest.raises(QuinticError, match=message):
        MuonWithAdamW([groups[0], {**groups[1], **options}])
    with pytest.raises(QuinticError, match=r"AdamW: words\.weight is given twice"):
        words = ("words.weight", net.words.weight)
        MuonWithAdamW([groups[0], {"params": [words, words], "optimizer": "adamw"}])
    optimizer = make(net)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][1].update(options)
    with pytest.raises(QuinticError, match=message):
        optimizer.load_state_dict(state)


def test_a_misspelt_option_of_adamw_is_refused() -> None:
    net = Net()
    groups = groups_of(net)
    for key, option in [("wd", "weight_decay"), ("beta", "betas"), ("epsi", "eps")]:
        said = f"AdamW: a group has {key}=3, which is no option: did you mean {option}\\?"
        with pytest.raises(QuinticError, match=said):
            MuonWithAdamW([groups[0], {**groups[1], key: 3}])
    MuonWithAdamW(
        [{**groups[0], "betas": (0.9, 0.95), "fused": None}, {**groups[1], "momentum": 0}]
    )


def test_what_is_not_its_own_is_refused_and_changes_nothing() -> None:
    net = Net()
    with pytest.raises(QuinticError, match="each group says optimizer=muon or optimizer=adamw"):
        MuonWithAdamW(net.parameters())
    optimizer = make(net)
    expected = copy.deepcopy(optimizer.state_dict())
    swapped = copy.deepcopy(expected)
    for group, kind in zip(swapped["param_groups"], ("adamw", "muon"), strict=False):
        group["optimizer"] = kind
    larger = Net()
    larger.words = nn.Embedding(9, 4)
    other = make(larger)
    steps(larger, [other], 0, 1)
    for state, message in [
        (swapped, "groups are of other optimizers"),
        (
            other.state_dict(),
            r"^AdamW: the exp_avg of words.weight has the shape \[9, 4\] and must have \[7, 4\]",
        ),
        (torch.optim.AdamW(net.parameters()).state_dict(), r"groups of \[5\] parameters"),
    ]:
        with pytest.raises(QuinticError, match=message):
            optimizer.load_state_dict(state)
        assert optimizer.state_dict() == expected


def test_two_optimizers_share_no_memory_after_one_loaded_the_state_of_the_other() -> None:
    one, two = Net(), Net()
    first, second = make(one), make(two)
    steps(one, [first], 0, 2)
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    steps(one, [first], 2, 3)
    found = steps(two, [second], 2, 4)
    assert equal(steps(one, [first], 3, 4), found)
    held = [{t.data_ptr() for s in o.state.values() for t in s.values()} for o in (first, second)]
    assert not held[0] & held[1]


def test_a_state_without_what_adamw_needs_is_refused() -> None:
    net = Net()
    optimizer = make(net)
    steps(net, [optimizer], 0, 1)
    state = copy.deepcopy(optimizer.state_dict())
    key = state["param_groups"][1]["params"][0]
    del state["state"][key]["exp_avg_sq"]
    with pytest.raises(
        QuinticError, match=r"state of words\.weight has step, exp_avg and not step"
    ):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exp_avg_sq", torch.zeros(3), r"exp_avg_sq of words.weight has the shape \[3\] and must"),
        ("exp_avg_sq", 3, "exp_avg_sq of words.weight is 3, no tensor"),
        ("exp_avg", torch.zeros(7, 4).long(), "exp_avg of words.weight is torch.int64 and must"),
        ("max_exp_avg_sq", torch.zeros(1), r"max_exp_avg_sq of words.weight has the shape \[1\]"),
        ("step", torch.zeros(2), "step of words.weight is .* and must be a number"),
        ("step", "x", "step of words.weight is 'x' and must be a number"),
    ],
)
def test_each_tensor_of_a_state_is_checked_before_any_is_loaded(
    key: str, value: Any, message: str
) -> None:
    net = Net()
    optimizer = make(net)
    steps(net, [optimizer], 0, 1)
    state = copy.deepcopy(optimizer.state_dict())
    number = state["param_groups"][1]["params"][0]
    state["state"][number][key] = value
    before = copy.deepcopy(optimizer.state[net.words.weight])
    with pytest.raises(QuinticError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state[net.words.weight]
    assert after.keys() == before.keys() and equal([*after.values()], [*before.values()])


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        (0, {"scale": "asp"}, "Muon: scale is 'asp' and must be one of"),
        (0, {"lr": float("nan")}, "Muon: lr is nan and must be 0 or more"),
        (0, {"split": 7}, r"Muon: up.weight has the shape \[6, 4\]: split=7 does not divide"),
        (1, {"lr": -1.0}, "AdamW: lr is -1.0 and must be 0 or more"),
    ],
)
def test_an_option_that_was_changed_to_what_cannot_be_is_refused_before_anything_moves(
    place: int, options: dict[str, Any], message: str
) -> None:
    net = Net()
    optimizer = make(net)
    optimizer.param_groups[place].update(options)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(QuinticError, match=message):
        steps(net, [optimizer], 0, 1)
    assert equal([p.detach() for p in net.parameters()], before)


def test_muon_alone_does_not_take_the_groups_of_adamw() -> None:
    with pytest.raises(QuinticError, match="Muon: a group says optimizer=adamw: give the groups"):
        Muon(groups_of(Net()), lr=0.1)


def test_what_is_frozen_of_adamws_stays_as_it_is_with_a_gradient_too() -> None:
    net = Net()
    optimizer = make(net)
    steps(net, [optimizer], 0, 1)
    net.words.weight.requires_grad_(False)
    before, moment = net.words.weight.clone(), optimizer.state[net.words.weight]["exp_avg"].clone()
    bias = net.up.bias.detach().clone()
    steps(net, [optimizer], 1, 2)
    assert torch.equal(net.words.weight, before) and not torch.equal(net.up.bias, bias)
    assert torch.equal(optimizer.state[net.words.weight]["exp_avg"], moment)


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        (1, {"amsgrad": True}, r"state of words.weight has step, .* and not .*, max_exp_avg_sq"),
        (1, {"optimizer": "muon"}, "Muon: a group has no momentum, .* and must keep all options"),
        (0, {"optimizer": "adamw"}, "AdamW: a group has no betas, .* and must keep all options"),
        (1, {"optimizer": "x"}, "a group says optimizer='x' and must say muon or adamw"),
    ],
)
def test_an_option_that_the_state_does_not_suit_is_refused_before_anything_moves(
    place: int, options: dict[str, Any], message: str
) -> None:
    net = Net()
    optimizer = make(net)
    before = steps(net, [optimizer], 0, 1)
    optimizer.param_groups[place].update(options)
    with pytest.raises(QuinticError, match=message):
        steps(net, [optimizer], 1, 2)
    assert equal([p.detach() for p in net.parameters()], before)


def test_the_state_of_both_follows_the_precision_of_the_weights() -> None:
    net, other = Net(), Net()
    optimizer = make(net)
    steps(net, [optimizer], 0, 2)
    net.double()
    found, near = steps(net, [optimizer], 2, 3), steps(other, [make(other)], 0, 3)
    for p, q in zip(found, near, strict=True):
        torch.testing.assert_close(p, q.double(), rtol=0, atol=1e-6)
    assert {t.dtype for s in optimizer.state.values() for k, t in s.items() if k != "step"} == {
        torch.float64
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "a"}, "AdamW: lr is 'a' and must be 0 or more"),
        ({"eps": "a"}, "AdamW: eps is 'a' and must be 0 or more"),
        ({"betas": None}, "AdamW: betas is None and must be two numbers"),
        ({"fused": True}, "fused is AdamW's alone: give it to the groups that say optimizer=adamw"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        make(Net(), **options)


def test_what_has_no_shape_yet_is_refused_of_adamws_too() -> None:
    named = list(nn.LazyLinear(3).named_parameters())
    with pytest.raises(QuinticError, match="AdamW: weight has no shape yet: call its module once"):
        MuonWithAdamW([{"params": named, "optimizer": "adamw"}])


def test_what_pytorch_alone_refuses_of_adamws_options_moves_nothing() -> None:
    net = Net()
    optimizer = make(net)
    optimizer.param_groups[1].update(foreach=True, lr=torch.tensor(0.1))
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="lr as a Tensor is not supported for capturable=False"):
        steps(net, [optimizer], 0, 1)
    assert equal([p.detach() for p in net.parameters()], before)

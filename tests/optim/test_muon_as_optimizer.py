"""Muon keeps what `torch.optim.Optimizer` promises, in any loop."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import quintic
import quintic.optim
from quintic.errors import QuinticError
from quintic.optim.muon import Muon, muon_update
from quintic.optim.newton_schulz import newton_schulz

Kind = torch.dtype


class Net(nn.Module):
    """Two matrices of one shape, and another."""

    def __init__(self, dtype: Kind = torch.float32) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.up, self.gate, self.down = (
            nn.Parameter(torch.randn(shape, generator=random).to(dtype))
            for shape in ((6, 4), (6, 4), (4, 6))
        )

    def set_gradients(self, step: int) -> None:
        random = torch.Generator().manual_seed(10 + step)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=random).to(p.dtype)


def optimizer_of(net: Net, **options: Any) -> Muon:
    return Muon(net.named_parameters(), **{"lr": 0.02, "scale": "aspect", **options})


def steps(net: Net, muon: Muon, first: int, last: int) -> list[Tensor]:
    """Weights after steps `first` to `last`."""
    for step in range(first, last):
        net.set_gradients(step)
        muon.step()
    return [p.detach().clone() for p in net.parameters()]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_muon_is_imported_under_the_names_people_try() -> None:
    assert quintic.Muon is quintic.optim.Muon is Muon


@pytest.mark.parametrize("options", [{}, {"normuon": True, "weight_decay": 0.1}])
def test_a_loaded_optimizer_continues_bit_for_bit(options: dict[str, Any]) -> None:
    net = Net()
    muon = optimizer_of(net, **options)
    steps(net, muon, 0, 2)
    file = io.BytesIO()
    torch.save(muon.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    loaded = optimizer_of(other, lr=1.0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(steps(other, loaded, 2, 4), steps(net, muon, 2, 4))


def test_a_learning_rate_set_after_loading_is_heard() -> None:
    net = Net()
    muon = optimizer_of(net)
    muon.load_state_dict(optimizer_of(Net()).state_dict())
    for group in muon.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in net.parameters()]
    assert_equal(steps(net, muon, 0, 1), before)


def test_two_optimizers_share_no_memory_after_one_loaded_the_others_state() -> None:
    net, other = Net(), Net()
    muon, loaded = optimizer_of(net), optimizer_of(other)
    steps(net, muon, 0, 1)
    loaded.load_state_dict(muon.state_dict())
    before = loaded.state[other.up]["momentum"].clone()
    steps(net, muon, 1, 2)
    assert torch.equal(loaded.state[other.up]["momentum"], before)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_continues_as_the_original(how: Callable[[Any], Any]) -> None:
    net = Net()
    muon = optimizer_of(net)
    steps(net, muon, 0, 1)
    other, copied = how((net, muon))
    assert_equal(steps(other, copied, 1, 3), steps(net, muon, 1, 3))


def test_saving_one_matrix_writes_no_other(tmp_path: Path) -> None:
    params = [nn.Parameter(torch.zeros(64, 64)) for _ in range(8)]
    muon = Muon(params, lr=0.1)
    for p in params:
        p.grad = torch.eye(64)
    muon.step()
    torch.save(muon.state[params[3]], tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 64 * 64 * 4 + 3000


@pytest.mark.parametrize("frozen", [False, True], ids=["without a gradient", "frozen"])
def test_what_has_no_gradient_or_is_frozen_stays_as_it_is(frozen: bool) -> None:
    # Alone, `up` must move as it does beside `gate`, which must not move, nor decay.
    net, alone = Net(), Net()
    muon = optimizer_of(net, weight_decay=0.1)
    expected = Muon([alone.up], lr=0.02, scale="aspect", weight_decay=0.1)
    gate = net.gate.detach().clone()
    for step in range(2):
        net.set_gradients(step)
        alone.set_gradients(step)
        if frozen:
            net.gate.requires_grad_(False)
        else:
            net.gate.grad = None
        muon.step()
        expected.step()
    assert torch.equal(net.gate, gate)
    assert net.gate not in muon.state  # it costs nothing
    torch.testing.assert_close(net.up, alone.up, rtol=0, atol=1e-6)


def test_parameters_come_and_go_between_steps() -> None:
    net, alone = Net(torch.float64), Net(torch.float64)
    muon = optimizer_of(net)
    each = [Muon([p], lr=0.02, scale="aspect") for p in alone.parameters()]
    for step, present in enumerate([(0, 1, 2), (1,), (0, 2), (), (0, 1, 2)]):
        net.set_gradients(step)
        alone.set_gradients(step)
        for number, (p, q) in enumerate(zip(net.parameters(), alone.parameters(), strict=True)):
            if number not in present:
                p.grad = q.grad = None
        muon.step()
        for one in each:
            one.step()
    for p, q in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_an_added_group_moves_with_its_own_rate_and_what_was_frozen_once_it_is_not() -> None:
    net = Net()
    net.gate.requires_grad_(False)
    muon = Muon([net.up], lr=0.02)
    muon.add_param_group({"params": [net.down], "lr": 0.0})
    muon.add_param_group({"params": [net.gate]})
    before = [p.detach().clone() for p in (net.up, net.gate, net.down)]
    steps(net, muon, 0, 1)
    up, gate, down = (
        bool((p != b).any()) for p, b in zip((net.up, net.gate, net.down), before, strict=True)
    )
    assert (up, gate, down) == (True, False, False)
    net.gate.requires_grad_(True)
    muon.param_groups[1]["lr"] = 0.1
    steps(net, muon, 1, 2)
    assert (net.gate != before[1]).any() and (net.down != before[2]).any()


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    net = Net()
    muon = optimizer_of(net)

    def closure() -> Tensor:
        muon.zero_grad()
        loss = (net.up.T @ net.gate).square().mean() + net.down.square().mean()
        loss.backward()
        return loss

    before = net.up.detach().clone()
    with torch.no_grad():
        first = muon.step(closure)
    second = muon.step(closure)
    assert first.requires_grad and second < first
    assert not torch.equal(net.up, before)


def test_hooks_run_around_a_step_a_state_dict_and_a_load() -> None:
    net = Net()
    muon, said = optimizer_of(net), []
    muon.register_step_pre_hook(lambda *_: said.append("pre"))
    muon.register_step_post_hook(lambda *_: said.append("post"))
    muon.register_state_dict_post_hook(lambda *_: said.append("saved"))
    muon.register_load_state_dict_post_hook(
        lambda o: said.append(f"loaded {len(o.state)}")  # it sees the loaded state
    )
    steps(net, muon, 0, 1)
    muon.load_state_dict(muon.state_dict())
    assert said == ["pre", "post", "saved", "loaded 3"]


def test_a_step_leaves_the_gradient_as_it_was() -> None:
    net = Net()
    muon = optimizer_of(net, normuon=True)
    net.set_gradients(0)
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    muon.step()
    assert_equal([p.grad for p in net.parameters() if p.grad is not None], before)
    muon.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_a_learning_rate_may_be_a_tensor() -> None:
    net, other = Net(torch.float64), Net(torch.float64)
    lr = torch.tensor([0.02], dtype=torch.float64)
    for options in ({}, {"cautious": True}):
        found = steps(net, optimizer_of(net, lr=lr, weight_decay=0.1, **options), 0, 2)
        expected = steps(other, optimizer_of(other, weight_decay=0.1, **options), 0, 2)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-14)


def test_schedulers_turn_the_learning_rate_and_the_momentum() -> None:
    net = Net()
    muon = optimizer_of(net)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(muon, max_lr=0.1, total_steps=4)
    seen = []
    for step in range(3):
        net.set_gradients(step)
        muon.step()
        group = muon.param_groups[0]
        seen.append((group["lr"], group["momentum"]))
        one_cycle.step()
    assert len(set(seen)) == 3
    cyclic = torch.optim.lr_scheduler.CyclicLR(muon, 0.01, 0.1, step_size_up=2)
    cyclic.step()
    assert muon.param_groups[0]["lr"] == pytest.approx(0.055)
    other = optimizer_of(Net())  # a resumed run: the optimizer's state, then the schedule
    other.load_state_dict(muon.state_dict())
    resumed = torch.optim.lr_scheduler.CyclicLR(other, 0.01, 0.1, step_size_up=2)
    resumed.load_state_dict(cyclic.state_dict())
    resumed.step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_gradient_scaler_and_clipping_work_before_it_as_before_any() -> None:
    net, plain = Net(), Net()
    muon, scaler = optimizer_of(net), torch.amp.GradScaler("cpu", init_scale=8.0)
    expected = steps(plain, optimizer_of(plain), 0, 1)
    loss = sum((p * g).sum() for p, g in zip(net.parameters(), _gradients_of(0), strict=True))
    assert isinstance(loss, Tensor)
    scaler.scale(loss).backward()
    scaler.unscale_(muon)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # which the update forgets, but for eps
    scaler.step(muon)
    scaler.update()
    for p, q in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-5)
    before = [p.detach().clone() for p in net.parameters()]
    muon.zero_grad()
    scaler.scale(net.up.sum() * float("inf")).backward()
    scaler.step(muon)  # which it skips
    assert_equal([p.detach() for p in net.parameters()], before)


def _gradients_of(step: int) -> list[Tensor]:
    net = Net()
    net.set_gradients(step)
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_may_have_their_momentum_in_float32(dtype: Kind) -> None:
    net = Net(dtype)
    muon = optimizer_of(net, momentum_dtype=torch.float32)
    steps(net, muon, 0, 2)
    exact = 0.95 * _gradients_of(0)[0].to(dtype).float() + _gradients_of(1)[0].to(dtype).float()
    momentum = muon.state[net.up]["momentum"]
    assert momentum.dtype == torch.float32
    torch.testing.assert_close(momentum, exact)
    other = copy.deepcopy(net)
    loaded = optimizer_of(other, momentum_dtype=torch.float32)
    loaded.load_state_dict(muon.state_dict())  # torch alone would round it to the weights' dtype
    assert torch.equal(loaded.state[other.up]["momentum"], momentum)
    assert_equal(steps(other, loaded, 2, 3), steps(net, muon, 2, 3))
    assert optimizer_of(Net(dtype)).param_groups[0]["momentum_dtype"] is None
    plain = Net(dtype)
    own = optimizer_of(plain)
    steps(plain, own, 0, 1)
    assert own.state[plain.up]["momentum"].dtype == dtype


def test_the_precision_of_momentum_may_be_changed_between_steps() -> None:
    net = Net(torch.bfloat16)
    muon = optimizer_of(net, normuon=True)
    steps(net, muon, 0, 1)
    first = muon.state[net.up]["momentum"].float()
    muon.param_groups[0]["momentum_dtype"] = torch.float32
    steps(net, muon, 1, 2)
    state = muon.state[net.up]
    assert {name: value.dtype for name, value in state.items()} == {
        "momentum": torch.float32,
        "second_moment": torch.float32,
    }
    gradient = _gradients_of(1)[0].bfloat16().float()
    torch.testing.assert_close(state["momentum"], 0.95 * first + gradient)
    muon.param_groups[0]["momentum_dtype"] = None
    steps(net, muon, 2, 3)
    assert {value.dtype for value in muon.state[net.up].values()} == {torch.bfloat16}


def test_neurons_are_counted_anew_where_kernels_become_one_matrix() -> None:
    p = nn.Parameter(torch.ones(3, 4, 2))
    muon = Muon([p], lr=0.1, normuon=True)
    for flatten, rows in [(False, (3, 4, 1)), (True, (3, 1))]:
        muon.param_groups[0]["flatten"] = flatten
        p.grad = torch.ones_like(p)
        muon.step()
        assert muon.state[p]["second_moment"].shape == rows


def test_state_moves_between_precisions_of_weights() -> None:
    net, other = Net(torch.float64), Net()
    muon, loaded = optimizer_of(net), optimizer_of(other)
    steps(net, muon, 0, 1)
    loaded.load_state_dict(muon.state_dict())
    momentum = loaded.state[other.up]["momentum"]
    assert momentum.dtype == torch.float32
    assert torch.equal(momentum, muon.state[net.up]["momentum"].float())


def test_the_meta_device_has_a_step_too() -> None:
    p = nn.Parameter(torch.zeros(6, 4, device="meta"))
    muon = Muon([p], lr=0.1)
    p.grad = torch.zeros_like(p)
    muon.step()
    assert muon.state[p]["momentum"].device.type == "meta"


@pytest.mark.parametrize("flat", [False, True])
def test_pytorchs_distributed_checkpoints_hold_the_momentum(tmp_path: Path, flat: bool) -> None:
    net = Net()
    muon, options = optimizer_of(net), StateDictOptions(flatten_optimizer_state_dict=flat)
    steps(net, muon, 0, 2)
    save(get_optimizer_state_dict(net, muon, options=options), checkpoint_id=tmp_path)
    other = copy.deepcopy(net)
    other.zero_grad()
    loaded = optimizer_of(other, lr=1.0)  # its getter makes the state by a step of nothing
    state = get_optimizer_state_dict(other, loaded, options=options)
    assert_equal([p.detach() for p in other.parameters()], [p.detach() for p in net.parameters()])
    load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, loaded, state, options=options)
    assert_equal(steps(other, loaded, 2, 3), steps(net, muon, 2, 3))


def test_a_step_can_be_compiled() -> None:
    net, other = Net(), Net()
    muon, plain = optimizer_of(net, lr=torch.tensor(0.02)), optimizer_of(other)
    step = torch.compile(muon.step, backend="eager", fullgraph=True)
    for number in range(3):
        net.set_gradients(number)
        step()
    for p, q in zip(net.parameters(), steps(other, plain, 0, 3), strict=True):
        torch.testing.assert_close(p.detach(), q)
    assert muon.state[net.up]["momentum"].any()


@pytest.mark.parametrize("nonfinite", ["propagate", "raise", "skip"])
def test_a_gradient_that_is_not_finite_does_what_the_switch_says(nonfinite: str) -> None:
    net = Net()
    muon = optimizer_of(net, nonfinite=nonfinite)
    before = steps(net, muon, 0, 1)
    momentum = muon.state[net.up]["momentum"].clone()
    net.set_gradients(1)
    assert net.gate.grad is not None
    net.gate.grad[0, 0] = float("nan")
    if nonfinite == "raise":
        with pytest.raises(QuinticError, match=r"the gradient of gate is not finite$"):
            muon.step()
    else:
        muon.step()
    if nonfinite == "propagate":
        assert net.gate.isnan().all() and not net.up.isnan().any()
    else:
        assert_equal([p.detach() for p in net.parameters()], before)
        assert torch.equal(muon.state[net.up]["momentum"], momentum)


def test_dtypes_among_the_options_pass_pytorchs_gatherers() -> None:
    net = Net()
    dtypes = {"ns_dtype": torch.bfloat16, "momentum_dtype": torch.float64}
    muon = optimizer_of(net, **dtypes)
    steps(net, muon, 0, 1)
    for options in (StateDictOptions(full_state_dict=True), StateDictOptions(cpu_offload=True)):
        state = get_optimizer_state_dict(net, muon, options=options)
        other = optimizer_of(net)
        net.zero_grad()
        set_optimizer_state_dict(net, other, state, options=options)
        assert {key: other.param_groups[0][key] for key in dtypes} == dtypes
        found, expected = (o.state[net.up]["momentum"] for o in (other, muon))
        assert found.dtype is torch.float64 and torch.equal(found, expected)


def test_a_state_dict_of_before_dtypes_had_names_is_loaded() -> None:
    saved = optimizer_of(Net(), ns_dtype=torch.bfloat16).state_dict()
    assert saved["param_groups"][0]["ns_dtype"] == "torch.bfloat16"
    saved["param_groups"][0]["ns_dtype"] = torch.float16
    muon = optimizer_of(Net())
    muon.load_state_dict(saved)
    assert muon.param_groups[0]["ns_dtype"] is torch.float16
    saved["param_groups"][0]["ns_dtype"] = "torch.nn"
    with pytest.raises(QuinticError, match=r"ns_dtype is .* and must be a floating-point"):
        muon.load_state_dict(saved)


def test_options_may_be_tensors_of_one_element_with_axes() -> None:
    net, other = Net(), Net()
    muon = optimizer_of(
        net,
        lr=torch.tensor([[[0.02]]]),
        momentum=torch.full((1, 1, 1, 1), 0.95),
        weight_decay=torch.full((1, 1, 1), 0.1),
    )
    plain = optimizer_of(other, lr=0.02, weight_decay=0.1)
    for p, q in zip(steps(net, muon, 0, 2), steps(other, plain, 0, 2), strict=True):
        torch.testing.assert_close(p, q)


def test_autocast_and_a_default_device_around_a_step_change_nothing() -> None:
    found = []
    for around in (False, True):
        params = [nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(260, 260))]
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        muon = Muon(params, lr=0.02)
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            if around:
                with torch.device("meta"):
                    muon.step()
            else:
                muon.step()
        found.append([p.detach() for p in params])
    assert_equal(*found)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float16), (torch.float16, torch.float32)])
def test_large_matrices_of_any_size_have_room_in_any_precision(dtypes: tuple[Kind, Kind]) -> None:
    weights, ns_dtype = dtypes  # 257 * 257 numbers of 16 bits end in the middle of wider ones
    p = nn.Parameter(torch.zeros(257, 257, dtype=weights))
    p.grad = torch.randn(257, 257, generator=torch.Generator().manual_seed(0)).to(weights)
    Muon([p], lr=1.0, scale="none", ns_dtype=ns_dtype).step()
    exact = newton_schulz(p.grad.double())
    assert (-p.detach().double() - exact).norm() < 0.01 * exact.norm()


def test_float16_that_travels_is_divided_first() -> None:
    gradient = 1e5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    alone, travelled = (
        muon_update(
            [gradient],
            [torch.zeros(6, 4)],
            momentum=0.95,
            nesterov=True,
            ns_steps=5,
            ns_dtype=torch.float16,
            on_whole=on_whole,
        )
        for on_whole in (None, lambda function, part: function(part))
    )
    assert torch.equal(alone, travelled) and alone.norm() > 1

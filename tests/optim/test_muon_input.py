"""What Muon takes and what it refuses, by name and before anything changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintic.errors import QuinticError
from quintic.optim.muon import Muon, update_scale
from quintic.optim.newton_schulz import DION, newton_schulz

LR = 0.1


def updated(shape: tuple[int, ...], **options: Any) -> tuple[Tensor, Tensor]:
    """A gradient in float64, and the update that Muon makes of it at a learning rate of one."""
    random = torch.Generator().manual_seed(0)
    gradient = torch.randn(shape, generator=random, dtype=torch.float64)
    p = nn.Parameter(torch.zeros_like(gradient))
    p.grad = gradient.clone()
    Muon([p], lr=1.0, **{"scale": "aspect", **options}).step()
    return gradient, -p.detach()


def expected(gradient: Tensor, scale: str = "aspect") -> Tensor:
    rows, columns = gradient.shape
    result: Tensor = update_scale(scale, rows, columns) * newton_schulz(gradient)
    return result


def assert_near(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("normuon", [False, True])
@pytest.mark.parametrize("experts", [3, 1])
def test_a_batch_of_matrices_is_each_of_them(experts: int, normuon: bool) -> None:
    gradient, update = updated((experts, 6, 4), normuon=normuon)
    for g, u in zip(gradient, update, strict=True):
        alone = nn.Parameter(torch.zeros_like(g))
        alone.grad = g
        Muon([alone], lr=1.0, scale="aspect", normuon=normuon).step()
        assert_near(u, -alone.detach())


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (6, 2, 3), (4, 2, 2, 2, 2), (6, 4)])
def test_kernels_of_a_convolution_are_one_matrix_when_asked(shape: tuple[int, ...]) -> None:
    gradient, update = updated(shape, flatten=True)
    assert_near(update.flatten(1), expected(gradient.flatten(1)))


def test_the_memory_order_of_kernels_changes_nothing() -> None:
    gradient, update = updated((6, 4, 3, 3), flatten=True)
    p = nn.Parameter(torch.zeros_like(gradient).to(memory_format=torch.channels_last))
    p.grad = gradient.to(memory_format=torch.channels_last)
    Muon([p], lr=1.0, scale="aspect", flatten=True).step()
    assert_near(-p.detach(), update)


@pytest.mark.parametrize("split", [3, [6, 4, 2]])
@pytest.mark.parametrize("normuon", [False, True])
def test_parts_of_the_rows_are_orthogonalised_apart(split: Any, normuon: bool) -> None:
    # With the scale of their own shape, not of the whole one.
    gradient, update = updated((12, 4), split=split, normuon=normuon)
    rows = [4, 4, 4] if split == 3 else split
    for g, u in zip(gradient.split(rows), update.split(rows), strict=True):
        p = nn.Parameter(torch.zeros_like(g))
        p.grad = g
        Muon([p], lr=1.0, scale="aspect", normuon=normuon).step()
        assert_near(u, -p.detach())


def test_batches_are_split_too_and_parts_of_one_shape_share_a_stack() -> None:
    gradient, update = updated((2, 8, 4), split=2)
    for g, u in zip(gradient.flatten(0, 1).split(4), update.flatten(0, 1).split(4), strict=True):
        assert_near(u, expected(g))


@pytest.mark.parametrize("shape", [(4, 12), (2, 4, 12)])
def test_weights_stored_as_in_out_are_updated_as_those_stored_as_out_in(
    shape: tuple[int, ...],
) -> None:
    gradient, update = updated(shape, split=3, transposed=True)
    p = nn.Parameter(torch.zeros_like(gradient.mT).contiguous())
    p.grad = gradient.mT.contiguous()
    Muon([p], lr=1.0, scale="aspect", split=3).step()
    assert_near(update.mT, -p.detach())
    assert torch.linalg.matrix_norm(update.mT.reshape(-1, 4), 2).max() > 1  # of parts, not of all


def test_a_run_with_the_other_sequence_and_without_a_scale_can_be_repeated() -> None:
    gradient, update = updated((12, 4), scale="none", ns_coefficients="dion")
    assert_near(update, newton_schulz(gradient, coefficients=DION))
    singular = torch.linalg.svdvals(update)
    assert singular.min() > 0.97 and singular.max() < 1.06


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((7,), {}, r"Muon: blocks\.w has the shape \[7\]: it must be a matrix"),
        ((), {}, r"blocks\.w has the shape \[\]: it must be a matrix"),
        ((6, 2, 3, 3), {}, r"blocks\.w has the shape \[6, 2, 3, 3\].*flatten=True"),
        ((8, 4), {"split": 3}, r"blocks\.w .* split=3 does not divide its 8 rows"),
        ((8, 4), {"split": [4, 5]}, r"blocks\.w .* split=\[4, 5\] are 9 rows and it has 8"),
        ((0, 4), {}, r"blocks\.w .* it is empty"),
        ((4, 8), {"split": 5, "transposed": True}, "split=5 does not divide its 8 rows"),
        ((6, 2, 3), {"flatten": True, "transposed": True}, "transposed=True is for matrices"),
        ((4, 8), {"normuon": True, "transposed": True}, "normuon=True has no form for transposed"),
    ],
)
def test_what_is_no_matrix_is_refused_by_its_name(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match=message) as refused:
        Muon([("blocks.w", parameter)], lr=LR, **options)
    assert isinstance(refused.value, QuinticError) and "\n" not in str(refused.value)
    muon = Muon([nn.Parameter(torch.zeros(2, 2))], lr=LR)
    with pytest.raises(QuinticError, match="parameter 1"):
        muon.add_param_group({"params": [parameter], **options})
    assert len(muon.param_groups) == 1


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.complex64), "is torch.complex64 and must be of real"),
        (torch.zeros(2, 2, dtype=torch.int64), "is torch.int64 and must be of real"),
        (torch.zeros(2, 2).to_sparse(), "is torch.sparse_coo and must be dense"),
        (torch.zeros(2, 2).to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, which no step can"),
    ],
)
def test_other_numbers_than_dense_real_ones_are_refused(parameter: Tensor, message: str) -> None:
    with pytest.raises(QuinticError, match=rf"parameter 0 \[2, 2\] {message}"):
        Muon([parameter], lr=LR)
    p = nn.Parameter(torch.zeros(2, 2))
    muon = Muon([("w", p)], lr=LR)
    if parameter.layout is torch.sparse_coo:
        p.grad = parameter
        with pytest.raises(QuinticError, match=r"the gradient of w is torch\.sparse_coo"):
            muon.step()
        assert not p.any() and not muon.state.get(p)


def test_parameters_given_twice_or_not_at_all_are_refused() -> None:
    p, q, r = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    with pytest.raises(QuinticError, match="a is given twice"):
        Muon([("a", p), ("b", q), ("c", p)], lr=LR)
    with pytest.raises(QuinticError, match="b is given twice"):
        Muon([{"params": [("a", p), ("b", q)]}, {"params": [("c", r), ("d", q)]}], lr=LR)
    with pytest.raises(QuinticError, match="a parameter group has lr and no 'params'"):
        Muon([{"lr": 3}], lr=LR)
    groups: list[dict[str, Any]] = [{"params": [p]}, {"params": iter(())}]
    with pytest.raises(QuinticError, match="a parameter group is empty"):
        Muon(groups, lr=LR)
    with pytest.raises(ValueError, match="empty parameter list"):
        Muon([], lr=LR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1 and must be 0 or more"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": True}, "lr is True and must be 0 or more"),
        ({"momentum": False}, "momentum is False and must be at least 0 and below 1"),
        ({"lr": torch.zeros(2)}, "lr is tensor.* of one element"),
        ({"lr": torch.tensor(-0.1)}, "lr is tensor.*0 or more"),
        ({"transposed": "yes"}, "transposed is 'yes' and must be True or False"),
        ({"cautious": 1}, "cautious is 1 and must be True or False"),
        ({"momentum": 1.0}, "momentum is 1.0 and must be at least 0 and below 1"),
        ({"momentum": -0.5}, "momentum is -0.5"),
        ({"momentum": torch.tensor(1.5)}, r"momentum is tensor\(1.5000\) and must be at least 0"),
        ({"momentum": torch.tensor(torch.nan)}, r"momentum is tensor\(nan\)"),
        ({"momentum": torch.tensor([0.5, 0.9])}, r"momentum is tensor\(\[0.5000, 0.9000\]\)"),
        ({"lr": torch.tensor(1j)}, r"lr is tensor\(0.\+1.j\)"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"beta2": 1.5}, "beta2 is 1.5"),
        ({"ns_steps": 0}, "ns_steps is 0"),
        ({"scale": "spectral"}, "scale is 'spectral' .* one of max_dim, aspect, rms, none"),
        ({"ns_coefficients": [1]}, r"ns_coefficients is \[1\] .* quintic, polar_express, dion"),
        ({"ns_coefficients": "x"}, "ns_coefficients is 'x' .* quintic, polar_express, dion"),
        ({"ns_dtype": "bfloat16"}, "ns_dtype is 'bfloat16' and must be a floating-point"),
        ({"momentum_dtype": torch.int8}, "momentum_dtype is torch.int8"),
        ({"momentum_dtype": torch.float8_e5m2}, "is torch.float8_e5m2 and must be .* of 16 bits"),
        ({"split": 0}, "split is 0"),
        ({"split": []}, r"split is \[\]"),
        ({"nonfinite": "ignore"}, "nonfinite is 'ignore' .* propagate, raise, skip"),
        ({"process_group": "x"}, "process_group is 'x' and must be a group of torch.distributed"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(QuinticError, match=message):
        Muon([p], **{"lr": LR, **options})
    if not {"nonfinite", "process_group"} & options.keys():  # which are not of a group
        with pytest.raises(QuinticError, match=message):
            Muon([{"params": [p], **options}], lr=LR)


def test_an_unknown_option_is_a_type_error_as_of_every_function() -> None:
    with pytest.raises(TypeError, match="foreach"):
        Muon([nn.Parameter(torch.zeros(2, 2))], lr=LR, foreach=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("key", "option"),
    [
        ("lrr", "lr"), ("LR", "lr"), ("wd", "weight_decay"), ("weight_decy", "weight_decay"),
        ("momentun", "momentum"), ("nestrov", "nesterov"), ("ns_step", "ns_steps"),
        ("mu", "momentum"),
    ],
)  # fmt: skip
def test_a_misspelt_option_of_a_group_is_refused(key: str, option: str) -> None:
    p, q = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    said = f"Muon: a group has {key}=3, which is no option: did you mean {option}\\?"
    with pytest.raises(QuinticError, match=said):
        Muon([{"params": [p], key: 3}], lr=LR)
    muon = Muon([p], lr=LR)
    with pytest.raises(QuinticError, match=said):
        muon.add_param_group({"params": [q], key: 3})
    assert len(muon.param_groups) == 1


def test_keys_of_schedulers_and_of_ones_own_stay_in_a_group() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    keys = ["initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "lr_scale",
            "lr_mult", "weight_decay_mult", "name", "label", "betas", "eps"]  # fmt: skip
    values = dict.fromkeys(keys, 0.5) | {"betas": (0.9, 0.95)}
    muon = Muon([{"params": [p], **values}], lr=LR)
    assert {key: muon.param_groups[0][key] for key in keys} == values
    # Those of a group that a scheduler has had, given to another optimizer.
    for make in (
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 10),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.2),
        lambda o: torch.optim.swa_utils.SWALR(o, 0.1),
    ):
        muon = Muon([p], lr=LR)
        make(muon)
        Muon(muon.param_groups, lr=LR)


def stepped(shape: tuple[int, ...] = (4, 4), *, cls: Any = Muon) -> torch.optim.Optimizer:
    p = nn.Parameter(torch.zeros(shape))
    optimizer: torch.optim.Optimizer = cls([("w", p)], lr=LR)
    p.grad = torch.ones(shape)
    optimizer.step()
    return optimizer


def of_whole_numbers(muon: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[str, Any] = muon.state_dict()
    return {**state, "state": {0: {"momentum": torch.zeros(4, 4, dtype=torch.int64)}}}


def with_moment(muon: torch.optim.Optimizer, moment: Any) -> dict[str, Any]:
    state: dict[str, Any] = muon.state_dict()
    state["state"][0]["second_moment"] = moment
    return state


def renamed(muon: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[str, Any] = muon.state_dict()
    state["state"][0]["momentum_buffer"] = state["state"][0].pop("momentum")
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: stepped((4, 2)).state_dict(), r"momentum of w has the shape \[4, 2\] .* \[4, 4\]"),
        (lambda: {**stepped().state_dict(), "param_groups": 3}, "param_groups is 3 and must be a"),
        (lambda: {**stepped().state_dict(), "param_groups": [3]}, "group 0 is 3 and must be a"),
        (lambda: {**stepped().state_dict(), "param_groups": [{"lr": 1}]},
         "group 0 is {'lr': 1} and must be a dict with a list 'params'"),
        (lambda: {**stepped().state_dict(), "state": 3}, "the state dict's state is 3 and must"),
        (lambda: {**stepped().state_dict(), "state": {0: 3}}, "state of 0 is 3 and must be a dict"),
        (lambda: with_moment(stepped(), torch.zeros(4, 2)),
         r"second_moment of w has the shape \[4, 2\] and must have \[4, 1\]"),
        (lambda: with_moment(stepped(), None), "second_moment of w is None, no tensor"),
        (lambda: stepped(cls=torch.optim.Muon).state_dict(), "another optimizer's.*load_foreign"),
        (lambda: stepped(cls=torch.optim.SGD).state_dict(), "another optimizer's"),
        (lambda: renamed(stepped()), "state of w has momentum_buffer and not momentum"),
        (lambda: of_whole_numbers(stepped()), "momentum of w is torch.int64 and must be of"),
        (lambda: 3, "a state dict is a dict, and this is 3"),
        (lambda: {}, "has the keys state and param_groups"),
        (
            lambda: Muon([nn.Parameter(torch.zeros(4, 4)) for _ in range(2)], lr=1).state_dict(),
            r"has groups of \[2\] parameters, and this optimizer of \[1\]",
        ),
        (
            lambda: {"state": {}, "param_groups": [{**stepped().state_dict()["param_groups"][0],
                     "momentum": 2}]},
            "momentum is 2",
        ),
    ],
)  # fmt: skip
def test_a_state_dict_of_something_else_is_refused_whole(state: Any, message: str) -> None:
    muon = stepped()
    before = muon.state_dict()["state"][0]["momentum"].clone()
    with pytest.raises(QuinticError, match=message):
        muon.load_state_dict(state())
    assert torch.equal(muon.state_dict()["state"][0]["momentum"], before)
    assert muon.param_groups[0]["lr"] == LR


def test_a_state_dict_in_another_order_of_names_is_refused() -> None:
    a, b = (nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    saved = Muon([("a", a), ("b", b)], lr=LR).state_dict()
    muon = Muon([("b", b), ("a", a)], lr=LR)
    with pytest.raises(QuinticError, match="the state dict has a in the place of b"):
        muon.load_state_dict(saved)


def test_a_state_dict_of_a_version_with_fewer_options_keeps_the_others() -> None:
    muon = Muon([nn.Parameter(torch.zeros(4, 4))], lr=LR, nonfinite="skip", ns_steps=7)
    saved = muon.state_dict()
    for option in ("split", "flatten", "momentum_dtype", "ns_steps"):
        del saved["param_groups"][0][option]
    muon.load_state_dict(saved)
    assert muon.param_groups[0]["ns_steps"] == 7 and muon.param_groups[0]["split"] is None


@pytest.mark.parametrize("state", [{"0": {}}, {7: {}}])
def test_a_state_of_no_parameter_is_refused(state: dict[Any, Any]) -> None:
    muon = stepped()
    saved = muon.state_dict()
    key = next(iter(state))
    with pytest.raises(QuinticError, match=f"the state dict has a state for {key!r}, which its"):
        muon.load_state_dict({**saved, "state": {key: saved["state"][0]}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_muon": False, "eps": 1e-10}, "use_muon=False, .* MuonWithAdamW with optimizer=adam"),
        ({"maximize": True}, "maximize=True, which Muon does not follow"),
        ({"adjust_lr_fn": "match_rms_adamw"}, "adjust_lr_fn='match_.*match_rms_adamw is rms"),
    ],
)
def test_options_of_other_muons_are_refused_where_they_would_change_something(
    options: dict[str, Any], message: str
) -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(QuinticError, match=message):
        Muon([{"params": [p], **options}], lr=LR)
    Muon([{"params": [p], "use_muon": True, "maximize": False, "adjust_lr_fn": None}], lr=LR)


def test_a_group_that_lost_an_option_is_refused_before_anything_moves() -> None:
    first, second = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    muon = Muon([{"params": [first]}, {"params": [second]}], lr=LR)
    first.grad = second.grad = torch.eye(2)
    del muon.param_groups[1]["scale"]
    with pytest.raises(QuinticError, match="Muon: a group has no scale and must keep all options"):
        muon.step()
    assert not first.any()


def test_what_has_no_shape_yet_is_refused() -> None:
    with pytest.raises(QuinticError, match="Muon: parameter 0 has no shape yet: call its module"):
        Muon(nn.LazyLinear(3, bias=False).parameters(), lr=LR)


@pytest.mark.parametrize("shape", [(4, 1), (2, 2), (1, 3), (3, 4, 3)])
def test_data_of_another_shape_is_refused_before_anything_moves(shape: tuple[int, ...]) -> None:
    """A step would add its momentum by broadcasting, or end in the middle."""
    first, second = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))
    muon = Muon([("first", first), ("second", second)], lr=0.1)
    for p in (first, second):
        p.grad = torch.randn(4, 3)
    muon.step()
    second.grad = None
    second.data = torch.randn(shape)
    second.grad = torch.randn(shape)
    before = [p.detach().clone() for p in (first, second)]
    with pytest.raises(
        QuinticError, match=r"second has the shape \[[\d, ]+\] now, and its momentum \[4, 3\]: make"
    ):
        muon.step()
    assert all(torch.equal(old, p) for old, p in zip(before, (first, second), strict=True))
    muon.state.pop(second)
    muon.step()
    assert not torch.equal(before[1], second)

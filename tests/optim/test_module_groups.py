"""Whose a parameter of any module is: Muon's or AdamW's."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from quintic import Muon, param_groups
from quintic.errors import QuinticError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.output = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)


class Model(nn.Module):
    """Named as many are; the head untied, and 20 words."""

    def __init__(self, *, tie: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 8), nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.up = nn.Linear(8, 16)
        self.head = nn.Linear(8, 20, bias=False)
        if tie:
            self.head.weight = self.tokens.weight


class Other(nn.Module):
    def __init__(self, **parameters: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, value)


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def route(model: nn.Module, **options: Any) -> dict[str, str]:
    """Names to optimizers."""
    groups = param_groups(model, lr=0.02, adamw_lr=3e-4, verbose=False, **options)
    return {name: group["optimizer"] for group in groups for name, _ in group["params"]}


@pytest.mark.parametrize("tie", [False, True])
def test_hidden_matrices_are_muons_and_everything_else_adamws(tie: bool) -> None:
    found = route(Model(tie=tie), adamw=["up.weight"])
    matrices = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("qkv", "output")}
    assert {name for name, optimizer in found.items() if optimizer == "muon"} == matrices
    assert found.keys() == {name for name, _ in Model(tie=tie).named_parameters()}


def test_a_layer_outside_the_list_is_hidden_too_unless_it_is_the_head() -> None:
    assert route(Other(fc1=nn.Linear(4, 6), score=nn.Linear(6, 3))) == {
        "fc1.weight": "muon",
        "fc1.bias": "adamw",
        "score.weight": "adamw",
        "score.bias": "adamw",
    }
    # As many outputs as words, under a name of its own.
    assert route(Other(words=nn.Embedding(9, 4), last=nn.Linear(4, 9)))["last.weight"] == "adamw"


def test_what_a_model_calls_its_output_embeddings_is_its_head() -> None:
    class Named(Other):
        def get_output_embeddings(self) -> nn.Module:
            return self.get_submodule("predictor")

    assert route(Named(predictor=nn.Linear(4, 5)))["predictor.weight"] == "adamw"
    assert route(Other(predictor=nn.Linear(4, 5)))["predictor.weight"] == "muon"


def test_two_dimensional_biases_and_learned_embeddings_are_adamws() -> None:
    found = route(Other(bias_qk=matrix(2, 4), pos_embed=matrix(1, 6, 4), W=matrix(4, 4)))
    assert found == {"bias_qk": "adamw", "pos_embed": "adamw", "W": "muon"}


def test_groups_have_the_rates_and_print_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    groups = param_groups(
        Model(), lr=0.02, adamw_lr=3e-4, scale="aspect", weight_decay=0.1, adamw_weight_decay=0.2,
        split={"*.qkv.weight": 3},
    )  # fmt: skip
    rates = [(g["optimizer"], g["lr"], g["weight_decay"], g.get("split")) for g in groups]
    assert rates == [
        ("muon", 0.02, 0.1, 3),
        ("muon", 0.02, 0.1, None),
        ("adamw", 3e-4, 0.2, None),
        ("adamw", 3e-4, 0.0, None),
    ]
    assert all(p.ndim < 2 for _, p in groups[3]["params"])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(list(Model().named_parameters()))
    # A third of 24 rows by 8 columns is square, and 16 rows by 8 are not.
    cells = {row.split()[0]: row.split() for row in table}
    assert cells["blocks.0.qkv.weight"][-4:] == ["0.02", "1", "0.02", "0.1"]
    assert cells["up.weight"][-4:] == ["0.02", "1.414", "0.02828", "0.1"]
    assert cells["head.weight"][-4:] == ["0.0003", "1", "0.0003", "0.2"]


def test_convolutions_and_batches_of_matrices_are_muons_where_asked() -> None:
    model = Other(conv=nn.Conv2d(3, 6, 2), experts=matrix(2, 4, 5))
    with pytest.raises(QuinticError, match=r"experts has the shape \[2, 4, 5\]: name it in muon"):
        route(model)
    assert route(model, adamw=["experts"])["conv.weight"] == "adamw"
    groups = param_groups(
        model, lr=0.1, adamw_lr=0.1, muon=["experts"], flatten=True, verbose=False
    )
    muon = Muon([group for group in groups if group["optimizer"] == "muon"], lr=0.1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    muon.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"conv.weight", "experts"}


def test_frozen_parameters_are_in_no_group_and_wrappers_change_no_name() -> None:
    model = Model()
    model.blocks[0].requires_grad_(False)
    assert not any(name.startswith("blocks.0") for name in route(model))
    wrapped = Other(module=cast(nn.Module, torch.compile(model)))
    assert route(wrapped) == route(model)
    assert route(wrapped, adamw=["blocks.1.qkv.*"])["blocks.1.qkv.weight"] == "adamw"


def test_a_tied_parameter_that_both_claim_is_refused_until_it_is_named() -> None:
    model = Other(a=nn.Linear(4, 4), score=nn.Linear(4, 4))
    model.score.weight = model.a.weight  # type: ignore[union-attr]
    with pytest.raises(QuinticError) as caught:
        route(model)
    assert str(caught.value) == (
        "one tied parameter goes to both optimizers: a.weight (muon: matrix) = "
        "score.weight (adamw: output head); name it in one"
    )
    assert route(model, muon=["a.weight"])["a.weight"] == "muon"
    with pytest.raises(QuinticError, match="both optimizers"):
        route(model, muon=["a.weight"], adamw=["score.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"muon": ["up.*"], "adamw": ["*.weight"]}, "up.weight is named in muon and in adamw"),
        ({"muon": ["upp.weight"]}, "muon: upp.weight matches no parameter .* did you mean up."),
        ({"adamw": "up.weight"}, "adamw is 'up.weight' and must be a list of patterns"),
        ({"split": {"*.qkv.weight": 5}}, r"blocks.0.qkv.weight has the shape \[24, 8\]: split=5"),
        ({"split": {"head.weight": 2}}, "split names head.weight, which AdamW updates"),
        ({"scale": "rsm"}, "scale is 'rsm' and must be one of max_dim, aspect, rms, none"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        route(Model(), **options)

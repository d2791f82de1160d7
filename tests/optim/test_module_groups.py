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
    rates = {"lr": 0.02, "adamw_lr": 3e-4, "verbose": False}
    groups = param_groups(model, **{**rates, **options})
    return {name: group["optimizer"] for group in groups for name, _ in group["params"]}


@pytest.mark.parametrize("tie", [False, True])
def test_hidden_matrices_are_muons_and_everything_else_adamws(tie: bool) -> None:
    found = route(Model(tie=tie), adamw=["up.weight"])
    matrices = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("qkv", "output")}
    assert {name for name, optimizer in found.items() if optimizer == "muon"} == matrices
    assert found.keys() == {name for name, _ in Model(tie=tie).named_parameters()}


@pytest.mark.parametrize("name", ["score", "fc", "out"])
def test_a_layer_outside_the_list_is_hidden_too_unless_it_is_the_head(name: str) -> None:
    assert route(Other(fc1=nn.Linear(4, 6), **{name: nn.Linear(6, 3)})) == {
        "fc1.weight": "muon",
        "fc1.bias": "adamw",
        f"{name}.weight": "adamw",
        f"{name}.bias": "adamw",
    }
    # One whose name says so is it, wherever it stands.
    found = route(Other(score=nn.Linear(6, 3), fc1=nn.Linear(4, 6)))
    assert (found["score.weight"], found["fc1.weight"]) == ("adamw", "muon")


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 3))


@pytest.mark.parametrize("model", [layers(), Other(net=layers())])
def test_a_sequential_ends_with_the_head(model: nn.Module) -> None:
    found = {n: o for n, o in route(model).items() if n.endswith("weight")}
    assert list(found.values()) == ["muon", "muon", "adamw"]


def test_a_list_of_blocks_has_no_head() -> None:
    blocks = nn.ModuleList(Other(mlp=layers()) for _ in range(2))
    found = route(Other(words=nn.Embedding(9, 4), blocks=blocks))
    assert {o for n, o in found.items() if n.startswith("blocks") and "weight" in n} == {"muon"}


def test_conv1d_is_known_to_be_stored_as_in_out() -> None:
    class Conv1D(nn.Module):
        """As transformers 5.24 has it (`pytorch_utils.py`)."""

        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight, self.bias = matrix(nx, nf), nn.Parameter(torch.zeros(nf))

    model = Other(c_attn=Conv1D(24, 8), own=matrix(8, 24))
    groups = param_groups(
        model, lr=0.1, adamw_lr=0.1, scale="aspect", muon=["*.weight", "own"], adamw=["*.bias"],
        split={"*.weight": 3, "own": 3}, transposed=["own"], verbose=False,
    )  # fmt: skip
    assert [name for name, _ in groups[0]["params"]] == ["own", "c_attn.weight"]
    assert groups[0]["transposed"] and groups[0]["split"] == 3


def test_what_a_model_calls_its_output_embeddings_is_its_head() -> None:
    class Named(Other):
        def get_output_embeddings(self) -> nn.Module:
            return self.get_submodule("predictor")

    found = route(Named(predictor=nn.Linear(4, 5), last=nn.Linear(4, 4)))
    assert (found["predictor.weight"], found["last.weight"]) == ("adamw", "muon")


def test_two_dimensional_biases_and_learned_embeddings_are_adamws() -> None:
    tables = {name: matrix(6, 4) for name in ("pos_emb", "wpe", "pos", "position_table")}
    found = route(Other(bias_qk=matrix(2, 4), pos_embed=matrix(1, 6, 4), **tables))
    assert set(found.values()) == {"adamw"} and found.keys() > tables.keys()


def test_bare_parameters_are_vectors_or_must_be_named() -> None:
    vectors = {"mask_token": matrix(1, 8), "alpha": matrix(8, 1), "cls_token": matrix(1, 1, 8)}
    found = route(Other(**vectors, text_projection=matrix(4, 6)))
    assert set(found.values()) == {"adamw"}
    # As Mamba has it, whose use is element by element.
    model = Other(mixer=Other(A_log=matrix(16, 4)), up=nn.Linear(8, 16), score=nn.Linear(16, 2))
    with pytest.raises(QuinticError) as caught:
        route(model)
    assert str(caught.value) == (
        "mixer.A_log has the shape [16, 4]: name it in muon, where it is a matrix that vectors are "
        "multiplied by, or in adamw"
    )
    assert route(model, adamw=["*.A_log"])["up.weight"] == "muon"
    assert route(model, muon=["*.A_log"])["mixer.A_log"] == "muon"


def test_weights_of_known_layers_are_matrices_whatever_they_are_called() -> None:
    model = Other(
        attention=nn.MultiheadAttention(4, 2, kdim=6), rnn=nn.LSTM(4, 3), cell=nn.GRUCell(4, 3),
        normed=nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), narrow=nn.Linear(4, 1),
        score=nn.Linear(4, 2),
    )  # fmt: skip
    muons = {name for name, optimizer in route(model).items() if optimizer == "muon"}
    assert muons == {
        *(f"attention.{name}_proj_weight" for name in "qkv"),
        *("attention.out_proj.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"),
        *("cell.weight_ih", "cell.weight_hh", "narrow.weight"),
        "normed.parametrizations.weight.original1",
    }


@pytest.mark.parametrize(
    ("model", "matrices"),
    [
        (nn.TransformerEncoderLayer(4, 2, 6), {"linear1.weight", "linear2.weight"}),
        (nn.MultiheadAttention(4, 2), {"out_proj.weight"}),
        (Other(words=nn.Embedding(5, 4), only=nn.TransformerDecoderLayer(4, 2, 6)),
         {"only.linear1.weight", "only.linear2.weight"}),
    ],
)  # fmt: skip
def test_a_transformer_layer_alone_has_no_head(model: nn.Module, matrices: set[str]) -> None:
    found = route(model)
    assert {name for name in found if "weight" in name and "norm" not in name} - {
        name for name, optimizer in found.items() if optimizer == "muon"
    } <= {"words.weight"}
    assert {found[name] for name in matrices} == {"muon"}


def test_both_projections_of_clip_are_heads() -> None:
    found = route(Other(
        up=nn.Linear(4, 6), visual_projection=nn.Linear(6, 3), text_projection=nn.Linear(6, 3)
    ))  # fmt: skip
    assert {n for n, o in found.items() if o == "muon"} == {"up.weight"}


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
    wrapped = nn.DataParallel(cast(nn.Module, torch.compile(model)))
    assert route(wrapped) == route(model)
    assert list(route(Other(module=Other(a=matrix(2))))) == ["module.a"]  # the model's own
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
        ({"split": 3}, r"split is 3 and must be a dict of patterns and their parts, such as \{'"),
        ({"split": ["up.weight"]}, "split is .* and must be a dict of patterns"),
        ({"split": {"up.weight": "a"}}, "split is 'a' and must be a number of parts"),
        ({"muon": 3}, "muon is 3 and must be a list of patterns"),
        ({"muon": iter(["up.weight"])}, "muon is .* and must be a list of patterns"),
        ({"split": {"head.weight": 2}}, "split names head.weight, which AdamW updates"),
        ({"transposed": ["nothing"]}, "transposed: nothing matches no parameter"),
        ({"adamw_lr": float("nan")}, "AdamW: lr is nan and must be 0 or more"),
        ({"adamw_weight_decay": -1}, "AdamW: weight_decay is -1 and must be 0 or more"),
        ({"scale": "rsm"}, "scale is 'rsm' and must be one of max_dim, aspect, rms, none"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        route(Model(), **options)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(QuinticError, match=r"the model is \[1\] and must be an nn.Module"):
        route([1])  # type: ignore[arg-type]

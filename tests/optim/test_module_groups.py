"""Whose a parameter of any module is: Muon's or AdamW's."""

from __future__ import annotations

import re
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


class Predictor(nn.Module):
    """As DETR predicts boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4)])


class Single(nn.Module):
    """One head of an attention, as in lectures."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(8, 4) for _ in range(3))


@pytest.mark.parametrize(
    ("layers", "heads"),
    [
        ({"policy": nn.Linear(8, 3), "value": nn.Linear(8, 1)}, {"policy", "value"}),
        ({"policy_head": nn.Linear(8, 3), "value_head": layers()}, {"policy_head", "value_head.3"}),
        ({"heads": nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 1)])}, {"heads.0", "heads.1"}),
        ({"class_labels_classifier": nn.Linear(8, 5), "bbox_predictor": Predictor()},
         {"class_labels_classifier", "bbox_predictor.layers.1"}),
        ({"cls": Other(seq_relationship=nn.Linear(8, 2)), "lm_head": nn.Linear(8, 9)},
         {"cls.seq_relationship", "lm_head"}),
        ({"attention": Other(heads=nn.ModuleList([Single(), Single()])), "fc": nn.Linear(8, 3)},
         {"fc"}),
        ({"head": torch.compile(nn.Linear(8, 3)), "last": nn.Linear(8, 8)}, {"head"}),
        ({"predictor": nn.TransformerEncoderLayer(8, 2, 8), "fc": nn.Linear(8, 2)}, {"fc"}),
    ],
)  # fmt: skip
def test_heads_are_told_by_their_name_or_that_of_the_module_which_they_end(
    layers: dict[str, nn.Module], heads: set[str]
) -> None:
    trunk = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    found = route(Other(trunk=trunk, **layers))
    adamws = {n for n, o in found.items() if o == "adamw" and "norm" not in n}
    assert {n.removesuffix(".weight") for n in adamws if n.endswith("weight")} == heads


def test_a_head_that_is_defined_first_is_told_by_its_name() -> None:
    found = route(Other(out=nn.Linear(8, 5), a=nn.Linear(8, 8), b=nn.Linear(8, 8)))
    assert [found[f"{n}.weight"] for n in ("out", "a", "b")] == ["adamw", "muon", "muon"]
    assert route(nn.Linear(4, 3))["weight"] == "adamw"


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_what_a_parametrization_keeps_goes_where_its_layers_weight_goes(norm: str) -> None:
    model = Model()
    for layer in (model.head, model.tokens, model.up):
        getattr(nn.utils.parametrizations, norm)(layer)
    found = {n: o for n, o in route(model).items() if n.endswith(("original", "original1"))}
    assert {n.split(".")[0]: o for n, o in found.items()} == {
        **dict.fromkeys(("head", "tokens"), "adamw"),
        "up": "muon",
    }


def test_factors_of_an_unknown_parametrization_must_be_named() -> None:
    class Factors(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a @ b

        def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return weight[:, :2], weight[:2]

    model = Model()
    nn.utils.parametrize.register_parametrization(model.up, "weight", Factors())
    with pytest.raises(QuinticError, match=r"up\.\S+\.original0 has the shape \[16, 2\]: name it"):
        route(model)


def test_weight_decay_leaves_out_vectors_and_biases_of_any_number_of_axes() -> None:
    model = Other(
        cls_token=matrix(1, 1, 8), gamma=matrix(8, 1, 1), experts_bias=matrix(4, 8),
        normed=nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), value=nn.Linear(8, 1),
    )  # fmt: skip
    groups = param_groups(
        model, lr=0.1, adamw_lr=0.1, adamw_weight_decay=0.1, adamw=["gamma"], verbose=False
    )
    decays = {name: g["weight_decay"] for g in groups for name, _ in g["params"]}
    assert {name for name, decay in decays.items() if decay} == {"value.weight"}


def test_a_pattern_for_experts_leaves_their_biases_to_adamw() -> None:
    experts = Other(up=matrix(2, 4, 6), up_bias=matrix(2, 6), each=nn.ModuleList([nn.Linear(4, 6)]))
    model = Other(experts=experts)
    found = route(model, muon=["experts.*"])
    assert {n for n, o in found.items() if o == "muon"} == {"experts.up", "experts.each.0.weight"}
    assert route(model, muon=["experts.up", "experts.up_bias"])["experts.up_bias"] == "muon"
    with pytest.raises(QuinticError, match=r"muon names experts.up_bias, which AdamW updates$"):
        route(model, muon=["experts.up", "*_bias"])


def test_rates_that_are_tensors_are_each_groups_own(capsys: pytest.CaptureFixture[str]) -> None:
    lr = torch.tensor([0.02])
    groups = param_groups(Model(), lr=lr, adamw_lr=lr, split={"*.qkv.weight": 3})  # type: ignore[arg-type]
    assert len({g["lr"].data_ptr() for g in groups} | {lr.data_ptr()}) == len(groups) + 1 > 3
    assert all(g["lr"] == lr for g in groups)
    assert "0.02" in capsys.readouterr().out


def test_the_table_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    param_groups(Model(), lr=0.02, adamw_lr=3e-4, adamw=["blocks.0.output.*"])
    lines = capsys.readouterr().out.splitlines()
    why = {line.split()[0]: re.split(r"\s{2,}", line)[3] for line in lines}
    assert why["head.weight"] == "output head, by the name head"
    assert (why["tokens.weight"], why["up.weight"]) == ("embedding", "matrix")
    assert (why["blocks.0.output.weight"], why["up.bias"]) == ("named", "vector or scalar")


def test_patterns_of_split_take_what_is_muons() -> None:
    groups = param_groups(
        Model(tie=True), lr=0.1, adamw_lr=0.1, muon=["tokens.weight"], verbose=False,
        split={"blocks.0.*": 2, "head.weight": 4},
    )  # fmt: skip
    splits = {name: g.get("split") for g in groups for name, _ in g["params"]}
    assert splits["blocks.0.qkv.weight"] == 2 and splits["blocks.0.qkv.bias"] is None
    assert splits["tokens.weight"] == 4  # by its other name


def test_a_transposed_convolution_is_adamws_and_a_normed_one_the_matrix_that_it_multiplies_by() -> (
    None
):
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 2))
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Conv1d(3, 6, 2))
    model = Other(up=nn.ConvTranspose2d(6, 4, 2), normed=normed, old=old, odd=matrix(2, 3, 2, 2))
    with pytest.raises(QuinticError, match=r"odd has the shape \[2, 3, 2, 2\]: name it in adamw$"):
        route(model)
    found = route(model, flatten=True, adamw=["odd"])
    assert {n for n, o in found.items() if o == "muon"} == {
        "normed.parametrizations.weight.original1",
        "old.weight_v",
    }
    assert route(model, adamw=["odd"])["normed.parametrizations.weight.original1"] == "adamw"
    with pytest.raises(QuinticError, match=r"up\.weight is a transposed convolution's"):
        route(model, flatten=True, adamw=["odd"], muon=["up.weight"])


def test_a_layer_without_a_shape_is_refused() -> None:
    with pytest.raises(QuinticError, match=r"0\.weight has no shape yet: run the model once"):
        route(nn.Sequential(nn.LazyLinear(3)))


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
        "score.weight (adamw: output head, by the name score); name it in one"
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
        ({"transposed": ["head.weight"]}, "transposed names head.weight, which AdamW updates"),
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

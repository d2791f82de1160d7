"""Every parameter belongs to exactly one optimizer, and the table says what runs."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch

from quintic.config import AdamWConfig, ModelConfig, MuonConfig, OptimConfig
from quintic.errors import QuinticError
from quintic.model.base import Head, LanguageModel
from quintic.model.build import build_model, meta_model
from quintic.optim.muon import Muon
from quintic.optim.param_groups import (
    ParamSpec,
    assign_parameters,
    build_optimizers,
    check_param_specs,
    param_groups_table,
)
from quintic.recipes import RECIPES, get_recipe

CPU = torch.device("cpu")
SIZES = ModelConfig(layers=2, width=16, heads=2, context=8, vocab_size=32)
MODELS = {"gpt": SIZES, "gpt2": replace(SIZES, architecture="gpt2")}
MATRICES = {
    f"layers.{layer}.{name}.weight": shape
    for layer in range(2)
    for name, shape in {
        "attention.q": (16, 16),
        "attention.k": (16, 16),
        "attention.v": (16, 16),
        "attention.o": (16, 16),
        "mlp.up": (64, 16),
        "mlp.down": (16, 64),
    }.items()
}

both = pytest.mark.parametrize("architecture", ["gpt", "gpt2"])


def table(
    architecture: str, config: OptimConfig, names: set[str] | None = None
) -> dict[str, ParamSpec]:
    specs = assign_parameters(build_model(MODELS[architecture]), config)
    return {spec.name: spec for spec in specs if names is None or spec.name in names}


@both
def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_else(architecture: str) -> None:
    specs = table(architecture, OptimConfig(matrices="muon"))
    assert {n: r.shape for n, r in specs.items() if r.optimizer == "muon"} == MATRICES
    rest = {n for n, r in specs.items() if r.optimizer == "adamw"}
    if architecture == "gpt":
        assert rest == {"embed.weight"}
    else:
        assert {"embed.weight", "positions.weight", "final_norm.bias"} < rest
        assert all(name.endswith(".bias") or "norm" in name for name in rest if "layers" in name)


def test_the_ablations_parameters_are_adamws() -> None:
    config = replace(SIZES, positions="learned", norm="layernorm")
    adamw = AdamWConfig(weight_decay=0.1)
    specs = assign_parameters(build_model(config), OptimConfig(adamw=adamw))
    assert {spec.name for spec in specs if spec.optimizer == "muon"} == set(MATRICES)
    rest = {spec.name: spec.weight_decay for spec in specs if spec.optimizer == "adamw"}
    norms = [
        "final_norm",
        *(f"layers.{i}.{part}_norm" for i in (0, 1) for part in ("attention", "mlp")),
    ]
    vectors = {f"{norm}.{kind}": 0.0 for norm in norms for kind in ("weight", "bias")}
    assert rest == {"embed.weight": 0.1, "positions.weight": 0.1, **vectors}


def test_an_untied_head_is_adamws_with_a_learning_rate_of_its_own_if_asked() -> None:
    model = build_model(replace(SIZES, tied_head=False))
    for head_lr, expected in ((None, 0.003), (0.008, 0.008)):
        adamw = AdamWConfig(lr=0.003, matrix_lr=0.001, head_lr=head_lr, weight_decay=0.1)
        specs = {r.name: r for r in assign_parameters(model, OptimConfig(adamw=adamw))}
        assert specs["head.weight"] == ParamSpec(
            "head.weight", (32, 16), "adamw", expected, scale=1.0, weight_decay=0.1
        )
        assert specs["embed.weight"].lr == 0.003


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_shortcuts_are_adamws_and_their_scalars_have_a_learning_rate_of_their_own_if_asked(
    matrices: Literal["muon", "adamw"],
) -> None:
    config = replace(
        SIZES,
        token_smear=True,
        bigram_embeddings=8,
        value_embeddings=1,
        x0_skip=True,
        unet_skips=True,
    )
    model = build_model(config)
    for scalar_lr in (None, 0.04):
        adamw = AdamWConfig(lr=0.003, matrix_lr=0.001, scalar_lr=scalar_lr, weight_decay=0.1)
        specs = assign_parameters(model, OptimConfig(matrices=matrices, adamw=adamw))
        check_param_specs(model, specs)
        assert {r.name for r in specs if r.name in MATRICES} == set(MATRICES)
        found = {
            r.name: (r.shape, r.optimizer, r.lr, r.weight_decay)
            for r in specs
            if r.name not in MATRICES
        }
        scalar = ("adamw", scalar_lr or 0.003, 0.0)
        assert found == {
            "embed.weight": ((32, 16), "adamw", 0.003, 0.1),
            "smear.own": ((16,), "adamw", 0.003, 0.0),
            "smear.before": ((16,), "adamw", 0.003, 0.0),
            "bigram_embed.weight": ((8, 16), "adamw", 0.003, 0.1),
            "value_embed.weight": ((32, 16), "adamw", 0.003, 0.1),
            "skips.0.weight": ((1,), *scalar),
            **{f"layers.{i}.shortcut.weight": ((2,), *scalar) for i in (0, 1)},
            **{f"layers.{i}.attention.value_mix.weight": ((2,), *scalar) for i in (0, 1)},
        }


@both
def test_adamw_takes_everything_where_the_matrices_are_its_own(architecture: str) -> None:
    adamw = AdamWConfig(lr=0.003, matrix_lr=0.001)
    specs = table(architecture, OptimConfig(matrices="adamw", adamw=adamw))
    assert {spec.optimizer for spec in specs.values()} == {"adamw"}
    assert {spec.scale for spec in specs.values()} == {1.0}
    for name, spec in specs.items():
        assert spec.lr == spec.effective_lr == (0.001 if name in MATRICES else 0.003), name
    same = table(architecture, OptimConfig(matrices="adamw", adamw=replace(adamw, matrix_lr=None)))
    assert {spec.lr for spec in same.values()} == {0.003}


@pytest.mark.parametrize(
    ("scale", "square", "tall", "wide"),
    [
        ("max_dim", 4.0, 8.0, 8.0),
        ("aspect", 1.0, 2.0, 1.0),
        ("rms", 0.8, 1.6, 1.6),
        ("none", 1.0, 1.0, 1.0),
    ],
)
def test_effective_learning_rates_of_each_scale(
    scale: Literal["max_dim", "aspect", "rms", "none"], square: float, tall: float, wide: float
) -> None:
    specs = table("gpt", OptimConfig(muon=MuonConfig(lr=0.01, scale=scale)))
    for matrix, factor in (("attention.q", square), ("mlp.up", tall), ("mlp.down", wide)):
        spec = specs[f"layers.1.{matrix}.weight"]
        assert spec.scale == pytest.approx(factor)
        assert spec.effective_lr == pytest.approx(0.01 * factor)


def test_the_printed_effective_rate_is_the_size_of_the_update_that_runs() -> None:
    # An orthogonal update has spectral norm near 1, so the weight moves by the effective rate.
    model = build_model(SIZES)
    config = OptimConfig(muon=MuonConfig(lr=0.01, scale="max_dim"))
    specs = assign_parameters(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (muon, _) = build_optimizers(model, specs, config, device=CPU)
    random = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=random)
    muon.step()
    for spec in specs:
        moved = dict(model.named_parameters())[spec.name].detach() - before[spec.name]
        if spec.optimizer == "muon":
            size = torch.linalg.matrix_norm(moved, 2).item()
            assert 0.6 < size / spec.effective_lr < 1.3, spec
        else:
            assert not moved.any()


@both
@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_vectors_are_never_decayed(architecture: str, matrices: Literal["muon", "adamw"]) -> None:
    config = OptimConfig(
        matrices=matrices,
        muon=MuonConfig(weight_decay=0.2),
        adamw=AdamWConfig(weight_decay=0.1),
    )
    for name, spec in table(architecture, config).items():
        expected = 0.0
        if len(spec.shape) == 2:
            expected = 0.2 if spec.optimizer == "muon" else 0.1
        assert spec.weight_decay == expected, name


@both
@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group_of_one_optimizer(
    architecture: str, matrices: Literal["muon", "adamw"]
) -> None:
    config = OptimConfig(matrices=matrices, adamw=AdamWConfig(weight_decay=0.1))
    model = build_model(MODELS[architecture])
    optimizers = build_optimizers(model, assign_parameters(model, config), config, device=CPU)
    claimed = [
        (name, id(p))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    ]
    assert sorted(claimed) == sorted((name, id(p)) for name, p in model.named_parameters())
    assert [type(optimizer) for optimizer in optimizers] == (
        [Muon, torch.optim.AdamW] if matrices == "muon" else [torch.optim.AdamW]
    )


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_routes_every_parameter_of_its_model(recipe: str) -> None:
    config = get_recipe(recipe)
    model = meta_model(replace(config.model, vocab_size=config.model.vocab_size or 4096))
    specs = assign_parameters(model, config.optim)
    check_param_specs(model, specs)
    assert sum(math.prod(spec.shape) for spec in specs) == model.parameter_count()


def test_groups_carry_rate_and_decay_of_the_table() -> None:
    config = OptimConfig(
        matrices="adamw", adamw=AdamWConfig(lr=0.003, matrix_lr=0.001, weight_decay=0.1)
    )
    model = build_model(MODELS["gpt2"])
    specs = {spec.name: spec for spec in assign_parameters(model, config)}
    (adamw,) = build_optimizers(model, list(specs.values()), config, device=CPU)
    assert len(adamw.param_groups) == 3  # matrices of the blocks, embeddings, vectors
    for group in adamw.param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert group["eps"] == 1e-8
        for name in group["names"]:
            assert group["lr"] == group["base_lr"] == specs[name].lr
            assert group["weight_decay"] == specs[name].weight_decay


@pytest.mark.parametrize(
    ("ns_dtype", "weights", "expected"),
    [
        ("auto", torch.float32, torch.float32),
        ("auto", torch.float64, torch.float64),
        ("bfloat16", torch.float32, torch.bfloat16),
    ],
)
def test_precision_of_newton_schulz_is_as_configured(
    ns_dtype: Literal["auto", "bfloat16"], weights: torch.dtype, expected: torch.dtype
) -> None:
    config = OptimConfig(muon=MuonConfig(ns_dtype=ns_dtype, ns_steps=3, momentum=0.8))
    model = build_model(SIZES, compute_dtype=weights)
    muon = build_optimizers(model, assign_parameters(model, config), config, device=CPU)[0]
    (group,) = muon.param_groups
    assert (group["ns_dtype"], group["ns_steps"], group["momentum"]) == (expected, 3, 0.8)


# What must be refused -----------------------------------------------------------------------------


def with_specs() -> tuple[LanguageModel, list[ParamSpec]]:
    model = build_model(SIZES)
    return model, assign_parameters(model, OptimConfig())


def test_an_unclaimed_parameter_is_refused_by_name() -> None:
    model, specs = with_specs()
    missing = [spec for spec in specs if spec.name != "layers.1.mlp.up.weight"]
    with pytest.raises(QuinticError, match=r"claimed by no optimizer: layers\.1\.mlp\.up\.weight"):
        build_optimizers(model, missing, OptimConfig(), device=CPU)


def test_a_parameter_claimed_twice_is_refused_by_name() -> None:
    model, specs = with_specs()
    again = replace(specs[0], optimizer="muon")
    with pytest.raises(QuinticError, match=r"claimed twice: embed\.weight"):
        check_param_specs(model, [*specs, again])


def test_a_spec_without_a_parameter_is_refused_by_name() -> None:
    model, specs = with_specs()
    with pytest.raises(QuinticError, match=r"does not have: \['head\.weight'\]"):
        check_param_specs(model, [*specs, replace(specs[0], name="head.weight")])


def test_one_tensor_claimed_under_two_names_is_refused_with_both() -> None:
    model, specs = with_specs()
    model.head = Head(32, 16)
    model.head.weight = model.embed.weight
    check_param_specs(model, specs)  # one claim of the tied tensor is right
    assert [spec.name for spec in assign_parameters(model, OptimConfig())] == [
        spec.name for spec in specs
    ]
    second = replace(specs[0], name="head.weight", optimizer="muon")
    with pytest.raises(QuinticError, match=r"embed\.weight \(adamw\), head\.weight \(muon\)"):
        check_param_specs(model, [*specs, second])


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_a_block_matrix_tied_to_the_embedding_is_refused_with_both_names(
    matrices: Literal["muon", "adamw"],
) -> None:
    model = build_model(replace(SIZES, vocab_size=64))
    model.layers[1].mlp.up.weight = model.embed.weight  # type: ignore[union-attr]
    with pytest.raises(QuinticError, match=r"layers\.1\.mlp\.up\.weight is tied to embed\.weight"):
        assign_parameters(model, OptimConfig(matrices=matrices))


# AdamW's state ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_state_allocated_up_front_is_what_pytorch_would_allocate(
    architecture: str, dtype: torch.dtype
) -> None:
    config = OptimConfig(matrices="adamw", adamw=AdamWConfig(lr=0.01, weight_decay=0.1))
    ours = build_model(MODELS[architecture], compute_dtype=dtype)
    theirs = build_model(MODELS[architecture], compute_dtype=dtype)
    (adamw,) = build_optimizers(ours, assign_parameters(ours, config), config, device=CPU)
    decayed = [p for p in theirs.parameters() if p.ndim == 2]
    plain = [p for p in theirs.parameters() if p.ndim != 2]
    lazy = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    assert len(adamw.state) == len(list(ours.parameters()))
    assert not any(value.any() for state in adamw.state.values() for value in state.values())
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=random, dtype=dtype)
            q.grad = p.grad.clone()
        adamw.step()
        lazy.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
        assert adamw.state[p].keys() == lazy.state[q].keys()
        for key, value in lazy.state[q].items():
            assert adamw.state[p][key].dtype == value.dtype
            assert torch.equal(adamw.state[p][key], value), key


# The table ----------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_parameter_and_aligned_columns() -> None:
    config = OptimConfig(muon=MuonConfig(lr=3.6e-4), adamw=AdamWConfig(lr=3.6e-3))
    specs = assign_parameters(build_model(SIZES), config)
    text = param_groups_table(specs)
    header, *lines = text.splitlines()
    assert text.endswith("\n")
    assert len(lines) == len(specs) == 13
    assert header.split("  ")[0] == "parameter"
    start = header.index("optimizer")
    assert [line[start:].split()[0] for line in lines] == ["adamw"] + 12 * ["muon"]
    rates = header.index("effective lr")
    up = next(line for line in lines if line.startswith("layers.0.mlp.up.weight"))
    assert "64 x 16" in up
    assert up[rates:].split()[0] == "0.00288"  # 3.6e-4 * sqrt(64)

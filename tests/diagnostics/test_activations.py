"""The numbers of the layers, against the model's own parts put together by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quintic.config import ModelConfig
from quintic.diagnostics.activations import SAMPLE_TOKENS, observe_layers, sample_rows
from quintic.distributed.world import ALONE
from quintic.model.base import LanguageModel
from quintic.model.build import build_model
from quintic.model.fused import fuse
from quintic.model.gpt import ForwardContext

CPU = torch.device("cpu")
T, VOCAB = 12, 64


def model_of(**options: object) -> tuple[LanguageModel, ModelConfig]:
    config = ModelConfig(layers=2, width=16, heads=2, context=T, vocab_size=VOCAB, **options)  # type: ignore[arg-type]
    return build_model(config, compute_dtype=torch.float64), config


def tokens(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(VOCAB, (rows, T + 1), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


@torch.no_grad()
def test_a_fused_model_is_seen_through_its_own_parts() -> None:
    model, _ = model_of(init="classic", key_smear=True)
    expected = observe_layers(model, tokens(2), [0, 1], CPU, ALONE)
    assert all(math.isfinite(most) for facts in expected for most in facts["attention_logit_max"])
    fuse(model)
    assert observe_layers(model, tokens(2), [0, 1], CPU, ALONE) == expected
    assert {"qkv", "attend"} <= vars(model.layers[0].attention).keys()


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
def test_of_gpt(window: int | None) -> None:
    model, config = model_of(window=window, init="classic")
    first = model.layers[0]
    # Of one layer's units the first half gets nothing and never fires.
    first.mlp.up.weight[: 2 * config.width] = 0  # type: ignore[union-attr, operator]
    inputs_BT, targets_BT = tokens(3)
    found = observe_layers(model, (inputs_BT, targets_BT), [0, 2, None], CPU, ALONE)

    x_BTD = model.embed(inputs_BT[[0, 2]])
    mask = model.attn_mask(inputs_BT[:1], None)  # type: ignore[operator]
    ctx = ForwardContext(model.positions, slice(0, T), None, torch.float64, mask, None, None)  # type: ignore[arg-type]
    attention = first.attention
    normed = first.attention_norm(x_BTD)  # type: ignore[operator]
    q, k = (
        model.positions.rotate(attention.qk_norm(attention.split(linear(normed))), slice(0, T))  # type: ignore[operator, union-attr]
        for linear in (attention.q, attention.k)  # type: ignore[union-attr]
    )
    for head in range(2):
        largest = max(
            (q[b, head, t] @ k[b, head, s]).item() / math.sqrt(8)
            for b in range(2)
            for t in range(T)
            for s in range(max(0, t - window + 1) if window else 0, t + 1)
        )
        assert found[0]["attention_logit_max"][head] == pytest.approx(largest, rel=1e-12)
    y_BTD = first(x_BTD, None, ctx)
    rms = y_BTD.square().mean().sqrt().item()
    assert found[0]["residual_rms"] == pytest.approx(rms, rel=1e-12)
    assert found[0]["dead_units"] == 0.5
    assert found[1]["dead_units"] < 0.1
    assert not first._forward_hooks and not first.mlp.down._forward_pre_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{"architecture": "gpt2"}, {"activation": "gelu"}], ids=str)
def test_only_squared_relu_has_dead_units(options: dict[str, str]) -> None:
    model, _ = model_of(**options)
    found = observe_layers(model, tokens(1), [0], CPU, ALONE)
    assert [layer["dead_units"] for layer in found] == [None, None]
    assert all(len(layer["attention_logit_max"]) == 2 for layer in found)


def test_every_process_looks_at_its_rows_of_the_same_first_sequences() -> None:
    context = SAMPLE_TOKENS // 5
    split = [range(0, 3), range(3, 6), range(6, 8)]  # 8 sequences on 3 processes
    found = [sample_rows(rows, 8, context, 3) for rows in split]
    assert found == [[0, 1, 2], [0, 1, None], [None, None, None]]
    assert sample_rows(range(8), 8, context, 1) == [0, 1, 2, 3, 4]
    assert sample_rows(range(2), 2, 10 * SAMPLE_TOKENS, 1) == [0]

"""The parts of a model for a CPU against its own: value, gradients, and that they are used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.kernels import cpu_block, cpu_cross_entropy
from quintic.model.base import KVCache, LanguageModel
from quintic.model.build import build_model
from quintic.model.fused import fuse
from quintic.run_lines import opening_lines
from quintic.setup import set_up
from tests.conftest import tiny_config

MODEL = ModelConfig(layers=2, width=24, heads=2, context=40, vocab_size=50)
PARTS = {"_RMSNorm", "_SquaredReLUMLP", "_RotatedQKV", "_CausalAttention"}
CASES = {
    "as it comes": (MODEL, PARTS),
    "with techniques": (
        replace(
            MODEL,
            logit_softcap=8.0,
            value_embeddings=1,
            x0_skip=True,
            embed_norm=True,
            tied_head=False,
        ),
        PARTS,
    ),
    "with the token before": (
        replace(MODEL, token_smear=True, key_smear=True, bigram_embeddings=16),
        PARTS,
    ),
    "with the token before, of the document": (
        replace(MODEL, token_smear=True, key_smear=True, document_mask=True, eot_id=3),
        PARTS - {"_CausalAttention", "_RotatedQKV"},
    ),
    "masked": (replace(MODEL, window=5), PARTS - {"_CausalAttention"}),
    "learned positions": (replace(MODEL, positions="learned"), PARTS - {"_RotatedQKV"}),
    "no qk_norm": (replace(MODEL, qk_norm=False), PARTS - {"_RotatedQKV"}),
    "gelu": (replace(MODEL, activation="gelu"), PARTS - {"_SquaredReLUMLP"}),
    "layernorm": (replace(MODEL, norm="layernorm"), PARTS - {"_RMSNorm"}),
    "gpt2": (replace(MODEL, architecture="gpt2"), set()),
}


def drawn(config: ModelConfig, dtype: torch.dtype, *, fused: bool) -> LanguageModel:
    """A model in which no weight is zero."""
    model, random = build_model(config, compute_dtype=dtype), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=random))
    if fused:
        fuse(model)
    return model


def loss_and_gradients(
    config: ModelConfig, dtype: torch.dtype, *, fused: bool
) -> tuple[dict[str, Tensor], set[str]]:
    """The loss and each parameter's gradient, by name, and the functions of the graph."""
    model = drawn(config, dtype, fused=fused)
    ids_BT = torch.randint(50, (3, 41), generator=torch.Generator().manual_seed(1))
    loss = model.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    functions, todo = set(), [loss.grad_fn]
    while todo:
        if (node := todo.pop()) is not None and node not in functions:
            functions.add(node)
            todo += [before for before, _ in node.next_functions]
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = {type(node).__name__.removesuffix("Backward") for node in functions}
    return {"loss": loss.detach(), **gradients}, names


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_models_own(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several blocks and chunks of each kind, and a last one that is shorter.
    monkeypatch.setattr(cpu_block, "QUERIES", 16)
    monkeypatch.setattr(cpu_block, "CHUNK_ELEMENTS", 50 * 4 * 24)
    monkeypatch.setattr(cpu_cross_entropy, "CHUNK_ELEMENTS", 50 * 50)
    config, parts = CASES[case]
    expected, plain = loss_and_gradients(config, torch.float64, fused=False)
    assert not plain & PARTS
    found, functions = loss_and_gradients(config, torch.float64, fused=True)
    assert functions & PARTS == parts
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-13, msg=name)


def test_in_float32_they_are_as_exact_as_the_models_own() -> None:
    exact, _ = loss_and_gradients(MODEL, torch.float64, fused=False)
    plain, _ = loss_and_gradients(MODEL, torch.float32, fused=False)
    found, _ = loss_and_gradients(MODEL, torch.float32, fused=True)
    for name, value in exact.items():
        error, own_error = ((of[name] - value).norm() for of in (found, plain))
        assert error < 2 * own_error + 1e-6 * value.norm(), name


def test_longer_contexts_are_left_to_pytorchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_block, "LONGEST", 39)
    expected, _ = loss_and_gradients(MODEL, torch.float64, fused=False)
    found, functions = loss_and_gradients(MODEL, torch.float64, fused=True)
    assert "_CausalAttention" not in functions
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_a_cache_generates_as_before() -> None:
    ids_BT = torch.arange(12).view(2, 6)
    logits = []
    for fused in (False, True):
        model = drawn(MODEL, torch.float64, fused=fused)
        cache = KVCache(MODEL, 2, dtype=torch.float64, device=torch.device("cpu"))
        with torch.inference_mode():
            logits.append([model(ids_BT[:, :4], cache), model(ids_BT[:, 4:], cache)])
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-11, atol=1e-13)


def test_a_run_says_that_it_uses_them_and_bfloat16_is_refused(tiny_data: Path) -> None:
    fused = {"train.cpu_kernels": "fused"}
    run = set_up(tiny_config(tiny_data, fused), Path("unused"), Console())
    said = next(line for line in opening_lines(run) if line.startswith("step"))
    assert said == "step    fused kernels for a CPU, attention by blocks of queries"
    config = tiny_config(tiny_data, {**fused, "train.precision": "bfloat16"})
    with pytest.raises(QuinticError, match=r"float32 and float64, and .* is bfloat16: use"):
        set_up(config, Path("unused"), Console())

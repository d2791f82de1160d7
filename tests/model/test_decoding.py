"""The parts for generation: the model's own results, of the weights as they were, and only while
they are used."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintic.config import ModelConfig
from quintic.generate import generate_rows
from quintic.model import decoding
from quintic.model.base import KVCache, LanguageModel
from quintic.model.build import build_model
from quintic.model.decoding import FEWEST_TEXTS, FEWEST_TOKENS, DecodingParts
from quintic.model.fused import fuse
from quintic.sampling import Sampling

packs = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="needs MKL and oneDNN",
)
SIZES = ModelConfig(layers=2, width=24, heads=2, context=32, vocab_size=40)
PROMPTS = [[1], [2, 3], [4, 5, 6], [7]]
assert len(PROMPTS) == FEWEST_TEXTS


def drawn(seed: int = 0, **changes: Any) -> LanguageModel:
    model = build_model(replace(SIZES, **changes))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                (0.1 if name.endswith("bias") else 1.0) * torch.randn(p.shape, generator=random)
            )
    return model


@pytest.fixture(autouse=True)
def every_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FEWEST_ELEMENTS", 0)


@torch.inference_mode()
def logits(model: LanguageModel) -> Tensor:
    """Of a prompt, of one token more and of one after that, [3, B, V]."""
    cache = KVCache(model.config, 2, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.tensor([[1, 2, 3, 8, 9], [4, 5, 6, 7, 0]])
    return torch.stack([model.next_logits(new, cache) for new in ids.split([3, 1, 1], dim=1)])


def own_parts(model: LanguageModel) -> list[tuple[str, str]]:
    return [
        (module, name)
        for module, found in model.named_modules()
        for name in ("forward", "qkv", "products")
        if name in vars(found)
    ]


MODELS: list[dict[str, Any]] = [
    {},
    {"tied_head": False},
    {"architecture": "gpt2"},
    {"positions": "learned"},
    {"qk_norm": False},
    {"key_smear": True},
    {"value_embeddings": 1, "window": 2},
]


@pytest.mark.parametrize("texts", [1, pytest.param(FEWEST_TEXTS, marks=packs)])
@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_logits_are_the_models_own(changes: dict[str, Any], texts: int) -> None:
    model = drawn(**changes)
    before = logits(model)
    with DecodingParts(model, texts=texts, tokens=FEWEST_TOKENS).used():
        assert ("", "products") in own_parts(model)
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert own_parts(model) == []


@packs
def test_packed_matrices_are_those_of_the_weights_when_they_were_packed() -> None:
    model = drawn()
    parts = DecodingParts(model, texts=FEWEST_TEXTS, tokens=FEWEST_TOKENS)
    with parts.used():
        before = logits(model)
    with torch.no_grad():
        for p in model.layers.parameters():
            p.zero_()
    with parts.used():
        torch.testing.assert_close(logits(model), before)
    assert (logits(model) - before).abs().max() > 0.1


def test_what_computed_a_model_before_does_again_afterwards() -> None:
    model = drawn(activation="relu2")
    plain = logits(model)
    fuse(model)
    assert ("layers.0.mlp", "forward") in own_parts(model)
    before = [dict(vars(module)) for module in model.modules()]
    parts = DecodingParts(model, texts=1, tokens=FEWEST_TOKENS)
    with parts.used():
        assert [dict(vars(module)) for module in model.modules()] != before
        torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=1e-4)
    assert [dict(vars(module)) for module in model.modules()] == before


def test_a_norm_is_that_of_pytorch_down_to_zero() -> None:
    x = torch.randn(5, 24) * torch.tensor([0.0, 1e-20, 1e-4, 1.0, 1e4])[:, None]
    norm = decoding._rms_norm(nn.RMSNorm(24), torch.float32)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (24,)))
    assert norm(x)[0].eq(0).all() and norm(x)[2].abs().max() > 0.1


def texts(model: LanguageModel) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in PROMPTS]
    greedy = Sampling(temperature=0)
    for row, token, _ in generate_rows(model, PROMPTS, tokens=FEWEST_TOKENS, sampling=greedy):
        found[row].append(token)
        assert own_parts(model) == []  # between tokens, when the caller may train
    return found


@packs
def test_generation_takes_the_weights_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = drawn(), drawn(seed=1)
    first = texts(model)
    model.load_state_dict(other.state_dict())
    second = texts(model)
    monkeypatch.setattr(decoding, "FEWEST_TEXTS", len(PROMPTS) + 1)
    assert texts(other) == second != first


@packs
def test_nothing_is_packed_for_few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(decoding, "PackedMatrix", lambda *_, rows: made.append(rows))
    DecodingParts(drawn(), texts=FEWEST_TEXTS - 1, tokens=99)
    assert made == []
    with pytest.raises(AttributeError):  # what stands for the packed matrix has no product
        DecodingParts(drawn(), texts=FEWEST_TEXTS, tokens=FEWEST_TOKENS)
    assert made == [FEWEST_TEXTS]


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (drawn(), FEWEST_TOKENS - 1),
        (build_model(SIZES, compute_dtype=torch.bfloat16), 99),
        (build_model(SIZES).to("meta"), 99),
    ],
)
def test_there_are_no_parts_where_they_would_not_pay(model: LanguageModel, tokens: int) -> None:
    with DecodingParts(model, texts=99, tokens=tokens).used():
        assert own_parts(model) == []

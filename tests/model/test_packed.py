"""Packed matrices: the same products, of the weights as they were, and only while they are used."""

from dataclasses import replace

import pytest
import torch

from quintic.config import ModelConfig
from quintic.generate import generate_rows
from quintic.model import packed
from quintic.model.base import KVCache, LanguageModel
from quintic.model.build import build_model
from quintic.model.packed import FEWEST_TEXTS, FEWEST_TOKENS, PackedMatrices
from quintic.sampling import Sampling

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="needs MKL and oneDNN",
)
SIZES = ModelConfig(layers=2, width=24, heads=2, context=32, vocab_size=40)
PROMPTS = [[1], [2, 3], [4, 5, 6], [7]]
assert len(PROMPTS) == FEWEST_TEXTS


def drawn(tied_head: bool = True, architecture: str = "gpt", seed: int = 0) -> LanguageModel:
    config = replace(SIZES, tied_head=tied_head)
    model = build_model(replace(config, architecture="gpt2") if architecture == "gpt2" else config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(torch.randn(p.shape, generator=random))
    return model


@pytest.fixture(autouse=True)
def every_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FEWEST_ELEMENTS", 0)


@torch.no_grad()
def logits(model: LanguageModel) -> torch.Tensor:
    cache = KVCache(model.config, 2, dtype=torch.float32, device=torch.device("cpu"))
    return model.next_logits(torch.tensor([[1, 2, 3], [4, 5, 6]]), cache)


@pytest.mark.parametrize("model", [drawn(), drawn(tied_head=False), drawn(architecture="gpt2")])
def test_logits_are_those_of_the_weights_when_they_were_packed(model: LanguageModel) -> None:
    before = logits(model)
    matrices = PackedMatrices(model, texts=FEWEST_TEXTS, tokens=FEWEST_TOKENS)
    with matrices.used():
        torch.testing.assert_close(logits(model), before)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and name.startswith(("layers.", "head.")):
                p.zero_()
    with matrices.used():
        torch.testing.assert_close(logits(model), before)
    assert (logits(model) - before).abs().max() > 0.1


def texts(model: LanguageModel) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in PROMPTS]
    greedy = Sampling(temperature=0)
    for row, token, _ in generate_rows(model, PROMPTS, tokens=FEWEST_TOKENS, sampling=greedy):
        found[row].append(token)
        # Between tokens, when the caller may train, the model is as ever.
        assert all(getattr(module, "packed_weight", None) is None for module in model.modules())
    return found


def test_generation_takes_the_weights_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = drawn(), drawn(seed=1)
    first = texts(model)
    model.load_state_dict(other.state_dict())
    second = texts(model)
    monkeypatch.setattr(packed, "FEWEST_TEXTS", len(PROMPTS) + 1)
    assert texts(other) == second != first


@pytest.mark.parametrize(("texts", "tokens"), [(FEWEST_TEXTS - 1, 99), (99, FEWEST_TOKENS - 1)])
def test_nothing_is_packed_for_few_texts_or_tokens(texts: int, tokens: int) -> None:
    model = drawn()
    with PackedMatrices(model, texts=texts, tokens=tokens).used():
        assert model.packed_weight is None
    with PackedMatrices(model, texts=FEWEST_TEXTS, tokens=FEWEST_TOKENS).used():
        assert model.packed_weight is not None

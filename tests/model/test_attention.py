"""Which positions a token sees, against the definition pair by pair."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.model.attention import attend, attention_block_mask, attention_mask, mean_visible
from quintic.model.base import LanguageModel
from quintic.model.build import build_model, meta_model

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

EOT = 9
TEXT = [4, 1, 9, 3, 3, 2, 9, 9, 5, 6, 7, 1]
"""Begins within a document; the fourth document is empty."""
DOCUMENT = [0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3]

MASKS: dict[str, dict[str, Any]] = {
    "past": {"window": None, "eot_id": None},
    "window": {"window": 3, "eot_id": None},
    "itself": {"window": 1, "eot_id": None},
    "document": {"window": None, "eot_id": EOT},
    "window, document": {"window": 3, "eot_id": EOT},
}


def mask_mod(t: int, s: int, *, window: int | None, eot_id: int | None) -> bool:
    """Whether the token at t sees the one at s."""
    if s > t or (window is not None and t - s >= window):
        return False
    return eot_id is None or DOCUMENT[s] == DOCUMENT[t]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("time", [1, 4, len(TEXT)])
def test_the_last_positions_see_what_the_definition_says(mask: str, time: int) -> None:
    seen = len(TEXT)
    other = [1] * seen  # a second row without any document's beginning
    found = attention_mask(torch.tensor([TEXT, other]), time, **MASKS[mask])
    found = found.expand(2, 1, time, seen)
    for i, t in enumerate(range(seen - time, seen)):
        for s in range(seen):
            assert found[0, 0, i, s] == mask_mod(t, s, **MASKS[mask]), (t, s)
            alone = mask_mod(t, s, window=MASKS[mask]["window"], eot_id=None)
            assert found[1, 0, i, s] == alone, (t, s)


@pytest.mark.parametrize("mask", MASKS)
def test_masked_attention_is_a_softmax_over_what_is_visible(mask: str) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, len(TEXT), 8, generator=random, dtype=torch.float64)
    visible = attention_mask(torch.tensor([TEXT, TEXT]), len(TEXT), **MASKS[mask])
    found = attend(q, k, v, visible)
    for t in range(len(TEXT)):
        places = [s for s in range(len(TEXT)) if mask_mod(t, s, **MASKS[mask])]
        scores = (k[:, :, places] @ q[:, :, t, :, None]).squeeze(-1) / math.sqrt(8)
        expected = (scores.softmax(-1)[..., None] * v[:, :, places]).sum(-2)
        torch.testing.assert_close(found[:, :, t], expected, rtol=0, atol=1e-13)
    if mask == "past":
        torch.testing.assert_close(found, attend(q, k, v), rtol=0, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("time", [len(TEXT), 300])
def test_by_blocks_a_token_sees_the_same(mask: str, time: int) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, time, 16, generator=random, dtype=torch.float64)
    tokens = torch.randint(1, 100, (2, time), generator=random)
    tokens[0, : len(TEXT)] = torch.tensor(TEXT)
    tokens[1, time // 2] = EOT
    blocks = attention_block_mask(tokens, **MASKS[mask])
    expected = attend(q, k, v, attention_mask(tokens, time, **MASKS[mask]))
    torch.testing.assert_close(attend(q, k, v, blocks), expected, rtol=0, atol=1e-13)


def computed_blocks(time: int, **mask: Any) -> list[list[int]]:
    """For each row, of how many blocks of keys each block of 128 queries computes some."""
    tokens = torch.ones((1, time), dtype=torch.int64)
    tokens[0, 384] = EOT  # where a block begins
    blocks = attention_block_mask(tokens, **mask)
    assert blocks.full_kv_num_blocks is not None  # those that are seen whole
    counts: list[list[int]] = (blocks.kv_num_blocks + blocks.full_kv_num_blocks)[:, 0].tolist()
    return counts


def test_what_is_hidden_as_a_whole_block_is_not_computed() -> None:
    assert computed_blocks(640, window=None, eot_id=None) == [[1, 2, 3, 4, 5]]
    assert computed_blocks(640, window=128, eot_id=None) == [[1, 2, 2, 2, 2]]
    assert computed_blocks(640, window=130, eot_id=None) == [[1, 2, 3, 3, 3]]
    assert computed_blocks(640, window=None, eot_id=EOT) == [[1, 2, 3, 1, 2]]
    assert computed_blocks(640, window=128, eot_id=EOT) == [[1, 2, 2, 1, 2]]


def drawn(config: ModelConfig, *, block_masks: bool = False) -> LanguageModel:
    """A float64 model in which no weight is zero."""
    model = build_model(config, compute_dtype=torch.float64, block_masks=block_masks)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    return model


@torch.no_grad()
def logits(config: ModelConfig, ids: list[int]) -> Tensor:
    logits_TV: Tensor = drawn(config)(torch.tensor([ids]))[0]
    return logits_TV


def test_in_one_layer_a_token_changes_the_logits_of_those_that_see_it_and_no_others() -> None:
    config = ModelConfig(layers=1, width=16, heads=2, context=16, vocab_size=12)
    config = replace(config, window=3, document_mask=True, eot_id=EOT)
    before = logits(config, TEXT)
    for s, token in enumerate(TEXT):
        if token == EOT:
            continue  # another token there would join two documents
        after = list(TEXT)
        after[s] = 8
        moved = (logits(config, after) - before).abs().amax(-1)
        for t in range(len(TEXT)):
            visible = mask_mod(t, s, window=3, eot_id=EOT)
            assert moved[t] > 1e-6 if visible else moved[t] < 1e-13, (t, s)


def test_a_document_is_predicted_as_if_it_stood_alone() -> None:
    config = ModelConfig(layers=3, width=16, heads=2, context=16, vocab_size=12)
    # Rotary embeddings are relative, so that nothing else tells where the document stands.
    packed = logits(replace(config, document_mask=True, eot_id=EOT), TEXT)[7:]
    torch.testing.assert_close(packed, logits(config, TEXT[7:]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_window_that_grows_is_the_constant_one_of_each_moment_in_compiled_code_too() -> None:
    config = ModelConfig(layers=2, width=16, heads=2, context=16, vocab_size=12, window=12)
    growing = drawn(replace(config, window_start=1))
    compiled = torch.compile(growing.loss, dynamic=False, backend="aot_eager")
    ids_BT = torch.tensor([TEXT])
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    losses = []
    for window in (1, 2, 5, 12):
        growing.set_window(window)
        losses.append(float(drawn(replace(config, window=window)).loss(ids_BT, ids_BT.flip(1))))
        for loss in (growing.loss, compiled):
            assert float(loss(ids_BT, ids_BT.flip(1))) == pytest.approx(losses[-1], rel=1e-13)
    assert len(set(losses)) == 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


@torch.no_grad()
def test_a_model_by_blocks_has_the_losses_of_the_plain_one_in_compiled_code_too() -> None:
    config = ModelConfig(layers=2, width=32, heads=2, context=200, vocab_size=12)
    config = replace(config, window=150, window_start=1, document_mask=True, eot_id=EOT)
    plain, by_blocks = drawn(config), drawn(config, block_masks=True)
    compiled = torch.compile(by_blocks.loss, dynamic=False, backend="aot_eager")
    ids_BT = torch.randint(12, (3, 201), generator=torch.Generator().manual_seed(0))
    batch = ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous()
    losses = []
    for window in (1, 7, 150):
        for model in (plain, by_blocks):
            model.set_window(window)
        losses.append(float(plain.loss(*batch)))
        assert float(by_blocks.loss(*batch)) == pytest.approx(losses[-1], rel=1e-13)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert float(compiled(*batch)) == pytest.approx(losses[-1], rel=1e-13)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
        assert graphs == (1 if window == 1 else 0)  # one for all windows
    assert len(set(losses)) == 3


@torch.no_grad()
def test_without_anything_to_hide_blocks_are_all_that_is_not_later() -> None:
    config = ModelConfig(layers=2, width=32, heads=2, context=140, vocab_size=12)
    ids_BT = torch.randint(12, (2, 140), generator=torch.Generator().manual_seed(0))
    found = drawn(config, block_masks=True)(ids_BT)
    torch.testing.assert_close(found, drawn(config)(ids_BT), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 5, 64])
def test_flops_of_attention_are_those_of_the_visible_pairs(window: int | None) -> None:
    context = 64
    pairs = sum(min(t + 1, window or context) for t in range(context))
    diagonal = min(window or context, context) / 2  # half of what each of the newest sees first
    assert mean_visible(context, window) == pytest.approx(pairs / context - diagonal / context)
    config = ModelConfig(layers=2, width=16, heads=2, context=context, vocab_size=12)
    rest = 6 * (2 * 12 * 16**2 + 12 * 16)
    if window is not None:  # one that grows counts as the mean of all its sizes
        sizes = [mean_visible(context, 1 + round(i * (window - 1) / 1000)) for i in range(1001)]
        mean = sum(sizes) / len(sizes)
        assert mean_visible(context, window, start=1) == pytest.approx(mean, rel=0.02)
    flops = meta_model(replace(config, window=window)).flops_per_token()
    assert flops == rest + 12 * 2 * mean_visible(context, window) * 16

"""What every model promises, ablations included: causality, the cache, precision, weights from the
seed alone.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.model.base import KVCache, LanguageModel
from quintic.model.build import build_model, meta_model

VOCAB, CONTEXT = 40, 16
CONFIGS = {
    "gpt": ModelConfig(layers=2, width=24, heads=2, context=CONTEXT, vocab_size=VOCAB),
    "gpt2": ModelConfig(
        architecture="gpt2", layers=2, width=24, heads=3, context=CONTEXT, vocab_size=VOCAB
    ),
}

CONFIGS |= {
    "gpt, learned positions": replace(CONFIGS["gpt"], positions="learned"),
    "gpt, LayerNorm": replace(CONFIGS["gpt"], norm="layernorm"),
    "gpt, GELU": replace(CONFIGS["gpt"], activation="gelu"),
    "gpt, no QK-norm": replace(CONFIGS["gpt"], qk_norm=False),
    "gpt, with every shortcut": replace(
        CONFIGS["gpt"],
        tied_head=False,
        logit_softcap=15.0,
        embed_norm=True,
        key_smear=True,
        token_smear=True,
        bigram_embeddings=7,
        value_embeddings=1,
        x0_skip=True,
        unet_skips=True,
    ),
}

MASKED = {
    "gpt, window": replace(CONFIGS["gpt"], window=3),
    "gpt, window and documents": replace(CONFIGS["gpt"], window=6, document_mask=True, eot_id=8),
}
"""In which not every earlier token shows in a logit."""

both = pytest.mark.parametrize("architecture", list(CONFIGS))


def drawn(architecture: str) -> LanguageModel:
    return with_drawn_weights((CONFIGS | MASKED)[architecture])


def with_drawn_weights(config: ModelConfig) -> LanguageModel:
    """A float64 model in which no weight is zero, so that every part shows in the logits."""
    model = build_model(config, compute_dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    return model


def tokens(batch: int, time: int = CONTEXT) -> Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(7))


@both
def test_a_later_token_changes_no_earlier_logit(architecture: str) -> None:
    model, before = drawn(architecture), tokens(2)
    logits = model(before)
    for t in (1, 7, CONTEXT - 1):
        after = before.clone()
        after[:, t] = (after[:, t] + 1) % VOCAB
        changed = model(after)
        torch.testing.assert_close(changed[:, :t], logits[:, :t], rtol=0, atol=1e-13)
        assert (changed[:, t:] - logits[:, t:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("architecture", [*CONFIGS, *MASKED])
@pytest.mark.parametrize("prefill", [1, 5, CONTEXT])
def test_logits_with_a_cache_token_by_token_equal_the_full_forward(
    architecture: str, prefill: int
) -> None:
    model, ids = drawn(architecture), tokens(3)
    cache = KVCache(model.config, batch=3, dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        full = model(ids)
        parts = [model(ids[:, :prefill], cache)]
        for t in range(prefill, CONTEXT):
            assert cache.length == t
            parts.append(model(ids[:, t : t + 1], cache))
    assert cache.length == CONTEXT
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", [*CONFIGS, *MASKED])
def test_several_tokens_at_once_may_follow_those_in_the_cache(architecture: str) -> None:
    model, ids = drawn(architecture), tokens(3)
    cache = KVCache(model.config, batch=3, dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        parts = [model(part, cache) for part in ids.split(5, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0, atol=1e-12)
        with pytest.raises(QuinticError, match="1 tokens after 16 in the cache are more than its"):
            model(ids[:, :1], cache)


@both
def test_loss_is_the_mean_cross_entropy_of_the_logits(architecture: str) -> None:
    model, ids = drawn(architecture), tokens(2, CONTEXT + 1)
    log_p = model(ids[:, :-1]).log_softmax(-1)
    expected = -log_p.gather(-1, ids[:, 1:, None]).mean()
    torch.testing.assert_close(model.loss(ids[:, :-1], ids[:, 1:]), expected, rtol=0, atol=1e-13)


@both
def test_weights_depend_on_the_seed_alone(architecture: str) -> None:
    config = CONFIGS[architecture]
    torch.manual_seed(1)
    first = build_model(config, seed=5).state_dict()
    torch.manual_seed(2)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        again = build_model(config, seed=5, compute_dtype=dtype).state_dict()
        assert again.keys() == first.keys()
        for name, weight in again.items():
            assert weight.dtype == (dtype if dtype is torch.float64 else torch.float32), name
            assert torch.equal(weight.float(), first[name]), name
    other = build_model(config, seed=6).state_dict()
    assert not torch.equal(other["embed.weight"], first["embed.weight"])


@both
def test_building_leaves_the_random_state_of_the_caller_alone(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("the GPUs' generators belong to the caller")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    build_model(CONFIGS[architecture], seed=3)
    meta_model(CONFIGS[architecture])
    assert torch.equal(torch.get_rng_state(), before)


@both
def test_bfloat16_computes_matrix_products_only(architecture: str) -> None:
    config = CONFIGS[architecture]
    model = build_model(config, compute_dtype=torch.bfloat16)
    reference = build_model(config)
    with torch.no_grad():
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            q.copy_(p)
    products: set[torch.dtype] = set()
    residual: set[torch.dtype] = set()
    for name, module in model.named_modules():
        if name.endswith((".q", ".o", ".up", ".down")):
            module.register_forward_hook(lambda _, x, y: products.update((x[0].dtype, y.dtype)))
    for block in model.layers:
        block.register_forward_hook(lambda _, x, y: residual.update((x[0].dtype, y.dtype)))
    ids = tokens(2)
    logits = model(ids)
    assert products == {torch.bfloat16}
    assert residual == {torch.float32}
    assert model.features(ids).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    expected = reference(ids)
    assert 0 < (logits - expected).norm() / expected.norm() < 0.03
    model.loss(ids, ids).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@both
def test_flops_per_token_equal_those_pytorch_counts(architecture: str) -> None:
    config = replace(CONFIGS[architecture], width=48, context=64)
    model = build_model(config, loss="plain")
    ids = tokens(2, 64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(ids, ids).backward()
    counted = counter.get_total_flops() / ids.numel()
    # PyTorch counts attention as if every position saw every other: twice the causal half.
    attention = 12 * config.layers * config.context * config.width
    assert model.flops_per_token() == pytest.approx(counted - attention / 2, rel=1e-12)


def test_the_cache_holds_the_compute_precision() -> None:
    config = CONFIGS["gpt"]
    cache = KVCache(config, batch=2, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert cache.keys.shape == cache.values.shape == (2, 2, 2, CONTEXT, 12)
    assert cache.keys.dtype == torch.bfloat16
    model = build_model(config, compute_dtype=torch.bfloat16)
    with torch.no_grad():
        assert model(tokens(2, 3), cache).isfinite().all()
    assert cache.keys[:, :, :, :3].any()
    assert not cache.keys[:, :, :, 3:].any()

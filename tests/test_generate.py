"""Generation: the cache, the draw, the end, and text that comes in pieces."""

import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from quintic.config import ModelConfig, field_facts
from quintic.data.bpe_tokenizer import train_bpe
from quintic.errors import QuinticError
from quintic.generate import (
    TextStream,
    generate_ids,
    generate_rows,
    generate_samples,
    stream_text,
)
from quintic.model.base import KVCache, LanguageModel
from quintic.model.build import build_model
from quintic.model.loss import plain_cross_entropy
from quintic.model.token_tree import TokenTree
from quintic.sampling import Sampling
from tests.model.test_gpt import SWITCHES

VOCAB, CONTEXT = 40, 8
SIZES = ModelConfig(layers=2, width=24, heads=2, context=CONTEXT, vocab_size=VOCAB)


def drawn(architecture: str, context: int = CONTEXT) -> LanguageModel:
    """A float64 model in which no matrix is zero, so that the past shows in the logits."""
    config = replace(
        SIZES, architecture="gpt2" if architecture == "gpt2" else "gpt", context=context
    )
    model = build_model(config, compute_dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:  # a bias of the last norm would favour one token for ever
                p.copy_(torch.randn(p.shape, generator=random, dtype=p.dtype))
    return model


class FixedLogits(LanguageModel):
    """Predicts the same logits after every text."""

    def __init__(self, logits: list[float]) -> None:
        width = len(logits)
        config = ModelConfig(layers=1, width=width, heads=1, context=64, vocab_size=width)
        super().__init__(config, torch.float32, plain_cross_entropy)
        self.embed = torch.nn.Embedding.from_pretrained(torch.eye(width))
        self.logits = torch.tensor(logits)

    def features(
        self, tokens_BT: Tensor, cache: KVCache | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        return self.logits.expand(*tokens_BT.shape, -1)


@torch.no_grad()
def greedy_without_cache(model: LanguageModel, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest token after a whole forward pass; the window is cut to its newest half
    context whenever it outgrows the context."""
    context = model.config.context
    window, out = prompt[-context:], []
    for _ in range(tokens):
        if len(window) > context:
            window = window[-max(1, context // 2) :]
        token = int(model(torch.tensor([window]))[0, -1].argmax())
        out.append(token)
        window = [*window, token]
    return out


@pytest.mark.parametrize("architecture", ["gpt", "gpt2"])
@pytest.mark.parametrize("prompt_length", [1, 5, CONTEXT, CONTEXT + 3])
@pytest.mark.parametrize("context", [CONTEXT, 7, 1])
def test_greedy_with_the_cache_equals_greedy_without_also_past_the_context(
    architecture: str, prompt_length: int, context: int
) -> None:
    model = drawn(architecture, context)
    prompt = [(7 * i + 3) % VOCAB for i in range(prompt_length)]
    found = list(generate_ids(model, prompt, tokens=30, temperature=0))
    assert found == greedy_without_cache(model, prompt, 30)
    assert len(found) == 30
    if context > 1:
        assert len(set(found)) > 2  # the model does not just repeat itself


GREEDY = SWITCHES | {
    "gpt2": {"architecture": "gpt2"},
    "init": {"init": "classic"},
    "window_start": {"window": 6, "window_start": 2},
}
SAME_TEXT = {"none", "init", "logit_softcap"}
"""What leaves the likeliest token of given weights as it is."""


def test_every_switch_of_the_model_is_tried_with_the_cache() -> None:
    switches = {name for name, facts in field_facts(ModelConfig).items() if facts.needs}
    tried = {name for changes in GREEDY.values() for name in changes}
    assert tried == switches | {"architecture", "eot_id"}


def with_switch(switch: str) -> LanguageModel:
    """A float64 model in which everything that a switch has shows in the logits; what two of them
    both have is the same."""
    model = build_model(replace(SIZES, **GREEDY[switch]), compute_dtype=torch.float64)
    model.set_window(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            # A bias of the last norm would favour one token for ever, and blocks drown embeddings.
            scale = 0.1 if name.endswith("bias") else 4.0 if name == "embed.weight" else 1.0
            p.copy_(scale * torch.randn(p.shape, generator=random, dtype=p.dtype))
    return model


LONG_PROMPT = [(7 * i + i // 5 + 3) % VOCAB for i in range(3 * CONTEXT)]
BEGINNINGS = [(LONG_PROMPT[:n], 3 * CONTEXT if n == 1 else 3) for n in range(1, 3 * CONTEXT + 1)]
"""Prompts of every length to three contexts, and how many tokens are to follow."""


@cache
def greedy_texts(switch: str) -> list[list[int]]:
    model = with_switch(switch)
    return [greedy_without_cache(model, prompt, tokens) for prompt, tokens in BEGINNINGS]


@pytest.mark.parametrize("switch", GREEDY)
def test_greedy_with_the_cache_equals_greedy_without_at_every_length_to_three_contexts(
    switch: str,
) -> None:
    model, expected = with_switch(switch), greedy_texts(switch)
    for (prompt, tokens), text in zip(BEGINNINGS, expected, strict=True):
        found = list(generate_ids(model, prompt, tokens=tokens, temperature=0))
        assert found == text, len(prompt)
    # It says much, and not what the model says without the switch.
    assert len({token for text in expected for token in text}) > VOCAB / 4
    assert switch in SAME_TEXT or expected != greedy_texts("none")


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_top_1_is_greedy_at_every_temperature(temperature: float) -> None:
    model = drawn("gpt")
    greedy = list(generate_ids(model, [1], tokens=20, temperature=0))
    assert list(generate_ids(model, [1], tokens=20, temperature=temperature, top_k=1)) == greedy


def test_top_1_is_greedy_among_equals() -> None:
    # As many as bfloat16 makes equal; topk's first of them is another than argmax's.
    for equals in (2, 20, 49):
        model = FixedLogits([0.0] + equals * [2.0] + (49 - equals) * [1.0])
        greedy = set(generate_ids(model, [0], tokens=3, temperature=0))
        assert set(generate_ids(model, [0], tokens=3, top_k=1)) == greedy


def test_top_k_draws_from_k_tokens_even_among_equals() -> None:
    model = FixedLogits([0.0, 2.0, 2.0, 2.0, 1.0, 1.0])
    found = set(generate_ids(model, [0], tokens=200, top_k=2))
    assert len(found) == 2
    assert found < {1, 2, 3}


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    model = FixedLogits([1.0, 3.0, 2.5, -40.0])
    assert set(generate_ids(model, [0], tokens=20, temperature=temperature)) == {1}


LOGITS = [1.5, 0.0, -1.0, 2.0, 0.5, 0.2, 9.0, 9.0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "vocab_size"),
    [(1.0, None, 6), (0.7, None, 6), (2.0, None, None), (1.0, 3, 6), (1.0, 100, 6)],
)
def test_drawn_tokens_have_the_distribution_asked_for(
    temperature: float, top_k: int | None, vocab_size: int | None
) -> None:
    draws = 4000
    ids = generate_ids(
        FixedLogits(LOGITS),
        [0],
        tokens=draws,
        temperature=temperature,
        top_k=top_k,
        vocab_size=vocab_size,
        seed=3,
    )
    counts = Counter(ids)
    allowed = LOGITS[:vocab_size]
    if top_k is not None:
        allowed = [x if x >= sorted(allowed)[-top_k:][0] else -math.inf for x in allowed]
    weights = [math.exp(x / temperature) for x in allowed]
    expected = {i: draws * w / sum(weights) for i, w in enumerate(weights) if w}
    assert set(counts) <= set(expected)
    chi_square = sum((counts[i] - e) ** 2 / e for i, e in expected.items())
    assert chi_square < 25  # 7 degrees of freedom exceed it once in 1,300


def test_rows_that_pad_the_vocabulary_are_never_drawn() -> None:
    model = FixedLogits(LOGITS)  # the likeliest two are the padding
    for temperature in (0.0, 1.0):
        found = set(
            generate_ids(model, [0], tokens=100, temperature=temperature, vocab_size=6, top_k=50)
        )
        assert max(found) < 6


def test_the_seed_decides_the_text() -> None:
    model = drawn("gpt")

    def text(seed: int) -> list[int]:
        return list(generate_ids(model, [1], tokens=20, seed=seed))

    torch.manual_seed(0)
    first, state = text(5), torch.get_rng_state()
    torch.manual_seed(1)
    assert text(5) == first
    assert text(6) != first
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the caller's alone


def test_the_end_of_text_token_ends_the_text_and_is_not_part_of_it() -> None:
    model = drawn("gpt")
    free = list(generate_ids(model, [1], tokens=30, temperature=0))
    stop = free[10]
    found = list(generate_ids(model, [1], tokens=30, temperature=0, stop_id=stop))
    assert found == free[: free.index(stop)]
    # A prompt that begins with it does not end anything.
    assert list(generate_ids(FixedLogits([0.0, 9.0]), [0], tokens=3, temperature=0, stop_id=0)) == [
        1,
        1,
        1,
    ]


def test_the_caller_keeps_its_gradients_between_tokens() -> None:
    ids = generate_ids(drawn("gpt"), [1], tokens=3)
    next(ids)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"tokens": 0}, "--tokens is 0: it must be at least 1"),
        ({"temperature": -1.0}, "--temperature is -1.0: it must be finite, zero or positive"),
        ({"temperature": math.nan}, "--temperature is nan: it must be finite, zero or positive"),
        ({"temperature": math.inf}, "--temperature is inf: it must be finite, zero or positive"),
        ({"top_k": 0}, "--top-k is 0: it must be at least 1, or left out"),
        ({"seed": -1}, r"--seed is -1: it must be from 0 to 2\*\*64 - 1"),
        ({"seed": 2**64}, r"--seed is 18446744073709551616: it must be from 0 to 2\*\*64 - 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        next(generate_ids(drawn("gpt"), [1], **{"tokens": 5, **setting}))


RAGGED = [LONG_PROMPT[:n] for n in (5, 1, 3 * CONTEXT, CONTEXT, 2, CONTEXT + 1)]
"""Prompts of very different lengths, some longer than a context."""


@pytest.mark.parametrize("switch", GREEDY)
def test_texts_side_by_side_are_those_alone(switch: str) -> None:
    model = with_switch(switch)
    found: list[list[int]] = [[] for _ in RAGGED]
    for row, token, _ in generate_rows(
        model, RAGGED, tokens=3 * CONTEXT, sampling=Sampling(temperature=0)
    ):
        found[row].append(token)
    for prompt, text in zip(RAGGED, found, strict=True):
        assert text == list(generate_ids(model, prompt, tokens=3 * CONTEXT, temperature=0))


def test_a_text_that_ends_leaves_the_others_as_they_are() -> None:
    model = drawn("gpt")
    prompts, seeds, tokens = [[1], [2, 3], [4]], [5, 6, 7], 3 * CONTEXT
    alone = [
        list(generate_ids(model, p, tokens=tokens, seed=s))
        for p, s in zip(prompts, seeds, strict=True)
    ]
    stop = alone[0][4]
    ended: set[int] = set()
    found: list[list[int]] = [[] for _ in prompts]
    for row, token, _ in generate_rows(
        model, prompts, tokens=tokens, seeds=seeds, stop_id=stop, ended=ended
    ):
        found[row].append(token)
        if len(found[2]) == 7:
            ended.add(2)

    def until(text: list[int]) -> list[int]:
        return text[: text.index(stop)] if stop in text else text

    assert found == [until(alone[0]), until(alone[1]), until(alone[2])[:7]]


def test_the_cache_has_no_more_room_than_the_texts_take(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def noted(*args: Any, **kwargs: Any) -> KVCache:
        made.append(KVCache(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("quintic.generate.KVCache", noted)
    list(generate_rows(drawn("gpt"), [[1], [2, 3]], tokens=3))
    list(generate_rows(drawn("gpt"), [[1], [2, 3]], tokens=CONTEXT))
    assert [cache.keys.shape[3] for cache in made] == [5, CONTEXT, CONTEXT]


def test_logprobs_are_the_models_own() -> None:
    logits = [0.0, math.log(3.0), math.log(4.0), 9.0]
    found = list(
        generate_rows(
            FixedLogits(logits),
            [[0]],
            tokens=30,
            sampling=Sampling(temperature=0.5, top_k=2),
            vocab_size=3,
            logprobs=True,
        )
    )
    assert {drawn.token for drawn in found} == {1, 2}
    for drawn in found:
        assert drawn.logprob == pytest.approx(math.log((3.0, 4.0)[drawn.token - 1] / 8))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(QuinticError, match="the prompt has no tokens"):
        next(generate_ids(drawn("gpt"), [], tokens=1))


# Text ---------------------------------------------------------------------------------------------

BPE = train_bpe(["def f(x):\n    return x\n"] * 20, 260)


def test_text_comes_in_whole_characters_though_tokens_split_them() -> None:
    text = "naïve 漢字 🙂 e\u0301 done"
    ids = BPE.encode(text)
    assert len(ids) > len(text)  # the vocabulary has no token for most of these characters
    pieces = list(stream_text(BPE, ids))
    assert "".join(pieces) == text
    assert "🙂" in pieces  # four tokens, one piece
    assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_text_comes_as_soon_as_its_tokens_do() -> None:
    taken = []

    def ids() -> Iterator[int]:
        for token in BPE.encode("a🙂b"):
            taken.append(token)
            yield token

    pieces = stream_text(BPE, ids())
    assert next(pieces) == "a"
    assert len(taken) == 1
    assert next(pieces) == "🙂"
    assert len(taken) == 5


def test_a_character_cut_in_half_at_the_end_is_shown_as_a_replacement() -> None:
    ids = BPE.encode("ok 🙂")
    assert "".join(stream_text(BPE, ids[:-1])) == "ok \ufffd"
    assert list(stream_text(BPE, [])) == []


def test_end_of_text_adds_no_text() -> None:
    assert "".join(stream_text(BPE, [BPE.eot_id, *BPE.encode("x"), BPE.eot_id])) == "x"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one\ntwo", ("\n\n",), "one\ntwo"),
        ("one END two", ("two", "END"), "one "),
        ("aab aaab", ("aaab",), "aab "),
        ("ends with EN", ("END",), "ends with EN"),
        ("naïve 🙂!", ("🙂",), "naïve "),
    ],
)
def test_a_text_is_cut_before_the_string_that_ends_it(
    text: str, stop: tuple[str, ...], expected: str
) -> None:
    stream, shown = TextStream(BPE, stop), ""
    for token in BPE.encode(text):
        shown += stream.feed(token)
        assert expected.startswith(shown)  # what may begin such a string is not shown yet
    assert shown + stream.finish() == expected
    assert stream.stopped == (expected != text)


SAMPLES: dict[str, Any] = {"tokens": 12, "seed": 3, "samples": 2, "logprobs": True}


def text_model() -> LanguageModel:
    model = build_model(replace(SIZES, vocab_size=BPE.vocab_size), compute_dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_samples_are_the_same_alone_and_in_any_batch() -> None:
    model, prompts = text_model(), ["def f", "", "return x"]
    together = list(generate_samples(model, BPE, prompts, **SAMPLES))
    assert [(s.prompt, s.seed) for s in together] == [(p, 3 + i) for p in range(3) for i in (0, 1)]
    assert len({s.text for s in together}) == 6
    by_two = list(generate_samples(model, BPE, prompts, **SAMPLES, batch=2))
    assert [(s.text, s.ids) for s in by_two] == [(s.text, s.ids) for s in together]
    (alone,) = generate_samples(model, BPE, ["return x"], tokens=12, seed=4)
    assert (alone.text, alone.ids) == (together[5].text, together[5].ids)
    for sample in together:
        assert sample.finish_reason == "length" and len(sample.ids) == 12
        assert sample.logprobs is not None and len(sample.logprobs) == 12
        assert sample.text == "".join(stream_text(BPE, sample.ids))


def test_a_sample_says_why_it_ended() -> None:
    model = text_model()
    (free,) = generate_samples(model, BPE, ["x"], tokens=12)
    stop = free.text[4:6]
    (stopped,) = generate_samples(model, BPE, ["x"], tokens=12, stop=[stop])
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.ids == free.ids[: len(stopped.ids)] and len(stopped.ids) < 12
    ends = FixedLogits([9.0 * (token == BPE.eot_id) for token in range(BPE.vocab_size)])
    (ended,) = generate_samples(ends, BPE, ["x"], tokens=12, sampling=Sampling(top_k=1))
    assert (ended.finish_reason, ended.ids, ended.text) == ("end_of_text", [], "")

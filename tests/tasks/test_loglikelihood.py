"""Log-likelihoods out of packed trees are those of each sequence alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quintic.config import ModelConfig
from quintic.model import target_scores as scores
from quintic.model.base import LanguageModel
from quintic.model.build import build_model
from quintic.tasks import loglikelihood
from quintic.tasks.loglikelihood import Scored, log_likelihoods
from tests.test_generate import GREEDY

VOCAB, KNOWN = 40, 37
CONFIG = ModelConfig(layers=3, width=24, heads=2, context=12, vocab_size=VOCAB)


def drawn(switch: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    config = replace(CONFIG, **{**GREEDY[switch], "context": 12, "vocab_size": VOCAB})
    model = build_model(config, compute_dtype=dtype)
    if config.window_start is not None:
        model.set_window(4)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=p.dtype))
    return model


def sequences(count: int = 60) -> list[Scored]:
    """Sequences that share beginnings, of 2 to 13 tokens, some of them twice, with end of text."""
    random = torch.Generator().manual_seed(1)
    stems = [torch.randint(0, KNOWN, (13,), generator=random).tolist() for _ in range(4)]
    made = []
    for i in range(count):
        own = torch.randint(0, KNOWN, (13,), generator=random).tolist()
        shared, length = i % 11, 2 + (5 * i) % 12
        ids = [*stems[i % 4][:shared], *own[shared:]][:length]
        made.append(Scored(ids, 1 + i % (length - 1)))
    return made + made[:3]


@torch.no_grad()
def alone(model: LanguageModel, sequence: Scored) -> tuple[float, bool]:
    ids = torch.tensor([list(sequence.ids)])
    log_p = model(ids[:, :-1])[0, -sequence.scored :, :KNOWN].log_softmax(-1)
    targets = ids[0, -sequence.scored :]
    return float(log_p.gather(1, targets[:, None]).sum()), bool((log_p.argmax(-1) == targets).all())


@pytest.mark.parametrize("switch", list(GREEDY))
def test_packed_sequences_score_as_each_alone(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several batches, rows and parts of the vocabulary.
    monkeypatch.setattr(loglikelihood, "ROW_TOKENS", 24)
    monkeypatch.setattr(loglikelihood, "BATCH_TOKENS", {"cpu": 100})
    monkeypatch.setattr(scores, "VOCABULARY_PART", {"cpu": 16})
    model, given, done = drawn(switch), sequences(), list[float]()
    found = log_likelihoods(model, given, KNOWN, done.append)
    for sequence, result in zip(given, found, strict=True):
        nats, greedy = alone(model, sequence)
        assert result.nats == pytest.approx(nats, rel=1e-11)
        assert result.greedy is greedy
    assert len(done) > 2
    assert done == sorted(done)
    assert done[-1] == 1


def test_a_shared_beginning_is_computed_once() -> None:
    given = [Scored([1, 2, 3, 4, i], 1) for i in range(5, 30)] + [Scored([1, 2, 9], 2)]
    [row] = loglikelihood._rows(given)
    assert row.tokens == [1, 2, 3, 4]  # nothing stands behind the last token of a sequence
    assert len(row.targets) == 27


def test_a_greedy_continuation_is_known_as_one() -> None:
    model = drawn("none")
    ids = [5]
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids]))[0, -1, :KNOWN].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % KNOWN]
    found = log_likelihoods(model, [Scored(ids, 6), Scored(other, 6)], KNOWN)
    assert [r.greedy for r in found] == [True, False]


def test_logits_that_overflow_exp_have_their_log_likelihood() -> None:
    model = drawn("none", torch.float32)
    with torch.no_grad():
        model.embed.weight *= 1000
    given = sequences(20)
    for sequence, result in zip(given, log_likelihoods(model, given, KNOWN), strict=False):
        assert result.nats == pytest.approx(alone(model, sequence)[0], rel=1e-4, abs=1e-3)


def test_no_sequences_have_no_log_likelihoods() -> None:
    assert log_likelihoods(drawn("none"), [], KNOWN) == []

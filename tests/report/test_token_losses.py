"""The losses token by token, and what they are grouped by."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from quintic.console import Console
from quintic.data.loader import validation_batches
from quintic.evaluate import sum_losses, token_counts
from quintic.metrics_file import METRICS, read_records
from quintic.report.contents import Measured, measure
from quintic.report.token_losses import TokenLosses, by_frequency, by_position, by_token
from quintic.trained import Trained, load_trained

SMALL = TokenLosses(
    targets_N=np.array([0, 1, 2, 0, 3, 1, 0, 0]),
    nats_N=np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
    context=4,
)


@pytest.fixture(scope="module")
def trained(text_run: Path) -> Trained:
    return load_trained(text_run, device="cpu")


@pytest.fixture(scope="module")
def measured(trained: Trained) -> Measured:
    missing: list[str] = []
    data = trained.open_data(Console(quiet=True))
    found = measure(trained.model, data, trained.config, 12, missing, longest_s=math.inf)
    assert missing == []
    return found


def test_their_mean_is_the_validation_loss(
    trained: Trained, measured: Measured, text_run: Path
) -> None:
    dataset, config = trained.open_data(Console(quiet=True)), trained.config
    batches = validation_batches(dataset.val, 32, config.train.eval_tokens, 3)
    sums = sum_losses(
        trained.model.loss, batches, torch.device("cpu"), special_ids=dataset.special_ids
    )
    logged = [r["val_loss"] for r in read_records(text_run / METRICS) if "val_loss" in r][-1]
    losses = measured.losses
    assert len(losses.nats_N) == sums.tokens == config.train.eval_tokens
    assert losses.mean == pytest.approx(sums.mean, abs=1e-6)
    assert losses.mean == pytest.approx(logged, abs=1e-6)
    assert measured.tokenizer is not None
    size = len(measured.tokenizer.decode_bytes(losses.targets_N.tolist()))
    assert measured.bits_per_byte == pytest.approx(sums.bits_per_byte(size), abs=1e-6)


def test_every_grouping_adds_up_to_the_whole_loss(measured: Measured) -> None:
    losses = measured.losses
    places = by_position(losses)
    assert sum(g.tokens for g in places) == len(losses.nats_N)
    assert [g.first for g in places[1:]] == [g.last + 1 for g in places[:-1]]
    of_places = sum(g.nats * g.tokens for g in places) / len(losses.nats_N)
    assert of_places == pytest.approx(losses.mean, abs=1e-9)
    frequencies = by_frequency(losses, measured.counts_V)
    assert sum(g.share for g in frequencies) == pytest.approx(1)
    assert sum(g.share * g.nats for g in frequencies) == pytest.approx(losses.mean, abs=1e-9)
    tokens = by_token(losses)
    assert sum(g.count for g in tokens) == len(losses.nats_N)
    assert sum(g.share for g in tokens) == pytest.approx(1)
    assert sum(g.count * g.nats for g in tokens) == pytest.approx(float(losses.nats_N.sum()))
    assert [g.nats for g in tokens] == sorted((g.nats for g in tokens), reverse=True)


def test_what_was_expected_agrees_with_the_losses(measured: Measured) -> None:
    shown, losses = measured.predictions, measured.losses
    assert (np.diff(shown.p_NK) <= 0).all()
    found = 0
    for place, target in enumerate(losses.targets_N.tolist()):
        named = shown.ids_NK[place].tolist()
        assert (shown.rank_N[place] == 1) == (named[0] == target)
        if target in named:
            found += 1
            p = shown.p_NK[place][named.index(target)]
            assert -math.log(p) == pytest.approx(losses.nats_N[place], abs=1e-4)
            assert shown.rank_N[place] == 1 + named.index(target)
    assert found > 20


def test_groups_of_a_few_tokens() -> None:
    places = [(g.first, g.last, g.tokens, g.nats) for g in by_position(SMALL)]
    assert places == [(0, 0, 2, 3.0), (1, 1, 2, 4.0), (2, 2, 2, 5.0), (3, 3, 2, 6.0)]
    wide = TokenLosses(np.zeros(16, dtype=np.int64), np.arange(16.0), context=16)
    assert [(g.first, g.last) for g in by_position(wide)][3:6] == [(3, 4), (5, 6), (7, 9)]
    seldom, never = by_frequency(SMALL, np.array([5, 3, 0, 2]))
    assert (seldom.name, seldom.share) == ("ranks 1 to 4", 7 / 8)
    assert seldom.nats == pytest.approx((36 - 3) / 7)
    assert (never.name, never.share, never.nats) == ("never in training", 1 / 8, 3.0)
    assert never.unigram_nats == pytest.approx(math.log(14))
    hardest, *_, easiest = by_token(SMALL)
    assert (hardest.token, hardest.count, hardest.nats, hardest.share) == (0, 4, 5.0, 20 / 36)
    assert (easiest.token, easiest.nats) == (2, 3.0)


def test_it_ends_when_the_time_is_over(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintic.report.token_losses.BATCH_TOKENS", 64)
    missing: list[str] = []
    data = trained.open_data(Console(quiet=True))
    found = measure(trained.model, data, trained.config, 12, missing, longest_s=0.0)
    assert len(found.losses.nats_N) == len(found.predictions.rank_N) == 64
    assert len(missing) == 1 and "the first 64 stand for them" in missing[0]


def test_counts_of_the_training_data(trained: Trained, measured: Measured) -> None:
    train = trained.open_data(Console(quiet=True)).train
    assert measured.counts_V.sum() == len(train)
    eot = train.read(0, len(train)).tolist().count(0)
    assert token_counts(train, 400)[0] == eot

"""Which tokens may be drawn, and how likely each is."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from quintic.errors import QuinticError
from quintic.sampling import Sampling

LOGITS = torch.tensor([1.0, 4.0, 2.0, -1.0, 3.0, 2.0])
SEEN = [4, 3, 4]


def distribution(sampling: Sampling, logits_V: Tensor = LOGITS) -> list[float]:
    ids_K, p_K = sampling.probabilities(logits_V, SEEN)
    found = torch.zeros(len(logits_V), dtype=torch.float64)
    found[ids_K] = p_K
    return found.tolist()


def of(weights: list[float]) -> Any:
    return pytest.approx([w / sum(weights) for w in weights])


def test_top_p_keeps_the_fewest_tokens_that_add_up_to_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert distribution(Sampling(top_p=0.5), logits) == of([1, 0, 0, 0])
    assert distribution(Sampling(top_p=0.51), logits) == of([0.5, 0.3, 0, 0])
    assert distribution(Sampling(top_p=0.9), logits) == of([0.5, 0.3, 0.15, 0])
    assert distribution(Sampling(top_p=1.0), logits) == of([0.5, 0.3, 0.15, 0.05])
    assert distribution(Sampling(top_p=1e-9), logits) == of([1, 0, 0, 0])
    ids_K, p_K = Sampling(top_p=0.5).probabilities(torch.zeros(4), [])
    assert len(set(ids_K.tolist())) == 2 and p_K.tolist() == [0.5, 0.5]


def test_min_p_keeps_tokens_by_their_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.05, 0.5, 0.25, 0.2]).log()
    assert distribution(Sampling(min_p=0.45), logits) == of([0, 0.5, 0.25, 0])
    assert distribution(Sampling(min_p=0.0), logits) == of([0.05, 0.5, 0.25, 0.2])
    assert distribution(Sampling(min_p=1.0), logits) == of([0, 1, 0, 0])


def test_the_repetition_penalty_is_of_tokens_that_occurred_once_each() -> None:
    expected = [math.exp(x) for x in (1.0, 4.0, 2.0, -2.0, 1.5, 2.0)]
    assert distribution(Sampling(repetition_penalty=2.0)) == of(expected)
    greedy = Sampling(temperature=0, repetition_penalty=8.0)
    assert greedy.draw(LOGITS, [1, 1], torch.Generator()) == 4


CASES: list[dict[str, Any]] = [
    {"temperature": t, "top_k": k, "top_p": p, "min_p": m, "repetition_penalty": r}
    for t, k, p, m, r in itertools.product(
        (0.7, 1.0, 2.5), (None, 4), (None, 0.6, 0.9), (None, 0.2), (None, 1.3)
    )
]


def test_it_is_what_transformers_makes_of_the_same_settings() -> None:
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3
    for case in CASES:
        warpers = [
            kind(value)
            for kind, value in (
                (transformers.RepetitionPenaltyLogitsProcessor, case["repetition_penalty"]),
                (transformers.TemperatureLogitsWarper, case["temperature"]),
                (transformers.TopKLogitsWarper, case["top_k"]),
                (transformers.TopPLogitsWarper, case["top_p"]),
                (transformers.MinPLogitsWarper, case["min_p"]),
            )
            if value is not None
        ]
        scores = logits[None].double()
        for warper in warpers:
            scores = warper(torch.tensor([SEEN]), scores)
        expected = scores.softmax(-1)[0].tolist()
        assert distribution(Sampling(**case), logits.double()) == pytest.approx(expected), case


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_p": 0.0}, "--top-p is 0.0: it must be above 0 and at most 1, or left out"),
        ({"top_p": 1.5}, "--top-p is 1.5"),
        ({"top_p": math.nan}, "--top-p is nan"),
        ({"min_p": -0.1}, "--min-p is -0.1: it must be from 0 to 1, or left out"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0.0: it must be positive"),
        ({"repetition_penalty": math.inf}, "--repetition-penalty is inf"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        Sampling(**setting).check()  # type: ignore[arg-type]

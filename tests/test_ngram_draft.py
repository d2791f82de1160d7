"""Tokens guessed ahead: what is guessed, and that guesses never change a text."""

from collections.abc import Sequence
from typing import Any

import pytest

from quintic.errors import QuinticError
from quintic.generate import Drawn, generate_rows
from quintic.model.base import LanguageModel
from quintic.ngram_draft import DRAFTED, NgramDraft
from quintic.sampling import Sampling
from tests.test_generate import CONTEXT, GREEDY, LONG_PROMPT, VOCAB, drawn, with_switch

TOKENS = 3 * CONTEXT


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 9, [3, 4, 1, 2]),
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 0, []),
        ([7, 1, 2, 3, 8, 2, 3, 9, 1, 2, 3], 1, [8]),  # the longest that occurred, not the latest
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the latest of one length
        ([5, 6, 7], 9, []),
        ([5, 5], 9, [5]),
        ([5], 9, []),
    ],
)
def test_a_text_is_guessed_to_go_on_as_where_it_stood_before(
    text: list[int], count: int, expected: list[int]
) -> None:
    assert NgramDraft().guess(text, count) == expected
    draft = NgramDraft()
    for end in range(1, len(text)):
        draft.guess(text[:end], count)
    assert draft.guess(text, count) == expected[:1]  # after a token at a time, one is risked


def test_more_is_guessed_where_guesses_came_true() -> None:
    text, draft = [1, 2, 3, 4, 5, 6, 7, 8] * 9, NgramDraft()
    draft.guess(text[:16], DRAFTED)
    assert [len(draft.guess(text[:end], DRAFTED)) for end in (17, 19, 23, 24)] == [1, 3, DRAFTED, 1]


class Recorded:
    """Guesses what it is told will come, each third token wrong, and counts."""

    def __init__(self, text: list[int]) -> None:
        self.text, self.guessed, self.calls = text, 0, 0

    def __call__(self) -> "Recorded":
        return self

    def guess(self, text: Sequence[int], count: int) -> list[int]:
        assert list(text) == self.text[: len(text)]
        ahead = self.text[len(text) : len(text) + count]
        assert len(ahead) == count  # never beyond the tokens asked for
        self.guessed += count
        self.calls += 1
        places = range(len(text), len(text) + count)
        return [(t + (place % 3 == 0)) % VOCAB for t, place in zip(ahead, places, strict=True)]


def drawn_from(model: LanguageModel, prompt: list[int], **options: Any) -> list[Drawn]:
    settings: dict[str, Any] = {"tokens": TOKENS, "seeds": [7], "logprobs": True} | options
    return list(generate_rows(model, [prompt], **settings))


def ids(drawn: Sequence[Drawn]) -> list[int]:
    return [one.token for one in drawn]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("switch", GREEDY)
def test_guesses_right_and_wrong_leave_a_text_as_it_is(
    switch: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sampling = with_switch(switch), Sampling(temperature, repetition_penalty=1.1)
    for length in (1, 5, CONTEXT, 2 * CONTEXT + 3):
        prompt = LONG_PROMPT[:length]
        expected = drawn_from(model, prompt, sampling=sampling)
        told = Recorded([*prompt, *ids(expected)])
        monkeypatch.setattr("quintic.generate.NgramDraft", told)
        found = drawn_from(model, prompt, sampling=sampling, draft="ngram")
        assert ids(found) == ids(expected)
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected])
        assert told.guessed > TOKENS / 3
        assert told.calls < TOKENS  # some came true


def test_a_guessed_end_of_text_ends_it_and_so_does_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ended = drawn("gpt"), set[int]()
    expected = ids(drawn_from(model, [1]))
    monkeypatch.setattr("quintic.generate.NgramDraft", Recorded([1, *expected]))
    stop = expected[9]
    found = ids(drawn_from(model, [1], stop_id=stop, draft="ngram"))
    assert found == expected[: expected.index(stop)]
    found = []
    for one in generate_rows(model, [[1]], tokens=TOKENS, seeds=[7], ended=ended, draft="ngram"):
        found.append(one.token)
        if len(found) == 10:
            ended.add(0)
    assert found == expected[:10]


def test_several_texts_at_once_are_refused() -> None:
    with pytest.raises(QuinticError, match="--draft is for one text at a time, and 2 come at once"):
        next(generate_rows(drawn("gpt"), [[1], [2]], tokens=3, draft="ngram"))

"""Tokens guessed ahead without a model: a text often goes on as it did where it stood before.

Source: https://github.com/apoorvumang/prompt-lookup-decoding, which is `prompt_lookup_num_tokens`
of transformers' `generate` and "ngram" among vLLM's methods of speculative decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

DRAFTED = 6
"""Tokens guessed at most; docs/generate.md has the speed."""
SIZES = (3, 2, 1)
"""Lengths of the n-grams that are looked up, the first that occurred before deciding."""


class NgramDraft:
    """Guesses the tokens of one text that grows."""

    def __init__(self) -> None:
        self._place: dict[tuple[int, ...], int] = {}
        """Where the latest occurrence of an n-gram ends, which has a token behind it."""
        self._read = 0

    def guess(self, text: Sequence[int], count: int) -> list[int]:
        """Return at most so many tokens that may continue the text, none where its last ones did
        not occur before; the text is that of the last call, continued."""
        for end in range(self._read, len(text)):
            for size in SIZES:
                if end >= size:
                    self._place[tuple(text[end - size : end])] = end
        count = min(count, 2 * (len(text) - self._read) - 1)
        self._read = len(text)
        for size in SIZES:
            place = self._place.get(tuple(text[-size:]))
            if place is not None:
                return list(text[place : place + count])
        return []

"""quintic's own model inside lm-evaluation-harness, for every task that it has.

https://github.com/EleutherAI/lm-evaluation-harness, its interface as of 0.4.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table

from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError, one_line
from quintic.generate import TextStream, generate_rows
from quintic.model.base import LanguageModel
from quintic.sampling import Sampling
from quintic.tasks.loglikelihood import joined, log_likelihoods, scored_pieces
from quintic.trained import Trained

MOST_NEW_TOKENS = 256
"""Tokens that are generated where a task does not say, as lm-eval's own models do."""


class QuinticLM(TemplateLM):
    """A model with its tokenizer, as lm-evaluation-harness asks models."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model, self._tokenizer = model, tokenizer

    @property
    def eot_token_id(self) -> int:
        """The end of text, which stands before what has no context."""
        return self._tokenizer.eot_id

    @property
    def max_length(self) -> int:
        """The tokens that the model sees at once."""
        return self.model.config.context

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text, to which nothing is added."""
        return self._tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        if not all(ids for _, _, ids in requests):
            raise QuinticError("a continuation has no tokens to score: leave the task out")
        encoded = [
            scored_pieces(context + ids, len(ids), self.max_length + 1)
            for _, context, ids in requests
        ]
        sequences = [piece for pieces in encoded for piece in pieces]
        results = iter(log_likelihoods(self.model, sequences, self._tokenizer.vocab_size))
        found = [joined([next(results) for _ in pieces]) for pieces in encoded]
        for (key, _, _), result in zip(requests, found, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, (result.nats, result.greedy))
        return [(result.nats, result.greedy) for result in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each whole text, in lm-eval's windows."""
        windows: list[tuple[tuple[str, str] | None, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            for context, ids in map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            ):
                windows.append((None, context, ids))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += nats
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each text, up to the first of its stop strings."""
        texts: list[str] = []
        for request in requests:
            context, settings = request.args
            texts.append(self._continue(context, dict(settings)))
        return texts

    def _continue(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        tokens = settings.get("max_gen_toks", MOST_NEW_TOKENS)
        draws = settings.get("do_sample", False)
        ids = self.tok_encode(context) or [self.eot_token_id]
        stream = TextStream(self._tokenizer, [until] if isinstance(until, str) else until)
        text, ended = "", set[int]()
        for drawn in generate_rows(
            self.model,
            [ids[-max(1, self.max_length - tokens) :]],
            tokens=tokens,
            sampling=Sampling(temperature=settings.get("temperature", 1.0) if draws else 0.0),
            vocab_size=self._tokenizer.vocab_size,
            stop_id=self.eot_token_id,
            ended=ended,
        ):
            text += stream.feed(drawn.token)
            if stream.stopped:
                ended.add(0)
        return text + stream.finish()


def run_lm_eval(
    trained: Trained, tokenizer: Tokenizer, tasks: Sequence[str], limit: int | None
) -> tuple[str, dict[str, Any]]:
    """Run tasks of lm-evaluation-harness; return its table and its results, item by item.

    Raises `QuinticError` where it has no such tasks, or cannot load their data.
    """
    try:
        results = lm_eval.simple_evaluate(
            QuinticLM(trained.model, tokenizer), tasks=[*tasks], limit=limit, log_samples=True
        )
    except (KeyError, ValueError, OSError, ConnectionError) as error:
        raise QuinticError(
            f"lm-evaluation-harness cannot run {', '.join(tasks)} ({one_line(error)}): "
            "lm-eval ls tasks lists what it has, and their data comes from the hub"
        ) from error
    assert results is not None, "this process is the first"
    return make_table(results), dict(results)

"""Samples: what a model makes of the beginning of the validation text, also as it trains.

`samples.jsonl` has one object a line, written after a validation: `step` and `tokens` as in
`metrics.jsonl`, `prompt`, `text`, which continues it, and `sample_s`, the seconds that took. The
prompt, the seed and the settings are the same each time, so that only the model differs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from quintic.console import Console
from quintic.data.background import in_background
from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError, reason
from quintic.generate import generate_ids, stream_text
from quintic.metrics_file import truncate_metrics
from quintic.run import Run
from quintic.run_dir import SAMPLES

PROMPT_TOKENS, TEMPERATURE, TOP_K = 48, 0.8, 50


def prompt_ids(run: Run) -> list[int]:
    """Return the ids of the prompt, the first tokens of the validation text."""
    return [int(i) for i in run.dataset.val.read(0, PROMPT_TOKENS)]


def sample_ids(run: Run, tokens: int) -> Iterator[int]:
    """Yield up to `tokens` ids with which the model continues the prompt; the random numbers are
    its own, and training draws the same with it and without.

    The dataset must name its tokenizer. The weights must not be sharded.
    """
    return generate_ids(
        run.state.model,
        prompt_ids(run),
        tokens=tokens,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        seed=run.config.train.seed,
        vocab_size=run.dataset.vocab_size,
        stop_id=run.dataset.eot_id,
    )


def why_none(*, sample_tokens: int, sharded: bool) -> str | None:
    """Return in words why a run takes no samples; None where it takes some."""
    if not sample_tokens:
        return "train.sample_tokens is 0"
    if sharded:
        return "the weights are divided among processes"
    return None


class Samples:
    """Takes the samples of a run, on the main process alone; what goes wrong with one is said once,
    and ends the taking and not the run.

    Those of a resumed run from its step on are dropped first, since it takes them again.
    """

    def __init__(self, run: Run, console: Console) -> None:
        self._run, self._console = run, console
        self._path, self._tokens = run.folder / SAMPLES, run.config.train.sample_tokens
        self._on = run.world.is_main and not why_none(
            sample_tokens=self._tokens, sharded=run.sharded
        )
        if run.world.is_main:
            truncate_metrics(self._path, run.state.step)
        if self._on:
            # Begun now, since GPT-2's vocabulary may have to be downloaded, or is not to be had.
            self._tokenizer = in_background(run.dataset.load_tokenizer)

    def take(self) -> None:
        """Write what the model says now; takes seconds that are no step's."""
        if not self._on:
            return
        try:
            record = self._sample(self._tokenizer.result())
            with self._path.open("a") as file:  # a whole line in one write, for who reads meanwhile
                file.write(json.dumps(record) + "\n")
        except Exception as error:  # a sample is not worth a run
            self._on = False
            why = error if isinstance(error, QuinticError) else reason(error)
            self._console.line(f"no samples along the way: {why}")

    def _sample(self, tokenizer: Tokenizer) -> dict[str, Any]:
        run, began = self._run, time.perf_counter()
        text = "".join(stream_text(tokenizer, sample_ids(run, self._tokens)))
        return {
            "step": run.state.step,
            "tokens": run.config.tokens_before(run.state.step),
            "prompt": "".join(stream_text(tokenizer, prompt_ids(run))),
            "text": text,
            "sample_s": round(time.perf_counter() - began, 3),
        }

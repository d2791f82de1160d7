"""Batches: a pure function of (dataset, seed, step).

No state moves from step to step, so any process can ask for any rows of any step: the global batch
is the same on 1, 2, 3 or 8 processes, with any micro-batch, and after a resume (the idea is
levanter's: batch indices as a function of the step).

Shapes: B sequences of a batch, T tokens of a sequence (its context).
"""

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quintic.config import BatchSizes
from quintic.data.permutation import ROUNDS, permute
from quintic.data.shards import TokenStream
from quintic.errors import QuinticError, counted

Batch = tuple[Tensor, Tensor]

NO_TARGET = -1
"""Stands for a target that is not counted."""


class TokenReader(Protocol):
    """Tokens to read: a `TokenStream`, or a `Document`."""

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return a copy of the `count` tokens from position `start` on, [count]."""


class Loader:
    """Batches of a token stream.

    Sample i of the run, i = batches.before(step) + row, is a window of T inputs; its targets are
    the same window one token later.

    In stream order sample i begins at token i * T of the circular stream. No token is skipped at a
    shard's end, none is an input twice before all others were, and at the stream's end the sample
    continues at its beginning.

    In shuffled order an epoch cuts the stream into len(stream) // T windows and takes them in a
    permutation of its own. The cuts begin at an offset of its own too, so that the tail that does
    not fill a window is another in every epoch.

    `batches` says how many sequences the global batch of each step has; `seed` is not negative,
    chooses the shuffled order, and is without effect in stream order. Raises `QuinticError` where
    the stream has too few tokens for one batch.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        context: int,
        batches: BatchSizes,
        seed: int,
        order: Literal["stream", "shuffle"],
    ) -> None:
        needed = batches.sequences * context + 1
        if len(stream) < needed:
            raise QuinticError(
                f"{stream.shards[0].path.parent} has {counted(len(stream), 'training token')}, one "
                f"batch needs {needed:,} ({counted(batches.sequences, 'sequence')} of {context:,}, "
                "and 1 for the last target): bring more text, or make --train.batch-tokens or "
                "--model.context smaller"
            )
        self.stream, self.context, self.batches = stream, context, batches
        self.seed, self.order = seed, order
        self._epoch_samples = len(stream) // context

    def batch(self, step: int, rows: slice | range | None = None) -> Batch:
        """Return inputs and targets of rows of a step's global batch, int64 [B, T] on the CPU.

        Steps count from 0. B is the number of rows asked for, all of them if `rows` is None;
        processes and micro-batches ask for theirs.
        """
        every = range(self.batches.at(step))
        if rows is None or isinstance(rows, slice):
            rows = every[rows or slice(None)]
        assert all(row in every for row in rows)
        first = self.batches.before(step)
        if self.order == "stream" and rows.step == 1:
            return _windows(
                self.stream, (first + rows.start) * self.context, len(rows), self.context
            )
        samples = np.array([first + row for row in rows], dtype=np.int64)
        starts = samples * self.context if self.order == "stream" else self._shuffled(samples)
        tokens = np.empty((len(rows), self.context + 1), dtype=np.int64)
        for window, start in zip(tokens, starts, strict=True):
            window[:] = self.stream.read(int(start), self.context + 1)
        tokens_BT = torch.from_numpy(tokens)
        return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()

    def _shuffled(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the position of the first token of each sample in shuffled order, [samples]."""
        epochs, places = np.divmod(samples, self._epoch_samples)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            # SeedSequence is specified: the same numbers on every machine and NumPy version.
            seeds = np.random.SeedSequence([self.seed, int(epoch)])
            words = seeds.generate_state(1 + ROUNDS, np.uint64).astype(np.uint64)
            offset = int(words[0]) % len(self.stream)
            inside = epochs == epoch
            places[inside] = permute(places[inside], self._epoch_samples, keys=words[1:])
            starts[inside] = offset + places[inside] * self.context
        return starts


def validation_batches(
    stream: TokenStream, context: int, tokens: int, batch_sequences: int
) -> Iterator[Batch]:
    """Iterate over the first `tokens` tokens of a validation stream, whatever the batch: the mean
    over them is comparable between runs.

    Inputs and targets are int64 [B, context]; B is batch_sequences except in the last batch, which
    has what is left. Raises `QuinticError`, here and not at the first batch, where `tokens` is not
    a positive multiple of context, or the stream has fewer than tokens + 1.
    """
    folder = stream.shards[0].path.parent
    if tokens < 1 or tokens % context:
        raise QuinticError(
            f"validation on {tokens:,} tokens cannot be cut into sequences of {context}: use a "
            f"multiple of the context, such as {max(1, tokens // context) * context}"
        )
    if len(stream) < tokens + 1:
        most = (len(stream) - 1) // context * context
        way_out = (
            f"use at most {most}, with --train.eval-tokens or evaluate's --tokens"
            if most
            else "bring more text, or make the context smaller"
        )
        raise QuinticError(
            f"validation on {tokens:,} tokens needs {tokens + 1:,} (1 for the last target), and "
            f"{folder} has {counted(len(stream), 'token')} for it: {way_out}"
        )
    return rolling_batches(stream, context, tokens, batch_sequences)


def rolling_batches(
    stream: TokenReader, context: int, tokens: int, batch_sequences: int
) -> Iterator[Batch]:
    """Iterate over the first `tokens` tokens behind a stream's first, each once as a target.

    Windows of `context` inputs adjoin. Where the last one is not full it begins earlier, and is a
    batch of its own: [1, context], or [1, tokens] of fewer than that. Its targets that were those
    of the window before are `NO_TARGET`. lm-evaluation-harness cuts documents in the same way
    (0.4.13, `get_rolling_token_windows` with a `context_len` of 1, and `make_disjoint_window`).
    """
    whole, batch_tokens = tokens // context * context, batch_sequences * context
    for start in range(0, whole, batch_tokens):
        yield _windows(stream, start, min(batch_tokens, whole - start) // context, context)
    if whole < tokens:
        start = max(0, tokens - context)
        inputs_1T, targets_1T = _windows(stream, start, 1, tokens - start)
        targets_1T = targets_1T.clone()  # the two are views of the same tokens
        targets_1T[0, : whole - start] = NO_TARGET
        yield inputs_1T, targets_1T


def _windows(stream: TokenReader, start: int, count: int, context: int) -> Batch:
    """Read `count` adjoining windows from token `start` on at once: inputs and targets [B, T]."""
    tokens = torch.from_numpy(stream.read(start, count * context + 1))
    return tokens[:-1].view(count, context), tokens[1:].view(count, context)

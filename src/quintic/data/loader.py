"""Batches: a pure function of (dataset, seed, step).

No state moves from step to step, so any process can ask for any rows of any step: the global batch
is the same on 1, 2, 3 or 8 processes, with any micro-batch, and after a resume (the idea is
levanter's: batch indices as a function of the step).

Shapes: B sequences of a batch, T tokens of a sequence (its context).
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quintic.config import BatchSizes
from quintic.data.permutation import ROUNDS, Permutation
from quintic.data.shards import TokenStream
from quintic.errors import QuinticError

Batch = tuple[Tensor, Tensor]
Moving = TypeVar("Moving")


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

    Args:
        stream: the tokens.
        context: T.
        batches: sequences of the global batch of each step.
        seed: not negative; chooses the shuffled order, and is without effect in stream order.
        order: "stream" or "shuffle".

    Raises:
        QuinticError: the stream has too few tokens for one batch.
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
                f"{stream.shards[0].path.parent} has {len(stream)} training tokens, one batch "
                f"needs {needed} ({batches.sequences} sequences of {context}, and 1 for the last "
                f"target): bring more text, or make batch or context smaller"
            )
        self.stream = stream
        self.context = context
        self.batches = batches
        self.seed = seed
        self.order = order
        self._epoch_samples = len(stream) // context

    def batch(self, step: int, rows: slice | range | None = None) -> Batch:
        """Rows of the global batch of a step.

        Args:
            step: counts from 0.
            rows: which of the step's rows, all if None; processes and micro-batches ask for
                theirs.

        Returns:
            Inputs and targets, both int64 [B, T] on the CPU, B the number of rows asked for.
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
        """First token of each sample in shuffled order."""
        epochs, places = np.divmod(samples, self._epoch_samples)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            # SeedSequence is specified: the same numbers on every machine and NumPy version.
            seeds = np.random.SeedSequence([self.seed, int(epoch)])
            words = seeds.generate_state(1 + ROUNDS, np.uint64).astype(np.uint64)
            offset = int(words[0]) % len(self.stream)
            permutation = Permutation(self._epoch_samples, keys=words[1:])
            inside = epochs == epoch
            starts[inside] = offset + permutation(places[inside]) * self.context
        return starts


def validation_batches(
    stream: TokenStream, context: int, tokens: int, batch_sequences: int
) -> Iterator[Batch]:
    """The first `tokens` tokens of a validation stream, whatever the batch: the mean over them is
    comparable between runs.

    Returns:
        An iterator of inputs and targets, int64 [B, context]; B is batch_sequences except in the
        last batch, which has what is left.

    Raises:
        QuinticError: `tokens` is not a positive multiple of context, or the stream has fewer than
            tokens + 1. Raised here, not at the first batch.
    """
    folder = stream.shards[0].path.parent
    if tokens < 1 or tokens % context:
        raise QuinticError(
            f"validation on {tokens} tokens cannot be cut into sequences of {context}: use a "
            f"multiple of the context, such as {max(1, tokens // context) * context}"
        )
    if len(stream) < tokens + 1:
        most = (len(stream) - 1) // context * context
        way_out = f"use at most {most}" if most else "bring more text, or make the context smaller"
        raise QuinticError(
            f"validation on {tokens} tokens needs {tokens + 1} (1 for the last target), and "
            f"{folder} has {len(stream)} validation tokens: {way_out}"
        )
    batch_tokens = batch_sequences * context
    return (
        _windows(stream, start, min(batch_tokens, tokens - start) // context, context)
        for start in range(0, tokens, batch_tokens)
    )


def _windows(stream: TokenStream, start: int, count: int, context: int) -> Batch:
    """`count` adjoining windows from token `start` on, in one read: inputs and targets [B, T]."""
    tokens = torch.from_numpy(stream.read(start, count * context + 1))
    return tokens[:-1].view(count, context), tokens[1:].view(count, context)


class Mover(Protocol[Moving]):
    """Moves batches to where they are computed with, see `quintic.data.prefetch`."""

    def begin(self, batch: Batch) -> Moving:
        """Start; called by the thread that prepares batches."""

    def ready(self, moving: Moving) -> Batch:
        """The batch where it is to be; called by the thread that computes."""


class Prefetcher:
    """Prepares the batch of the next step in a background thread while this one is trained on.

    Args:
        batch: gives the batch of a step; called from one thread only, for each step once.
        first_step: the first step that `get` will be asked for.
        last_step: one past the last, as in `range`.
        pin: put batches into page-locked memory, from which a copy to the GPU can be asynchronous;
            needs CUDA.
        uploader: starts the copy to the GPU as soon as a batch is prepared; needs `pin`.

    Attributes:
        wait_s: seconds that `get` has waited in all; near 0 where data keeps up with training.
    """

    def __init__(
        self,
        batch: Callable[[int], Batch],
        first_step: int,
        last_step: int,
        pin: bool = False,
        uploader: Mover[Any] | None = None,
    ) -> None:
        self.wait_s = 0.0
        self._batch = batch
        self._pin, self._uploader = pin, uploader
        self._last_step = last_step
        self._next_step = first_step
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: Future[Any] | None = self._prepare(first_step)

    def get(self, step: int) -> Batch:
        """The batch of the next step; steps come in order, each once.

        Raises:
            Exception: whatever preparing the batch raised.
        """
        assert self._ahead is not None and step == self._next_step, f"step {step} is out of turn"
        began = time.perf_counter()
        prepared = self._ahead.result()
        self.wait_s += time.perf_counter() - began
        self._next_step += 1
        self._ahead = self._prepare(self._next_step)
        batch: Batch = prepared if self._uploader is None else self._uploader.ready(prepared)
        return batch

    def close(self) -> None:
        """Stop the thread; a batch in preparation is finished and dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _prepare(self, step: int) -> Future[Any] | None:
        if step >= self._last_step:
            return None
        return self._executor.submit(self._load, step)

    def _load(self, step: int) -> Any:
        inputs, targets = self._batch(step)
        if self._pin:
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return (
            (inputs, targets) if self._uploader is None else self._uploader.begin((inputs, targets))
        )

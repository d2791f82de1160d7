"""The loss of a model on tokens, and its scores in units of text.

The loss is the mean over the same tokens for every micro-batch and world size, so that the losses
of two runs on one dataset compare. Bits per byte are those of nanochat and lm-evaluation-harness;
docs/evaluate.md has the definition.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quintic.data.loader import Batch
from quintic.data.shards import TokenStream
from quintic.data.tokenizer import Tokenizer
from quintic.distributed.world import ALONE, World
from quintic.errors import QuinticError

BASELINE_TOKENS = 50_000_000
"""Training tokens that the unigram model counts, at most."""


@dataclass(frozen=True)
class LossSums:
    """The losses of a model on some tokens, added up, in nats."""

    tokens: int
    nats: float
    text_nats: float
    """The sum over the tokens that have bytes: special tokens, such as end of text, have none."""

    @property
    def mean(self) -> float:
        """Return the loss in nats per token, over all of them."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Return exp of the mean; infinite where that overflows, as a diverged run's does."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, text_bytes: int) -> float:
        """Return the loss on text that has so many bytes, at least one, in bits for each."""
        return self.text_nats / math.log(2) / text_bytes


def add_up(parts: Iterable[LossSums]) -> LossSums:
    """Return the sums over the tokens of all parts."""
    tokens, nats, text_nats = zip(*((p.tokens, p.nats, p.text_nats) for p in parts), strict=True)
    return LossSums(sum(tokens), math.fsum(nats), math.fsum(text_nats))


@torch.no_grad()
def sum_losses(
    loss: Callable[..., Tensor],
    batches: Iterable[Batch],
    device: torch.device,
    world: World = ALONE,
    special_ids: Collection[int] = (),
) -> LossSums:
    """Return the sums over all batches, each a pair of [B, T] ids; targets below zero are none.

    `loss` is `LanguageModel.loss`. `special_ids` are the ids without bytes. Every process takes its
    share of the sequences of each batch. The batches' sums are added up in float64, and read from
    the device once, at the end.
    """
    special, sums, tokens = torch.tensor(sorted(special_ids)), [], 0
    for batch in batches:
        (inputs_BT, targets_BT), sequences = split_batch(batch, world.size)[world.rank]
        counted_BT = (targets_BT >= 0) & (sequences > 0)
        # Two sums of the same losses: over the targets, and over those that are text.
        masks_2BT = torch.stack([counted_BT, counted_BT & ~torch.isin(targets_BT, special)])
        losses = loss(
            inputs_BT.to(device, non_blocking=True),
            targets_BT.clamp(min=0).to(device, non_blocking=True),
            reduction="none",
        )
        masks_2N = masks_2BT.flatten(1).to(device, non_blocking=True)
        sums.append(torch.where(masks_2N, losses, 0).sum(1))
        tokens += int((batch[1] >= 0).sum())
    nats, text_nats = world.all_reduce(torch.stack(sums).cpu().double().sum(0)).tolist()
    return LossSums(tokens, nats, text_nats)


def split_batch(batch: Batch, parts: int) -> list[tuple[Batch, int]]:
    """Return a batch in parts of nearly equal size, each with its number of sequences.

    A part that gets none computes the first sequence with weight 0: processes that share weights
    must all compute equally often.
    """
    inputs, targets = (tensor.tensor_split(parts) for tensor in batch)
    none = batch[0][:1], batch[1][:1]
    return [((i, t), len(i)) if len(i) else (none, 0) for i, t in zip(inputs, targets, strict=True)]


@dataclass(frozen=True)
class TextScores:
    """A loss in bits per byte of text, which compares between tokenizers, beside those of two
    models that anyone knows, on the same bytes."""

    text_tokens: int
    text_bytes: int
    bits_per_byte: float
    gzip_bits_per_byte: float
    """The size of the same text after gzip -9."""
    unigram_bits_per_byte: float | None
    """The score of a model that knows the frequency of tokens in the training data alone; None
    where that is not at hand."""


def score_text(
    sums: LossSums, targets: npt.NDArray[np.int64], tokenizer: Tokenizer, train: TokenStream | None
) -> TextScores:
    """Return the scores of the losses on targets, [sums.tokens].

    Raises `QuinticError` where none of them has bytes.
    """
    text_ids = targets[tokenizer.byte_lengths[targets] > 0]
    if not len(text_ids):
        raise QuinticError(f"none of these {sums.tokens:,} tokens is text: evaluate more of them")
    text = tokenizer.decode_bytes(text_ids)
    unigram = None
    if train is not None:
        counts = token_counts(train, tokenizer.vocab_size)
        # Add-one smoothing: a token that training never saw still has a probability.
        log2_p = np.log2((counts + 1) / (counts.sum() + len(counts)))
        unigram = -float(log2_p[text_ids].sum()) / len(text)
    return TextScores(
        text_tokens=len(text_ids),
        text_bytes=len(text),
        bits_per_byte=sums.bits_per_byte(len(text)),
        gzip_bits_per_byte=8 * gzip_bytes(text) / len(text),
        unigram_bits_per_byte=unigram,
    )


def token_counts(train: TokenStream, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return how often each token occurs among the first `BASELINE_TOKENS` of the training data,
    [vocab_size]."""
    ids = train.read(0, min(len(train), BASELINE_TOKENS))
    return np.bincount(ids, minlength=vocab_size).astype(np.int64, copy=False)


def gzip_bytes(text: bytes) -> int:
    """Return the size of a text after gzip -9."""
    return len(gzip.compress(text, 9))

"""Validation loss on a fixed number of tokens, and its scores in units of text.

The loss is the mean over the same tokens for every micro-batch and world size, so that the losses
of two runs on one dataset compare.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quintic.data.loader import Batch
from quintic.data.shards import TokenStream
from quintic.data.tokenizer import Tokenizer
from quintic.distributed.world import ALONE, World

BASELINE_TOKENS = 50_000_000
"""Training tokens that the unigram model counts, at most."""


@torch.no_grad()
def validation_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Batch],
    device: torch.device,
    world: World = ALONE,
) -> float:
    """Return the mean nats per token over all batches, each a pair of [B, T] ids.

    Every process takes its share of the sequences of each batch. The sum is in float64, and read
    from the device once, at the end.
    """
    sums, tokens = [], 0
    for batch in batches:
        (inputs_BT, targets_BT), weight = split_batch(batch, world.size)[world.rank]
        mean = loss(
            inputs_BT.to(device, non_blocking=True), targets_BT.to(device, non_blocking=True)
        )
        sums.append(mean * (weight * inputs_BT.shape[1]))
        tokens += batch[1].numel()
    return float(world.all_reduce(torch.stack(sums).cpu().double().sum())) / tokens


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
    """A validation loss in bits per byte of text, which compares between tokenizers, beside those
    of two models that anyone knows."""

    bits_per_byte: float
    gzip_bits_per_byte: float
    """The size of the same text after gzip -9."""
    unigram_bits_per_byte: float
    """The score of a model that knows the frequency of tokens in the training data alone."""


def perplexity(loss_nats: float) -> float:
    """Return exp of the loss per token; infinite where that overflows, as a diverged run's does."""
    try:
        return math.exp(loss_nats)
    except OverflowError:
        return math.inf


def nats_to_bits_per_byte(loss_nats: float, bytes_per_token: float) -> float:
    """Return nats per token as bits per byte of text."""
    return loss_nats / math.log(2) / bytes_per_token


def score_text(
    loss_nats: float,
    *,
    train: TokenStream,
    validation: TokenStream,
    tokens: int,
    tokenizer: Tokenizer,
) -> TextScores:
    """Return the scores of a loss on the text of the validation stream's first `tokens` targets."""
    targets = validation.read(1, tokens)
    text = tokenizer.decode_bytes(targets)
    counts = np.bincount(
        train.read(0, min(len(train), BASELINE_TOKENS)), minlength=tokenizer.vocab_size
    )
    # Add-one smoothing: a token that training never saw still has a probability.
    log_p = np.log((counts + 1) / (counts.sum() + len(counts)))
    bytes_per_token = len(text) / tokens
    return TextScores(
        bits_per_byte=nats_to_bits_per_byte(loss_nats, bytes_per_token),
        gzip_bits_per_byte=8 * len(gzip.compress(text, 9)) / len(text),
        unigram_bits_per_byte=nats_to_bits_per_byte(-float(log_p[targets].mean()), bytes_per_token),
    )

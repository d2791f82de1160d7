"""Validation loss on a fixed number of tokens, and what it means in bits per byte.

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
from quintic.distributed.world import World

BASELINE_TOKENS = 50_000_000
"""Training tokens that the unigram model counts, at most."""


@torch.no_grad()
def validation_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Batch],
    device: torch.device,
    world: World | None = None,
) -> float:
    """Mean nats per token over all batches, each a pair of [B, T] ids.

    Every process takes its share of the sequences of each batch. Summed in float64, and read from
    the device once, at the end.
    """
    world = world or World()
    sums, tokens = [], 0
    for batch in batches:
        (inputs_BT, targets_BT), weight = share(batch, world.size)[world.rank]
        mean = loss(
            inputs_BT.to(device, non_blocking=True), targets_BT.to(device, non_blocking=True)
        )
        sums.append(mean * (weight * inputs_BT.shape[1]))
        tokens += batch[1].numel()
    return float(world.all_reduce(torch.stack(sums).cpu().double().sum())) / tokens


def share(batch: Batch, parts: int) -> list[tuple[Batch, int]]:
    """A batch in parts of nearly equal size, each with its number of sequences.

    A part that gets none computes the first sequence with weight 0: processes that share weights
    must all compute equally often.
    """
    inputs, targets = (tensor.tensor_split(parts) for tensor in batch)
    none = batch[0][:1], batch[1][:1]
    return [((i, t), len(i)) if len(i) else (none, 0) for i, t in zip(inputs, targets, strict=True)]


@dataclass(frozen=True)
class TextScores:
    """A validation loss in units of text, beside two models that anyone knows."""

    loss_nats: float
    bytes_per_token: float
    gzip_bits_per_byte: float
    """gzip -9 on the same text."""
    unigram_bits_per_byte: float
    """Each token predicted by its frequency in the training data alone."""

    @property
    def perplexity(self) -> float:
        """exp of the loss per token."""
        return perplexity(self.loss_nats)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, unlike the loss per token."""
        return nats_to_bits_per_byte(self.loss_nats, self.bytes_per_token)


def perplexity(loss_nats: float) -> float:
    """exp of the loss per token; infinite where that overflows, as a diverged run's does."""
    try:
        return math.exp(loss_nats)
    except OverflowError:
        return math.inf


def nats_to_bits_per_byte(loss_nats: float, bytes_per_token: float) -> float:
    """Nats per token as bits per byte of text."""
    return loss_nats / math.log(2) / bytes_per_token


def score_text(
    loss_nats: float,
    *,
    train: TokenStream,
    validation: TokenStream,
    tokens: int,
    tokenizer: Tokenizer,
) -> TextScores:
    """What a loss on the first `tokens` targets of the validation stream means on their text."""
    targets = validation.read(1, tokens)
    text = tokenizer.decode_bytes(targets)
    counts = np.bincount(
        train.read(0, min(len(train), BASELINE_TOKENS)), minlength=tokenizer.vocab_size
    )
    # Add-one smoothing: a token that training never saw still has a probability.
    log_p = np.log((counts + 1) / (counts.sum() + len(counts)))
    bytes_per_token = len(text) / tokens
    return TextScores(
        loss_nats=loss_nats,
        bytes_per_token=bytes_per_token,
        gzip_bits_per_byte=8 * len(gzip.compress(text, 9)) / len(text),
        unigram_bits_per_byte=nats_to_bits_per_byte(-float(log_p[targets].mean()), bytes_per_token),
    )

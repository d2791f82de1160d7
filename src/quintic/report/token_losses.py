"""The losses of a model token by token, and what they depend on: the place in the context, how
often training has seen the token, and the token itself.

Shapes: B sequences, T context, V vocabulary, N tokens that are predicted, K likeliest tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from quintic.data.loader import rolling_batches, validation_batches
from quintic.data.shards import TokenStream
from quintic.model.base import LanguageModel

BATCH_TOKENS = 4096
"""Tokens of one forward pass, between which the time is looked at."""
LARGEST_OF_A_GROUP = 1.25
"""A group of positions ends at most so many times as far into the context as it begins."""
RANKS = (10, 100, 1000, 10_000)
"""Last ranks of the groups of tokens, from the most frequent on."""
FEWEST_OCCURRENCES = 8
"""Of a token whose mean loss is ranked among others."""

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenLosses:
    """The loss of each of the first tokens behind the beginning of a validation stream."""

    targets_N: Ids
    nats_N: Floats
    context: int
    """Sequences of so many tokens adjoin; the first is predicted from one token."""

    @property
    def mean(self) -> float:
        """Return the mean loss in nats per token."""
        return float(self.nats_N.mean())

    def bits_per_byte(self, byte_lengths_V: Ids) -> float | None:
        """Return the loss of the tokens that are text in bits for each byte of it, given the bytes
        of each token of the vocabulary; None where none is text."""
        lengths_N = byte_lengths_V[self.targets_N]
        if not lengths_N.any():
            return None
        return float(self.nats_N[lengths_N > 0].sum() / np.log(2) / lengths_N.sum())


@torch.no_grad()
def token_losses(
    model: LanguageModel, stream: TokenStream, tokens: int, *, longest_s: float
) -> TokenLosses:
    """Return the losses of the first `tokens` tokens, which quintic evaluate measures too, or of as
    many as there is time for."""
    context, device = model.config.context, model.embed.weight.device
    began, targets, nats = time.monotonic(), [], []
    for inputs_BT, targets_BT in validation_batches(
        stream, context, tokens, max(1, BATCH_TOKENS // context)
    ):
        losses_N = model.loss(inputs_BT.to(device), targets_BT.to(device), reduction="none")
        nats.append(losses_N.double().cpu().numpy())
        targets.append(targets_BT.flatten().numpy())
        if time.monotonic() - began > longest_s:
            break
    return TokenLosses(np.concatenate(targets), np.concatenate(nats), context)


@dataclass(frozen=True)
class Predictions:
    """What a model expected in place of each of the first tokens of a text."""

    ids_NK: Ids
    """The likeliest tokens, the first of them first."""
    p_NK: Floats
    rank_N: Ids
    """Rank of the token that came, from 1 on."""


@torch.no_grad()
def predict(
    model: LanguageModel, stream: TokenStream, tokens: int, *, vocab_size: int, likeliest: int
) -> Predictions:
    """Return the predictions for the first `tokens` tokens, whole contexts or less than one.

    Rows that pad the embedding, from `vocab_size` on, have their probability but are never named.
    """
    device, ids, p, rank = model.embed.weight.device, [], [], []
    for inputs_1T, targets_1T in rolling_batches(stream, model.config.context, tokens, 1):
        logits_TV, targets_T1 = model(inputs_1T.to(device))[0], targets_1T.to(device).T
        nats_TV = logits_TV.log_softmax(-1)
        top = nats_TV[:, :vocab_size].topk(min(likeliest, vocab_size))
        ids.append(top.indices.cpu().numpy())
        p.append(top.values.double().exp().cpu().numpy())
        rank.append(1 + (nats_TV > nats_TV.gather(1, targets_T1)).sum(1).cpu().numpy())
    return Predictions(np.concatenate(ids), np.concatenate(p), np.concatenate(rank))


@dataclass(frozen=True)
class PositionGroup:
    """Adjoining positions in the context, from 0 on, and the mean loss of the tokens there."""

    first: int
    last: int
    tokens: int
    nats: float


def by_position(losses: TokenLosses) -> list[PositionGroup]:
    """Return the loss by the number of tokens that stand before the one that predicts; each
    position alone near the beginning, and wider groups further on."""
    nats_T = losses.nats_N.reshape(-1, losses.context).mean(0)
    sequences, groups, first = len(losses.nats_N) // losses.context, [], 0
    while first < losses.context:
        end = min(max(first + 1, int((first + 1) * LARGEST_OF_A_GROUP)), losses.context)
        mean = float(nats_T[first:end].mean())
        groups.append(PositionGroup(first, end - 1, sequences * (end - first), mean))
        first = end
    return groups


@dataclass(frozen=True)
class FrequencyGroup:
    """Tokens that occur about as often in the training data."""

    name: str
    share: float
    """Part of the tokens of the validation text."""
    nats: float
    """The model's mean loss on them."""
    unigram_nats: float
    """That of a model which knows how often each token occurs and nothing else."""


def by_frequency(losses: TokenLosses, counts_V: Ids) -> list[FrequencyGroup]:
    """Return the loss by the rank of the token among all, given how often the training data has
    each; those that it never has are a group of their own. Groups without a token are left out."""
    order_V = np.argsort(-counts_V, kind="stable")
    rank_V = np.empty_like(order_V)
    rank_V[order_V] = np.arange(1, len(order_V) + 1)
    # Add-one smoothing, as in quintic.evaluate.
    unigram_V = -np.log((counts_V + 1) / (counts_V.sum() + len(counts_V)))
    rank_N, seen_N = rank_V[losses.targets_N], counts_V[losses.targets_N] > 0
    first, groups = 1, []
    for last in (*RANKS, len(counts_V)):
        if last >= first:
            name = f"ranks {first:,} to {min(last, len(counts_V)):,}"
            groups.append((name, seen_N & (rank_N >= first) & (rank_N <= last)))
            first = last + 1
    groups.append(("never in training", ~seen_N))
    return [
        FrequencyGroup(
            name,
            share=float(inside_N.mean()),
            nats=float(losses.nats_N[inside_N].mean()),
            unigram_nats=float(unigram_V[losses.targets_N[inside_N]].mean()),
        )
        for name, inside_N in groups
        if inside_N.any()
    ]


@dataclass(frozen=True)
class TokenGroup:
    """All occurrences of one token."""

    token: int
    count: int
    nats: float
    """Their mean loss."""
    share: float
    """Part of the whole loss."""


def by_token(losses: TokenLosses) -> list[TokenGroup]:
    """Return the loss by the token that came, the hardest first."""
    tokens, index_N, counts = np.unique(losses.targets_N, return_inverse=True, return_counts=True)
    sums, whole = np.bincount(index_N, losses.nats_N), float(losses.nats_N.sum())

    def groups() -> Iterator[TokenGroup]:
        for token, count, nats in zip(tokens.tolist(), counts.tolist(), sums.tolist(), strict=True):
            yield TokenGroup(token, count, nats / count, nats / whole if whole else 0.0)

    return sorted(groups(), key=lambda group: -group.nats)

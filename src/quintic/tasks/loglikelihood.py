"""The log-likelihood of continuations behind contexts, each token computed once.

Sequences are sorted, so that those which share a beginning stand side by side, and packed into rows
as trees (`quintic.model.token_tree`): a shared beginning, of one item's choices or of two items, is
computed once. Rows of nearly equal size make a batch, which is hardly ever padded. The head sees
the tokens behind which something is predicted, and no others.

Shapes: B rows, T tokens of a row, N tokens that predict, P targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from quintic.distributed.world import ALONE, World
from quintic.model.base import LanguageModel
from quintic.model.token_tree import TokenTree

ROW_TOKENS = 128
"""Tokens of a row whose sequences share little: attention takes time in proportion to them."""
LONGEST_ROW = 1024
"""Tokens of a row at most, unless one sequence has more."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768, "mps": 8192}
"""Tokens of a batch, by device: on a CPU its activations should stay in the cache."""


class Scored(NamedTuple):
    """A sequence of tokens that ends with a continuation."""

    ids: Sequence[int]
    """Two tokens or more, at most one more than the model's context."""
    scored: int
    """Tokens of the continuation, at least one and not all."""


class LogLikelihood(NamedTuple):
    """The log-likelihood of a continuation in nats, and whether each of its tokens is the one that
    the model finds likeliest."""

    nats: float
    greedy: bool


def scored_pieces(ids: Sequence[int], scored: int, longest: int) -> list[Scored]:
    """Return the end of a sequence, its last `scored` tokens, as what is to be scored of at most
    `longest` tokens each: one, whose beginning is cut off where it must be; or, where not even the
    end fits, several, which score each token of it once behind those that fit before it."""
    first = len(ids) - scored
    ends = [*range(first + longest - 1, len(ids), longest - 1), len(ids)]
    return [
        Scored(ids[max(0, end - longest) : end], end - start)
        for start, end in zip([first, *ends], ends, strict=False)
    ]


def joined(pieces: Sequence[LogLikelihood]) -> LogLikelihood:
    """Return the log-likelihood of a continuation from those of its pieces."""
    return LogLikelihood(sum(p.nats for p in pieces), all(p.greedy for p in pieces))


@dataclass
class _Row:
    """A tree that grows by one sequence at a time, in sorted order."""

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    """The places in the row of the newest sequence's tokens."""
    places: list[int] = field(default_factory=list)
    """The place in the row of the token that each target stands behind."""
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """The sequence that each target belongs to."""

    def shared(self, inputs: Sequence[int]) -> int:
        """Return how many first tokens of a sequence are the newest sequence's."""
        length = 0
        for place, token in zip(self.path, inputs, strict=False):
            if self.tokens[place] != token:
                break
            length += 1
        return length

    def add(self, sequence: Scored, owner: int, shared: int) -> None:
        """Add a sequence, whose last token is predicted and nothing behind it."""
        inputs = sequence.ids[:-1]
        self.close(shared)
        first, new = len(self.tokens), inputs[shared:]
        self.tokens += new
        self.depth += range(shared, len(inputs))
        self.last += [0] * len(new)  # known when another branch begins
        self.path[shared:] = range(first, first + len(new))
        self.places += self.path[len(inputs) - sequence.scored :]
        self.targets += sequence.ids[-sequence.scored :]
        self.owners += [owner] * sequence.scored

    def close(self, shared: int = 0) -> None:
        """End the newest sequence's branch, behind its first tokens that another one shares."""
        for place in self.path[shared:]:
            self.last[place] = len(self.tokens) - 1


def _rows(sequences: Sequence[Scored]) -> list[_Row]:
    """Return all sequences, packed into rows, the longest row first."""
    # Numbers with the most significant byte first sort as their bytes do, which is fast.
    keys = [np.asarray(sequence.ids, dtype=">u4").tobytes() for sequence in sequences]
    rows, row = [], _Row()
    for index in sorted(range(len(sequences)), key=keys.__getitem__):
        inputs = sequences[index].ids[:-1]
        shared = row.shared(inputs)
        size = len(row.tokens) + len(inputs) - shared
        # Where much is shared a longer row takes less time than to compute it again.
        if row.tokens and size > (ROW_TOKENS if 2 * shared < len(inputs) else LONGEST_ROW):
            rows.append(row)
            row, shared = _Row(), 0
        row.add(sequences[index], index, shared)
    rows.append(row)
    for row in rows:
        row.close()
    return sorted(rows, key=lambda row: -len(row.tokens))


def _batches(rows: Sequence[_Row], tokens: int) -> Iterator[Sequence[_Row]]:
    """Yield rows in their order, so many that they have at most so many tokens with padding."""
    while rows:
        count = max(1, tokens // len(rows[0].tokens))
        yield rows[:count]
        rows = rows[count:]


def _tree(rows: Sequence[_Row], device: torch.device) -> TokenTree:
    """Return the rows as a tree, filled up with tokens that no other attends to."""
    time = len(rows[0].tokens)
    tokens_BT = np.zeros((len(rows), time), dtype=np.int64)
    depth_BT = np.zeros_like(tokens_BT)
    last_BT = np.tile(np.arange(time), (len(rows), 1))
    for b, row in enumerate(rows):
        size = len(row.tokens)
        tokens_BT[b, :size], depth_BT[b, :size], last_BT[b, :size] = row.tokens, row.depth, row.last
    return TokenTree(*(torch.from_numpy(a).to(device) for a in (tokens_BT, depth_BT, last_BT)))


@torch.no_grad()
def log_likelihoods(
    model: LanguageModel,
    sequences: Sequence[Scored],
    vocab_size: int,
    on_progress: Callable[[float], None] | None = None,
    world: World = ALONE,
) -> list[LogLikelihood]:
    """Return the log-likelihood of each continuation, among the first `vocab_size` tokens.

    `on_progress` is called with the fraction that is done. Every process takes its share of the
    batches, and gets the results of all.
    """
    device = model.embed.weight.device
    batches = list(_batches(_rows(sequences), BATCH_TOKENS[device.type])) if sequences else []
    nats, misses = np.zeros(len(sequences)), np.zeros(len(sequences))
    # Processes that share weights must compute equally often: the last ones may do so for nothing.
    for first in range(0, len(batches), world.size):
        own = first + world.rank < len(batches)
        batch = batches[first + world.rank if own else 0]
        tree = _tree(batch, device)
        time = tree.tokens_BT.shape[1]
        places = np.concatenate([np.array(r.places) + b * time for b, r in enumerate(batch)])
        place_N, behind_P = np.unique(places, return_inverse=True)
        targets = [target for row in batch for target in row.targets]
        nats_P, likeliest_P = model.score_targets(
            tree,
            torch.from_numpy(place_N).to(device),
            torch.from_numpy(behind_P).to(device),
            torch.tensor(targets, device=device),
            vocab_size,
        )
        if own:
            owners = np.array([owner for row in batch for owner in row.owners])
            np.add.at(nats, owners, nats_P.cpu().double().numpy())
            np.add.at(misses, owners, ~likeliest_P.cpu().numpy())
        if on_progress:
            on_progress(min(1.0, (first + world.size) / len(batches)))
    both = world.all_reduce(torch.from_numpy(np.stack((nats, misses)))).numpy()
    return [LogLikelihood(float(n), not missed) for n, missed in zip(*both, strict=True)]

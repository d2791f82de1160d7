"""The token before, given to every position: its vector, a table of pairs, its keys.

Attention finds a token's neighbour by itself, in a layer and after much training; to copy what once
followed the same token (an induction head) it needs a second layer behind that. The switches here
give every position its neighbour from the start, for a few operations a token.

Shapes: B batch, T time, D model width, R rows of the table of pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintic.config import ModelConfig
from quintic.model.base import KVCache
from quintic.model.token_tree import TokenTree

NO_TOKEN = -1
"""Stands before the first token of a sequence or, with a document mask, of a document."""

THIS, BEFORE = 10_007, 1_000_003
"""Factors of the hash of a pair; odd, so that in a table of 2^n >= V rows no two pairs with a token
in common share a row."""


class Previous:
    """Gives each position of a forward pass what the position before it has.

    With a cache it keeps there what the next pass will ask for.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokens_BT: Tensor,
        cache: KVCache | None,
        tree: TokenTree | None,
    ) -> None:
        self.cache = cache
        self.parent_BT = None if tree is None else tree.parents()
        self.begins_BT: Tensor | None = None
        """True where a document begins; None where those do not count."""
        if config.document_mask:
            assert config.eot_id is not None, "resolve_eot fills it in"
            self.begins_BT = tokens_BT.eq(config.eot_id)

    def tokens(self, tokens_BT: Tensor) -> Tensor:
        """Return the token before each, `NO_TOKEN` where there is none."""
        if self.cache is not None:
            all_BS = F.pad(self.cache.append_tokens(tokens_BT), (1, 0), value=NO_TOKEN)
            previous_BT = all_BS[:, self.cache.length : -1]
        elif self.parent_BT is not None:
            found_BT = tokens_BT.gather(1, self.parent_BT.clamp(min=0))
            previous_BT = torch.where(self.parent_BT < 0, NO_TOKEN, found_BT)
        else:
            previous_BT = F.pad(tokens_BT[:, :-1], (1, 0), value=NO_TOKEN)
        if self.begins_BT is not None:
            previous_BT = previous_BT.masked_fill(self.begins_BT, NO_TOKEN)
        return previous_BT

    def vectors(self, x_BTD: Tensor, name: str) -> Tensor:
        """Return the vector of the position before each, zeros where there is none; `name` tells
        these vectors apart from others of the pass."""
        if self.cache is not None:
            before_BTD = self.cache.append_vectors(name, x_BTD)
        elif self.parent_BT is not None:
            parent_BT1 = self.parent_BT.unsqueeze(-1)
            found_BTD = x_BTD.gather(1, parent_BT1.clamp(min=0).expand_as(x_BTD))
            before_BTD = found_BTD.masked_fill(parent_BT1 < 0, 0.0)
        else:
            before_BTD = F.pad(x_BTD[:, :-1], (0, 0, 1, 0))
        if self.begins_BT is not None:
            before_BTD = before_BTD.masked_fill(self.begins_BT.unsqueeze(-1), 0.0)
        return before_BTD


def needs_previous(config: ModelConfig) -> bool:
    """Return whether any position of a model is given something of the one before."""
    return config.token_smear or config.bigram_embeddings > 0 or config.key_smear


class Smear(nn.Module):
    """a x_t + b x_(t-1), channel by channel, with learned weights [D]: a starts at one, b at zero.

    It is RWKV's token shift (https://arxiv.org/abs/2305.13048), and a short causal convolution as
    Mamba has it before its recurrence (https://arxiv.org/abs/2312.00752), of two positions. The
    speedrun's record 2025-09-18_Smear (https://github.com/KellerJordan/modded-nanogpt) smears the
    embedding with one weight a token, from a gate.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(width))
        self.before = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTD: Tensor, before_BTD: Tensor) -> Tensor:
        own, before = self.own.to(x_BTD.dtype), self.before.to(x_BTD.dtype)
        return torch.addcmul(own * x_BTD, before, before_BTD)


class BigramEmbedding(nn.Module):
    """A vector for each pair of a token and the one before, [R, D], which starts at zero.

    Pairs share rows by a hash of both. Source: the bigram hash embedding of the speedrun's records
    of 2026; hashed n-grams as in https://arxiv.org/abs/1709.03933.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, tokens_BT: Tensor, previous_BT: Tensor) -> Tensor:
        row_BT = (tokens_BT * THIS + previous_BT * BEFORE) % self.weight.shape[0]
        return F.embedding(row_BT, self.weight)

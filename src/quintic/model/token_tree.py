"""Sequences that share beginnings, packed so that each shared beginning is computed once.

A sequence of tokens is a path from the root of a tree, and sequences that begin alike share the
first part of their paths. A row holds the tokens of a tree, or of several, in preorder: behind each
token stands all that follows it in some sequence, and so the descendants of token j are those from
j + 1 to some `last[j]`. That is all that attention has to know: a token attends to its ancestors,
and stands at the position that its depth says.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenTree:
    """Rows of tokens in preorder, on the model's device."""

    tokens_BT: Tensor
    depth_BT: Tensor
    """Tokens before each in its sequences, which is its position."""
    last_BT: Tensor
    """Index in the row of each token's last descendant, or its own where it has none."""

    def parents(self) -> Tensor:
        """Return the index in the row of the token before each in its sequences, [B, T]; -1 where
        there is none."""
        index_T = torch.arange(self.tokens_BT.shape[1], device=self.tokens_BT.device)
        before_BTT = (index_T < index_T[:, None]) & (index_T[:, None] <= self.last_BT[:, None])
        return torch.where(before_BTT, index_T, -1).amax(-1)

    def attention_mask(self, *, window: int | Tensor | None, eot_id: int | None) -> Tensor:
        """Return the mask [B, 1, T, T], true where a query attends to a key: to itself and to its
        ancestors, of those to the `window` newest, and with `eot_id` to those of its document."""
        index_T = torch.arange(self.tokens_BT.shape[1], device=self.tokens_BT.device)
        query_T1, key_T = index_T[:, None], index_T
        mask_BTT = path_BTT = (key_T <= query_T1) & (query_T1 <= self.last_BT[:, None])
        if window is not None:
            mask_BTT = mask_BTT & (self.depth_BT[:, :, None] - self.depth_BT[:, None] < window)
        if eot_id is not None:
            # A token's document is told by the ends of text among its ancestors and itself.
            ends_BT = (self.tokens_BT == eot_id).float()
            document_BT = (path_BTT.float() @ ends_BT[:, :, None])[:, :, 0]
            mask_BTT = mask_BTT & (document_BT[:, :, None] == document_BT[:, None])
        return mask_BTT[:, None]

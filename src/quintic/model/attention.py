"""Softmax attention and its masks: causal, by a window of the newest positions, by document.

`mask_mod` alone defines what a window or a document is. A mask of every pair of positions is the
plain reference: all pairs are computed and the masked ones left out, so a window saves nothing.
With a mask of blocks, for `train.attention flex`, a block that is masked as a whole is never
computed (https://arxiv.org/abs/2412.05496).

Shapes: B batch, H heads, T new positions (queries), S all positions so far (keys), K head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

AttentionMask = Tensor | BlockMask
"""A mask [B or 1, 1, T, S], true where a query attends to a key; or the same by blocks."""


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attn_mask: AttentionMask | None = None
) -> Tensor:
    """Return attention with softmax scale 1/sqrt(K); the queries are the last T of S positions.

    Without a mask it is causal. Blocks do not train on a CPU, and are fast in compiled code only.
    """
    if isinstance(attn_mask, BlockMask):
        y_BHTK: Tensor = flex_attention(q_BHTK, k_BHSK, v_BHSK, block_mask=attn_mask)
        return y_BHTK
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    if attn_mask is None and 1 < T < S:  # PyTorch's causal mask is for T = S; one sees all
        attn_mask = torch.ones((T, S), dtype=torch.bool, device=q_BHTK.device).tril(S - T)
    if attn_mask is not None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=attn_mask)
    # Lengths that torch.export leaves open compare to no plain bool.
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=bool(T == S))


def mask_mod(
    tokens_BS: Tensor, *, window: int | Tensor | None, eot_id: int | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention's predicate (row, head, query, key): true where the query attends.

    It attends to no position later than itself; of the others to all, or to the `window` newest,
    itself included; and, with `eot_id`, to those of its own document alone. A document begins with
    the end-of-text token; what stands before the first belongs to one whose beginning was cut off.
    A window that changes is a tensor without dimensions, so that compiled code is the same for all.
    Source: the speedrun's record 2024-11-19_FlexAttention
    (https://github.com/KellerJordan/modded-nanogpt).
    """
    document_BS = None if eot_id is None else (tokens_BS == eot_id).cumsum(dim=1)

    def attends(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mask = key <= query
        if window is not None:
            mask = mask & (query - key < window)
        if document_BS is not None:
            mask = mask & (document_BS[row, query] == document_BS[row, key])
        return mask

    return attends


def attention_mask(
    tokens_BS: Tensor, time: int, *, window: int | Tensor | None, eot_id: int | None
) -> Tensor:
    """Return the mask of the last `time` of S positions, pair by pair."""
    B, S = tokens_BS.shape
    key_S = torch.arange(S, device=tokens_BS.device)
    row_B111 = torch.arange(B if eot_id is not None else 1, device=tokens_BS.device)
    row_B111 = row_B111[:, None, None, None]
    head_111 = key_S.new_zeros((1, 1, 1))
    attends = mask_mod(tokens_BS, window=window, eot_id=eot_id)
    return attends(row_B111, head_111, key_S[-time:, None], key_S).view(len(row_B111), 1, time, S)


def attention_block_mask(
    tokens_BT: Tensor, *, window: int | Tensor | None, eot_id: int | None
) -> BlockMask:
    """Return the mask of all positions of new sequences, by blocks of 128 queries and 128 keys."""
    B, T = tokens_BT.shape
    attends = mask_mod(tokens_BT, window=window, eot_id=eot_id)
    rows = B if eot_id is not None else None
    return create_block_mask(attends, rows, None, T, T, device=tokens_BT.device)


def mean_attention_span(context: int, window: int | None, start: int | None = None) -> float:
    """Return how many positions a token of a full context attends to on average.

    With the diagonal halved these are T / 2, and w - w^2 / (2 T) with a window w; where it grows,
    the mean of that over all w from `start`.
    """
    end = window or context
    start = start or end
    mean, mean_square = (start + end) / 2, (start**2 + start * end + end**2) / 3
    return mean - mean_square / (2 * context)

"""Softmax attention, and which positions a token sees: the past, a window of it, its document.

What a window or a document is, is defined by `mask_mod` alone. As a mask of every pair of positions it
is the plain reference: all pairs are computed and the hidden ones left out, so a window saves
nothing. As a mask of blocks, for `train.attention flex`, what is hidden as a whole block is never
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
"""What queries see: [B or 1, 1, T, S], true where a query sees a key; or the same by blocks."""


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, visible: AttentionMask | None = None
) -> Tensor:
    """Attention with softmax scale 1/sqrt(K); the queries are the last T of S positions.

    `visible` is None for all that is not later. In that case either all positions are new (T = S),
    or one is (T = 1, generation): a single query sees every key and needs no mask. Blocks do not
    train on a CPU, and are fast in compiled code only.
    """
    if isinstance(visible, BlockMask):
        y_BHTK: Tensor = flex_attention(q_BHTK, k_BHSK, v_BHSK, block_mask=visible)
        return y_BHTK
    if visible is not None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=visible)
    time, seen = q_BHTK.shape[2], k_BHSK.shape[2]
    assert time in (1, seen), "several new positions behind a filled cache need a mask"
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=time == seen)


def mask_mod(
    tokens_BS: Tensor, *, window: int | Tensor | None, eot_id: int | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether, in a row and head, the token at one position (the query) sees that at another.

    None later than itself; of the `window` newest, itself included, or of all; and, with `eot_id`,
    those of its own document alone. A document begins with the end-of-text token; what stands
    before the first belongs to one whose beginning was cut off. A window that changes is a tensor
    without dimensions, so that compiled code is the same for all.
    Source: the speedrun's record 2024-11-19_FlexAttention
    (https://github.com/KellerJordan/modded-nanogpt).
    """
    document_BS = None if eot_id is None else (tokens_BS == eot_id).cumsum(dim=1)

    def of(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = key <= query
        if window is not None:
            visible = visible & (query - key < window)
        if document_BS is not None:
            visible = visible & (document_BS[row, query] == document_BS[row, key])
        return visible

    return of


def attention_mask(
    tokens_BS: Tensor, time: int, *, window: int | Tensor | None, eot_id: int | None
) -> Tensor:
    """What the last `time` of S positions see, pair by pair."""
    B, S = tokens_BS.shape
    key_S = torch.arange(S, device=tokens_BS.device)
    row_B111 = torch.arange(B if eot_id is not None else 1, device=tokens_BS.device)
    row_B111 = row_B111[:, None, None, None]
    head_111 = key_S.new_zeros((1, 1, 1))
    visible = mask_mod(tokens_BS, window=window, eot_id=eot_id)
    return visible(row_B111, head_111, key_S[-time:, None], key_S).view(len(row_B111), 1, time, S)


def attention_block_mask(
    tokens_BT: Tensor, *, window: int | Tensor | None, eot_id: int | None
) -> BlockMask:
    """The same of all positions of new sequences, by blocks of 128 queries and 128 keys."""
    B, T = tokens_BT.shape
    return create_block_mask(
        mask_mod(tokens_BT, window=window, eot_id=eot_id),
        B if eot_id is not None else None,
        None,
        T,
        T,
        device=tokens_BT.device,
    )


def mean_visible(context: int, window: int | None, start: int | None = None) -> float:
    """Positions that a token of a full context sees on average, halving the diagonal: T / 2, and
    w - w^2 / (2 T) with a window w; the mean of that over all w from `start`, where it grows."""
    end = window or context
    start = start or end
    mean, mean_square = (start + end) / 2, (start**2 + start * end + end**2) / 3
    return mean - mean_square / (2 * context)

"""Softmax attention, and which positions a token sees: the past, a window of it, its document.

The masked form is the plain reference: it computes every pair of positions and leaves out what the
mask hides, so a window saves nothing here. What a window or a document is, is defined here alone.

Shapes: B batch, H heads, T new positions (queries), S all positions so far (keys), K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, visible_BHTS: Tensor | None = None
) -> Tensor:
    """Attention with softmax scale 1/sqrt(K); the queries are the last T of S positions.

    `visible` is true where a query sees a key, or None for all that is not later. In that case
    either all positions are new (T = S), or one is (T = 1, generation): a single query sees every
    key and needs no mask.
    """
    if visible_BHTS is not None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=visible_BHTS)
    time, seen = q_BHTK.shape[2], k_BHSK.shape[2]
    assert time in (1, seen), "several new positions behind a filled cache need a mask"
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=time == seen)


def visible_positions(
    tokens_BS: Tensor, time: int, *, window: int | Tensor | None, eot_id: int | None
) -> Tensor:
    """Which of S positions the last `time` of them see, [B or 1, 1, T, S], for `attend`.

    None later than itself; of the `window` newest, itself included, or of all; and, with `eot_id`,
    those of its own document alone. A document begins with the end-of-text token; what stands
    before the first belongs to one whose beginning was cut off. A window that changes is a tensor
    without dimensions, so that compiled code is the same for all.
    Source: the speedrun's record 2024-11-19_FlexAttention
    (https://github.com/KellerJordan/modded-nanogpt).
    """
    key_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    query_T1 = key_S[-time:, None]
    visible_BHTS = (key_S <= query_T1)[None, None]
    if window is not None:
        visible_BHTS = visible_BHTS & (query_T1 - key_S < window)
    if eot_id is not None:
        document_BS = (tokens_BS == eot_id).cumsum(dim=1)
        same_BTS = document_BS[:, -time:, None] == document_BS[:, None, :]
        visible_BHTS = visible_BHTS & same_BTS[:, None]
    return visible_BHTS


def mean_visible(context: int, window: int | None, start: int | None = None) -> float:
    """Positions that a token of a full context sees on average, halving the diagonal: T / 2, and
    w - w^2 / (2 T) with a window w; the mean of that over all w from `start`, where it grows."""
    end = window or context
    start = start or end
    mean, mean_square = (start + end) / 2, (start**2 + start * end + end**2) / 3
    return mean - mean_square / (2 * context)

"""Ways around the blocks: value embeddings, the embedded token again, U-net skips.

Each carries what a block would otherwise have to pass on, and has a learned scalar for how much of
it arrives. All are the speedrun's (https://github.com/KellerJordan/modded-nanogpt, dates below are
folders of records/track_1_short), and `model.value_embeddings`, `model.x0_skip` and
`model.unet_skips` switch them on.

Shapes: B batch, T time, D model width, V vocabulary, E value tables.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintic.config import ModelConfig


class ScalarMix(nn.Module):
    """A sum of tensors, each times a learned scalar that starts where it is told to."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))

    def forward(self, *tensors: Tensor) -> Tensor:
        # A scalar times a bfloat16 tensor is computed in float32 and rounded once.
        mixed = self.weight[0] * tensors[0]
        for w, x in zip(self.weight[1:], tensors[1:], strict=True):
            mixed = mixed + w * x
        return mixed


def x0_skip() -> ScalarMix:
    """x = a x + b x0 at the entry of a block, x0 being the first block's input. Starts as x.

    Source: record 2024-11-06_ShortcutsTweaks.
    """
    return ScalarMix(1.0, 0.0)


def value_mix() -> ScalarMix:
    """v = a v + b e in attention, e being a value embedding of the token. Starts as the mean of
    both, as in record 2024-12-08_UNetValueEmbedsTweaks."""
    return ScalarMix(0.5, 0.5)


def unet_skips(config: ModelConfig) -> nn.ModuleList:
    """The scalars of the skips, one for each layer of the first half, which start at one.

    What the last of these layers gives is added to the input of the first layer of the second
    half, and so on outwards, down to the first layer's, which the last layer gets. Of an odd number
    of layers the middle one has no part in it.
    Source: record 2024-11-10_UNetDoubleLr.
    """
    return nn.ModuleList(
        ScalarMix(1.0) for _ in range(config.layers // 2 if config.unet_skips else 0)
    )


def value_table(config: ModelConfig, layer: int) -> int | None:
    """Which value embedding a layer has, if any: E tables serve the first E layers and, in the
    same order, the last E, as in record 2024-12-17_SparsifyEmbeds."""
    tables, left = config.value_embeddings, config.layers - layer
    if layer < tables:
        return layer
    return tables - left if left <= tables else None


class ValueEmbeddings(nn.Module):
    """E vectors for each token, [V, E D], that go to the attention values of some layers.

    The table is drawn as the embedding is and multiplied by sqrt(D) where it is read: so its
    entries are as large as the values that they are mixed with, U(-1, 1) at the start against a
    root mean square of sqrt(1/3) of both, and one learning rate fits both embeddings, which have
    the same one in the records. Source: record 2024-12-04_ValueEmbed, there with a table for every
    layer.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(vocab_size, config.value_embeddings * config.width))

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
        """For each layer its embedding of the tokens, [B, T, D], or None."""
        e_BTED = F.embedding(tokens_BT, self.weight) * math.sqrt(self.config.width)
        each = e_BTED.to(dtype).chunk(self.config.value_embeddings, dim=-1)
        tables = (value_table(self.config, layer) for layer in range(self.config.layers))
        return [None if table is None else each[table] for table in tables]

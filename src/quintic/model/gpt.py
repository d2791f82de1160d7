"""The modernised GPT, exactly as modded-nanogpt's record of 2024-10-14 has it.

Rotary embeddings, RMSNorm without parameters, normalised queries and keys, squared ReLU, no
biases, output projections that start at zero, the head tied to the embedding.
Source: https://github.com/KellerJordan/modded-nanogpt

Each of these can be switched off by itself for an ablation (`positions`, `norm`, `activation`,
`init` and `qk_norm` of the config). A switch chooses a module or function where the model is
built, so that the forward pass reads the same either way; the choices stand first. Later
techniques of the speedrun are off unless asked for: `skips.py` has those that lead around blocks,
`previous_token.py` what a position is given of the one before, and `attention.py` the masks.

Shapes: B batch, T time, D model width, H heads, K head width, F MLP width (4 D), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintic.config import ModelConfig
from quintic.model.attention import AttentionMask, attend, attention_block_mask, attention_mask
from quintic.model.base import Head, KVCache, LanguageModel
from quintic.model.linear import Linear
from quintic.model.loss import CrossEntropy
from quintic.model.previous_token import BigramEmbedding, Previous, Smear, needs_previous
from quintic.model.skips import ValueEmbeddings, unet_skips, value_mix, value_table, x0_skip
from quintic.model.token_tree import TokenTree

ROTARY_BASE = 10_000.0

rms_norm = partial(nn.RMSNorm, elementwise_affine=False)
"""x / rms(x) over the last axis, without parameters; eps is that of the precision of x."""

NORMS: dict[str, Callable[[int], nn.Module]] = {"rmsnorm": rms_norm, "layernorm": nn.LayerNorm}
"""The values of `model.norm`; layernorm is GPT-2's, with a gain and a bias for each channel."""


def squared_relu(x: Tensor) -> Tensor:
    """Return max(x, 0)^2 (https://arxiv.org/abs/2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": squared_relu,
    "gelu": partial(F.gelu, approximate="tanh"),
}
"""The values of `model.activation`; gelu in its tanh form is GPT-2's."""


class Rotary(nn.Module):
    """Rotary position embedding, half-split (https://arxiv.org/abs/2104.09864).

    The head's two halves are the coordinates of K/2 planes; position t rotates plane i by
    t / base^(2i/K): y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos. The tables are float32 (float64
    for float64 models) whatever the compute precision: bfloat16 has 8 bits for an angle's sine,
    too few to tell neighbouring positions apart.
    """

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        half = config.head_width // 2
        frequency_K = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
        angle_TK = torch.outer(torch.arange(config.context, dtype=torch.float64), frequency_K)
        tables = torch.promote_types(compute_dtype, torch.float32)
        self.register_buffer("cos_TK", angle_TK.cos().to(tables), persistent=False)
        self.register_buffer("sin_TK", angle_TK.sin().to(tables), persistent=False)

    def add(self, x_BTD: Tensor, at: slice | Tensor) -> Tensor:
        """Return the embedded tokens as they are: these positions enter at the queries and keys."""
        return x_BTD

    def rotate(self, x_BHTK: Tensor, at: slice | Tensor) -> Tensor:
        """Rotate queries or keys at these positions, all rows' or [B, T], in the precision they
        have."""
        cos, sin = self.cos_TK[at].unsqueeze(-3), self.sin_TK[at].unsqueeze(-3)
        x1, x2 = x_BHTK.chunk(2, dim=-1)
        y = torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)
        return y.to(x_BHTK.dtype)


class LearnedPositions(nn.Module):
    """GPT-2's positions: a vector for each, added to the token's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.context, config.width))

    def add(self, x_BTD: Tensor, at: slice | Tensor) -> Tensor:
        """Add their vectors to embedded tokens at these positions, all rows' or [B, T]."""
        return x_BTD + self.weight[at]

    def rotate(self, x_BHTK: Tensor, at: slice | Tensor) -> Tensor:
        """Return queries or keys as they are: these positions are in the residual stream."""
        return x_BHTK


Positions = Rotary | LearnedPositions
"""Positions can enter at two places: `add` at the embedding, `rotate` at queries and keys."""


class ForwardContext(NamedTuple):
    """The arguments that all blocks of a forward pass share."""

    positions: Positions
    at: slice | Tensor
    """The positions of the tokens, those of all rows or [B, T]."""
    cache: KVCache | None
    dtype: torch.dtype
    """The precision of matrix products."""
    attn_mask: AttentionMask | None
    """The mask of all layers; None where attention is causal and no more."""
    previous: Previous | None
    """What the position before has, where a switch gives it to a position."""
    x0_BTD: Tensor | None
    """The first block's input, where `model.x0_skip` is on."""


class Attention(nn.Module):
    """Causal self-attention with normalised queries and keys."""

    attend = staticmethod(attend)

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = config.heads, layer
        self.qk_norm = rms_norm(config.head_width) if config.qk_norm else nn.Identity()
        self.q = Linear(config.width, config.width, bias=False)
        self.k = Linear(config.width, config.width, bias=False)
        self.v = Linear(config.width, config.width, bias=False)
        self.o = Linear(config.width, config.width, bias=False)
        self.key_smear = Smear(config.width) if config.key_smear else None
        if value_table(config, layer) is not None:
            self.value_mix = value_mix()

    def split(self, x_BTD: Tensor) -> Tensor:
        """Return one part of the width for each head, [B, H, T, K]."""
        x_BHTK: Tensor = x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x_BHTK

    def qkv(self, x_BTD: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys with their norm and positions, and values, [B, H, T, K] each."""
        q_BTD, k_BTD, v_BTD = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        if self.key_smear is not None:
            assert ctx.previous is not None, "needs_previous sees to it"
            k_BTD = self.key_smear(k_BTD, ctx.previous.vectors(k_BTD, f"keys of {self.layer}"))
        q_BHTK, k_BHTK, v_BHTK = (self.split(y_BTD) for y_BTD in (q_BTD, k_BTD, v_BTD))
        q_BHTK, k_BHTK = (ctx.positions.rotate(self.qk_norm(x), ctx.at) for x in (q_BHTK, k_BHTK))
        return q_BHTK, k_BHTK, v_BHTK

    def forward(self, x_BTD: Tensor, value_BTD: Tensor | None, ctx: ForwardContext) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD, ctx)
        if value_BTD is not None:
            v_BHTK = self.value_mix(v_BHTK, self.split(value_BTD))
        if ctx.cache is not None:
            k_BHTK, v_BHTK = ctx.cache.append(self.layer, k_BHTK, v_BHTK)
        y_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK, ctx.attn_mask)
        y: Tensor = self.o(y_BHTK.transpose(1, 2).flatten(-2))
        return y


class MLP(nn.Module):
    """A linear layer from D to 4 D, the activation, a linear layer back to D."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(config.width, 4 * config.width, bias=False)
        self.down = Linear(4 * config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.activation(self.up(x_BTD))
        y: Tensor = self.down(h_BTF)
        return y


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.shortcut = x0_skip() if config.x0_skip else None
        self.attention_norm = NORMS[config.norm](config.width)
        self.attention = Attention(config, layer)
        self.mlp_norm = NORMS[config.norm](config.width)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, value_BTD: Tensor | None, ctx: ForwardContext) -> Tensor:
        if self.shortcut is not None:
            x_BTD = self.shortcut(x_BTD, ctx.x0_BTD)
        normed_BTD = self.attention_norm(x_BTD).to(ctx.dtype)
        x_BTD = x_BTD + self.attention(normed_BTD, value_BTD, ctx)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD).to(ctx.dtype))
        return x_BTD


class GPT(LanguageModel):
    """The whole decoder, tokens_BT -> logits_BTV.

    Weights are drawn from the global generator: seed it first.
    """

    def __init__(
        self, config: ModelConfig, compute_dtype: torch.dtype, cross_entropy: CrossEntropy
    ) -> None:
        super().__init__(config, compute_dtype, cross_entropy)
        self.embed = nn.Embedding(self.vocab_size, config.width)
        self.positions = (
            Rotary(config, compute_dtype)
            if config.positions == "rotary"
            else LearnedPositions(config)
        )
        if config.window_start is not None:
            assert config.window is not None, "the config has checked it"
            self.register_buffer("window", torch.tensor(config.window), persistent=False)
        self.embed_norm = rms_norm(config.width) if config.embed_norm else nn.Identity()
        if config.token_smear:
            self.smear = Smear(config.width)
        if config.bigram_embeddings:
            self.bigram_embed = BigramEmbedding(config.bigram_embeddings, config.width)
        if config.value_embeddings:
            self.value_embed = ValueEmbeddings(config, self.vocab_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.skips = unet_skips(config)
        self.final_norm = NORMS[config.norm](config.width)
        if not config.tied_head:
            self.head = Head(self.vocab_size, config.width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), a Linear's default, except as follows.

        The tied matrix is a Linear's weight as well, so it gets a Linear's initialisation and not
        an embedding's normal(0, 1). Learned positions get the same, since GPT-2 draws both alike,
        and so do value tables.
        The two output projections of a block are zero, which makes the block the identity at
        step 0 (as in muP, https://arxiv.org/abs/2203.03466). With init `classic` they are divided
        by sqrt(2 layers) instead, GPT-2's factor, which keeps the variance that 2 layers of them
        add to the residual stream at one projection's. GPT-2's factor, but not its normal(0, 0.02):
        that is this default (0.0208) at its own width of 768 and far below it at a small one.
        """
        bound = 1 / math.sqrt(self.config.width)
        nn.init.uniform_(self.embed.weight, -bound, bound)
        for module in self.layers.modules():
            if isinstance(module, Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound)
        for block in self.layers:
            assert isinstance(block, Block)
            for projection in (block.attention.o, block.mlp.down):
                if self.config.init == "zero":
                    nn.init.zeros_(projection.weight)
                else:
                    projection.weight /= math.sqrt(2 * self.config.layers)
        # Last, so that a seed gives all other weights the same values with every switch.
        bound = 1 / math.sqrt(self.config.width)
        if isinstance(self.positions, LearnedPositions):
            nn.init.uniform_(self.positions.weight, -bound, bound)
        if self.config.value_embeddings:
            nn.init.uniform_(self.value_embed.weight, -bound, bound)

    def attn_mask(
        self, tokens_BT: Tensor, cache: KVCache | None, tree: TokenTree | None = None
    ) -> AttentionMask | None:
        """Return the mask of all layers, where there is more to mask than later positions."""
        config = self.config
        assert config.eot_id is not None or not config.document_mask, "resolve_eot fills it in"
        window = config.window if config.window_start is None else self.window
        if tree is not None:
            return tree.attention_mask(window=window, eot_id=config.eot_id)
        if self.block_masks and cache is None:
            return attention_block_mask(tokens_BT, window=window, eot_id=config.eot_id)
        if config.window is None and not config.document_mask:
            return None
        tokens_BS = tokens_BT if cache is None else cache.append_tokens(tokens_BT)
        return attention_mask(tokens_BS, tokens_BT.shape[1], window=window, eot_id=config.eot_id)

    def features(
        self, tokens_BT: Tensor, cache: KVCache | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        config, start = self.config, 0 if cache is None else cache.length
        at = slice(start, start + tokens_BT.shape[1]) if tree is None else tree.depth_BT
        x_BTD = self.embed_norm(self.positions.add(self.embed(tokens_BT), at))
        previous = Previous(config, tokens_BT, cache, tree) if needs_previous(config) else None
        if previous is not None and config.token_smear:
            x_BTD = self.smear(x_BTD, previous.vectors(x_BTD, "embedding"))
        if previous is not None and config.bigram_embeddings:
            x_BTD = x_BTD + self.bigram_embed(tokens_BT, previous.tokens(tokens_BT))
        ctx = ForwardContext(
            positions=self.positions,
            at=at,
            cache=cache,
            dtype=self.compute_dtype,
            attn_mask=self.attn_mask(tokens_BT, cache, tree),
            previous=previous,
            x0_BTD=x_BTD if config.x0_skip else None,
        )
        values: list[Tensor | None] = [None] * config.layers
        if config.value_embeddings:
            values = self.value_embed(tokens_BT, self.compute_dtype)
        skipped: list[Tensor] = []  # outputs of the first half that the second has yet to get
        for layer, block in enumerate(self.layers):
            opposite = config.layers - 1 - layer
            if opposite < len(self.skips):
                x_BTD = x_BTD + self.skips[opposite](skipped.pop())
            x_BTD = block(x_BTD, values[layer], ctx)
            if layer < len(self.skips):
                skipped.append(x_BTD)
        x: Tensor = self.final_norm(x_BTD).to(self.compute_dtype)
        return x

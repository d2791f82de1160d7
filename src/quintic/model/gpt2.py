"""The classic GPT-2, the baseline: learned positions, LayerNorm, GELU, biases, tied head.

It is the model that llm.c trains (https://github.com/karpathy/llm.c), after Radford et al.,
"Language Models are Unsupervised Multitask Learners" (2019). Queries, keys and values are separate
matrices, so that either optimizer treats them as in `gpt.py`; stacked, they are GPT-2's `c_attn`.

Shapes: B batch, T time, D model width, H heads, K head width, F MLP width (4 D), V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintic.config import ModelConfig
from quintic.model.attention import attend
from quintic.model.base import KVCache, LanguageModel
from quintic.model.linear import Linear
from quintic.model.loss import CrossEntropy
from quintic.model.token_tree import TokenTree


class Attention(nn.Module):
    """Causal self-attention with biases."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = config.heads, layer
        self.q = Linear(config.width, config.width)
        self.k = Linear(config.width, config.width)
        self.v = Linear(config.width, config.width)
        self.o = Linear(config.width, config.width)

    def qkv(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, [B, H, T, K] each."""
        q_BHTK, k_BHTK, v_BHTK = (
            linear(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        return q_BHTK, k_BHTK, v_BHTK

    def forward(
        self, x_BTD: Tensor, cache: KVCache | None, attn_mask: Tensor | None = None
    ) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD)
        if cache is not None:
            k_BHTK, v_BHTK = cache.append(self.layer, k_BHTK, v_BHTK)
        y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, attn_mask)
        y: Tensor = self.o(y_BHTK.transpose(1, 2).flatten(-2))
        return y


class MLP(nn.Module):
    """D to 4 D, GELU in its tanh form, back to D."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, 4 * config.width)
        self.down = Linear(4 * config.width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x_BTD), approximate="tanh"))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with GPT-2's LayerNorm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BTD: Tensor,
        cache: KVCache | None,
        dtype: torch.dtype,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD).to(dtype), cache, attn_mask)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD).to(dtype))
        return x_BTD


class GPT2(LanguageModel):
    """The classic decoder; as in `GPT`, weights are drawn from the global generator."""

    def __init__(
        self, config: ModelConfig, compute_dtype: torch.dtype, cross_entropy: CrossEntropy
    ) -> None:
        super().__init__(config, compute_dtype, cross_entropy)
        self.embed = nn.Embedding(self.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights from normal(0, 0.02) and set biases to zero.

        The residual stream adds up 2 layers of output projections; they are divided by
        sqrt(2 layers), which keeps its variance at one projection's.
        """
        for module in self.modules():
            if isinstance(module, Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.02)
            if isinstance(module, Linear):
                nn.init.zeros_(module.bias)
        for block in self.layers:
            assert isinstance(block, Block)
            for projection in (block.attention.o, block.mlp.down):
                projection.weight /= math.sqrt(2 * self.config.layers)

    def features(
        self, tokens_BT: Tensor, cache: KVCache | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + tokens_BT.shape[1], device=tokens_BT.device)
        attn_mask = None
        if tree is not None:
            positions = tree.depth_BT
            attn_mask = tree.attention_mask(window=None, eot_id=None)
        x_BTD = self.embed(tokens_BT) + self.positions(positions)
        for block in self.layers:
            x_BTD = block(x_BTD, cache, self.compute_dtype, attn_mask)
        x: Tensor = self.final_norm(x_BTD).to(self.compute_dtype)
        return x

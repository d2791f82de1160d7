"""The model with the parts of `quintic.kernels` for a CPU in the place of its own, for
`train.cpu_kernels fused`.

Weights, names and results stay what they are, the latter to rounding. What a part is not made for
is computed by the model's own: generation with a cache, a tree of tokens, masks, an ablation that
has another norm, activation or positions.

Shapes: B batch, T time, D model width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from quintic.kernels import cpu_block
from quintic.model.attention import AttentionMask, attend
from quintic.model.base import LanguageModel
from quintic.model.gpt import MLP, Attention, ForwardContext, Rotary, squared_relu
from quintic.model.loss import chunked_cross_entropy, in_cache_cross_entropy


def fuse(model: LanguageModel, *, attention: bool = True) -> None:
    """Let the model compute by the kernels for a CPU; without `attention` that stays PyTorch's, for
    a kernel that was asked for by name."""
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = cpu_block.rms_norm  # type: ignore[method-assign]
        elif isinstance(module, MLP) and module.activation is squared_relu:
            module.forward = partial(_mlp, module)  # type: ignore[method-assign]
        elif isinstance(module, Attention):
            module.qkv = partial(_qkv, module)  # type: ignore[method-assign]
            if attention:
                module.attend = _attend
    if model.cross_entropy is chunked_cross_entropy:
        model.cross_entropy = in_cache_cross_entropy


@contextmanager
def unfused(model: LanguageModel) -> Iterator[None]:
    """Let the model compute by its own parts while open, for who looks at what they are given."""
    fused = [
        (module, name, vars(module).pop(name))
        for module in model.modules()
        if isinstance(module, nn.RMSNorm | MLP | Attention)
        for name in ("forward", "qkv", "attend")
        if name in vars(module)
    ]
    try:
        yield
    finally:
        for module, name, part in fused:
            setattr(module, name, part)


def _mlp(mlp: MLP, x_BTD: Tensor) -> Tensor:
    return cpu_block.squared_relu_mlp(x_BTD, mlp.up.weight, mlp.down.weight)


def _qkv(attention: Attention, x_BTD: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
    normed = isinstance(attention.qk_norm, nn.RMSNorm)
    if not (isinstance(ctx.positions, Rotary) and isinstance(ctx.at, slice) and normed):
        return Attention.qkv(attention, x_BTD, ctx)
    if ctx.cache is not None:  # which may hold keys in the model's own order
        return Attention.qkv(attention, x_BTD, ctx)
    rotation = cpu_block.rotation(ctx.positions.cos_TK[ctx.at], ctx.positions.sin_TK[ctx.at])
    q, k, v = (linear.weight for linear in (attention.q, attention.k, attention.v))
    smear = attention.key_smear
    if smear is None:
        return cpu_block.rotated_qkv(x_BTD, q, k, v, rotation, attention.heads)
    assert ctx.previous is not None, "needs_previous sees to it"
    if ctx.previous.begins_BT is not None:  # then not every position has the one before
        return Attention.qkv(attention, x_BTD, ctx)
    weights = smear.own, smear.before
    return cpu_block.rotated_qkv(x_BTD, q, k, v, rotation, attention.heads, *weights)


def _attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attn_mask: AttentionMask | None = None
) -> Tensor:
    if attn_mask is not None or q_BHTK.shape != k_BHSK.shape:
        return attend(q_BHTK, k_BHSK, v_BHSK, attn_mask)
    return cpu_block.causal_attention(q_BHTK, k_BHSK, v_BHSK)

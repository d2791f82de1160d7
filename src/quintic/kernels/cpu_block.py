"""The parts of a block on a CPU, forward and backward by hand, for `train.cpu_kernels fused`.

Autograd composes a backward pass of one operator for each of the forward pass, and each of them
reads and writes its whole input: on a CPU that takes longer than the products of a small model.
Here the passes are few, in place where nobody else sees it, and factors are folded into a product
that there is anyway. All of it is plain PyTorch, float32 or float64, and equals the modules of
`quintic.model.gpt` to rounding (`tests/kernels/test_cpu_block.py`).

Shapes: B batch, T time, D model width, H heads, K head width, F MLP width, N = B T tokens, Q
queries of a block, S keys that they may see, r = K / 2 planes that are rotated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERIES = 128
"""Queries of one product of attention: fewer leave out more of what is masked, and are slower."""

CHUNK_ELEMENTS = 2**18
"""Elements of a chunk of the MLP's hidden layer: 1 MiB in float32, which is 512 tokens of a width
of 128, as fast as 256 and faster than all at once."""

LONGEST = 512
"""Positions up to which `causal_attention` keeps its probabilities; from there on PyTorch's own,
which computes them again, takes less memory and as little time."""


def rms_norm(x: Tensor) -> Tensor:
    """Return x / rms(x) over the last axis, as `nn.RMSNorm` without parameters."""
    y: Tensor = _RMSNorm.apply(x)
    return y


def _inverse_rms(x: Tensor) -> Tensor:
    """Return 1 / rms(x) over the last axis, [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    mean_square = norm.square_().div_(x.shape[-1])
    scale: Tensor = mean_square.add_(torch.finfo(x.dtype).eps).rsqrt_()
    return scale


def _rms_norm_gradient(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient by x of y = scale x: scale (grad - y mean(grad y))."""
    dot = torch.linalg.vecdot(grad, y).unsqueeze(-1)
    return torch.addcmul(grad, y, dot, value=-1 / y.shape[-1]).mul_(scale)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _inverse_rms(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _rms_norm_gradient(grad, *ctx.saved_tensors)


def squared_relu_mlp(x_BTD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """Return max(x up^T, 0)^2 down^T."""
    y_ND: Tensor = _SquaredReLUMLP.apply(x_BTD.flatten(0, -2), up_FD, down_DF)
    return y_ND.view(x_BTD.shape)


class _SquaredReLUMLP(torch.autograd.Function):
    """A chunk of tokens at a time, whose [C, F] matrices stay in the cache; one of them is kept."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        size = max(1, CHUNK_ELEMENTS // len(up_FD))
        relu_NF, y_ND = x_ND.new_empty(len(x_ND), len(up_FD)), torch.empty_like(x_ND)
        room_CF = x_ND.new_empty(min(size, len(x_ND)), len(up_FD))
        for x, relu, y in zip(*(t.split(size) for t in (x_ND, relu_NF, y_ND)), strict=True):
            torch.mm(x, up_FD.T, out=relu).relu_()
            torch.mm(torch.mul(relu, relu, out=room_CF[: len(x)]), down_DF.T, out=y)
        ctx.save_for_backward(x_ND, up_FD, down_DF, relu_NF)
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, ...]:
        x_ND, up_FD, down_DF, relu_NF = ctx.saved_tensors
        size = max(1, CHUNK_ELEMENTS // len(up_FD))
        room_CF = x_ND.new_empty(min(size, len(x_ND)), len(up_FD))
        grad_x_ND = torch.empty_like(x_ND)
        # Transposed, so that the product writes rows of F, which is faster.
        grad_up_DF, grad_down_DF = torch.empty_like(down_DF), torch.empty_like(down_DF)
        beta = 0.0  # the first chunk writes what the others add to
        chunks = (t.split(size) for t in (x_ND, relu_NF, grad_ND, grad_x_ND))
        for x, relu, grad, grad_x in zip(*chunks, strict=True):
            h = torch.mul(relu, relu, out=room_CF[: len(x)])
            torch.addmm(grad_down_DF, grad.T, h, beta=beta, out=grad_down_DF)
            # The slope of max(x, 0)^2 is 2 max(x, 0); alpha of the products is the 2, exactly.
            half = torch.mm(grad, down_DF, out=room_CF[: len(x)]).mul_(relu)
            torch.addmm(grad_up_DF, x.T, half, beta=beta, alpha=2, out=grad_up_DF)
            torch.addmm(grad_x, half, up_FD, beta=0, alpha=2, out=grad_x)
            beta = 1.0
        return grad_x_ND, grad_up_DF.T.contiguous(), grad_down_DF


def rotation(cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Return the rotation of each plane at each position, [T, r], a complex number: `Rotary`'s
    y1 + i y2 = (x1 + i x2) (cos - i sin)."""
    return torch.complex(cos_TK, -sin_TK)


def rotated_qkv(
    x_BTD: Tensor,
    q_DD: Tensor,
    k_DD: Tensor,
    v_DD: Tensor,
    rotation_Tr: Tensor,
    heads: int,
    own_D: Tensor | None = None,
    before_D: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys, normalised per head and rotated, and values, [B, H, T, K] each.

    With `own_D` and `before_D` a key is first own times itself plus before times the key of the
    position before it (`model.key_smear`).

    One product makes all three. The two coordinates of a plane, which `Rotary` has in the two
    halves of a head, lie beside each other here, so that a rotation is the product of two complex
    numbers: queries and keys have the same order, and all that is ever made of them is the product
    of one with the other.
    """
    q, k, v = _RotatedQKV.apply(x_BTD, q_DD, k_DD, v_DD, rotation_Tr, heads, own_D, before_D)
    return q, k, v


class _RotatedQKV(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        q_DD: Tensor,
        k_DD: Tensor,
        v_DD: Tensor,
        rotation_Tr: Tensor,
        heads: int,
        own_D: Tensor | None,
        before_D: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_ND = x_BTD.flatten(0, -2)
        weight = torch.cat((planes_beside(q_DD, heads), planes_beside(k_DD, heads), v_DD))
        qkv_BT3HK = torch.mm(x_ND, weight.T).view(*x_BTD.shape[:2], 3, heads, -1)
        smeared: tuple[Tensor, ...] = ()
        if own_D is not None and before_D is not None:
            own_HK, before_HK = (
                planes_beside(w[:, None], heads).view(heads, -1) for w in (own_D, before_D)
            )
            key_BTHK = qkv_BT3HK[:, :, 1].clone()
            torch.mul(key_BTHK, own_HK, out=qkv_BT3HK[:, :, 1])
            qkv_BT3HK[:, 1:, 1].addcmul_(key_BTHK[:, :-1], before_HK)
            smeared = key_BTHK, own_HK, before_HK
        qk_2BHTK = qkv_BT3HK[:, :, :2].permute(2, 0, 3, 1, 4)
        y_2BHTK = torch.empty(qk_2BHTK.shape, dtype=x_BTD.dtype)
        torch.mul(as_complex(qk_2BHTK), rotation_Tr, out=as_complex(y_2BHTK))
        scale_2BHT1 = _inverse_rms(y_2BHTK)
        y_2BHTK.mul_(scale_2BHT1)
        ctx.save_for_backward(x_ND, weight, rotation_Tr, y_2BHTK, scale_2BHT1, *smeared)
        return y_2BHTK[0], y_2BHTK[1], qkv_BT3HK[:, :, 2].transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_BHTK: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight, rotation_Tr, y_2BHTK, scale_2BHT1, *smeared = ctx.saved_tensors
        _, B, H, T, K = y_2BHTK.shape
        grad_BT3HK = x_ND.new_empty(B, T, 3, H, K)
        grad_3BHTK, back_Tr = grad_BT3HK.permute(2, 0, 3, 1, 4), rotation_Tr.conj_physical()
        # A rotation changes no scalar product, so the norm's gradient can be taken behind it.
        for i in range(2):
            grad_BHTK = _rms_norm_gradient(grads_BHTK[i], y_2BHTK[i], scale_2BHT1[i])
            torch.mul(as_complex(grad_BHTK), back_Tr, out=as_complex(grad_3BHTK[i]))
        grad_3BHTK[2].copy_(grads_BHTK[2])
        grad_own_D: Tensor | None = None
        grad_before_D: Tensor | None = None
        if smeared:
            key_BTHK, own_HK, before_HK = smeared
            grad_BTHK = grad_BT3HK[:, :, 1].clone()
            grad_own_HK = (grad_BTHK * key_BTHK).sum((0, 1))
            later = grad_BTHK[:, 1:]
            grad_before_HK = (later * key_BTHK[:, :-1]).sum((0, 1))
            grad_own_D, grad_before_D = (
                _planes_apart(g.view(-1, 1), H).flatten() for g in (grad_own_HK, grad_before_HK)
            )
            torch.mul(grad_BTHK, own_HK, out=grad_BT3HK[:, :, 1])
            grad_BT3HK[:, :-1, 1].addcmul_(later, before_HK)
        grad_NC = grad_BT3HK.view(B * T, -1)
        grad_q, grad_k, grad_v = torch.mm(grad_NC.T, x_ND).chunk(3)
        grad_x_BTD = torch.mm(grad_NC, weight).view(B, T, -1)
        grads = _planes_apart(grad_q, H), _planes_apart(grad_k, H), grad_v
        return grad_x_BTD, *grads, None, None, grad_own_D, grad_before_D


def planes_beside(weight_DX: Tensor, heads: int) -> Tensor:
    """Return the rows of queries or keys in an order with the coordinates of a plane together."""
    return weight_DX.view(heads, 2, -1, weight_DX.shape[1]).transpose(1, 2).reshape(weight_DX.shape)


def _planes_apart(weight_DX: Tensor, heads: int) -> Tensor:
    """Return the rows in their own order again."""
    return weight_DX.view(heads, -1, 2, weight_DX.shape[1]).transpose(1, 2).reshape(weight_DX.shape)


def as_complex(x: Tensor) -> Tensor:
    """Return neighbours of the last axis as complex numbers, in the same memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Return causal attention with softmax scale 1/sqrt(K), [B, H, T, K].

    A block of queries is multiplied by the keys up to its own last one: of T = 256 positions three
    quarters of all pairs, where one product of all would compute twice what is kept.
    """
    if q_BHTK.shape[2] > LONGEST:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    y_BHTK: Tensor = _CausalAttention.apply(q_BHTK, k_BHTK, v_BHTK)
    return y_BHTK


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        B, H, T, K = q_BHTK.shape
        q, k, v = (x.flatten(0, 1) for x in (q_BHTK, k_BHTK, v_BHTK))
        later_QQ = q.new_full((min(QUERIES, T), min(QUERIES, T)), -math.inf).triu_(1)
        y_BTHK = q.new_empty(B, T, H, K)
        probabilities = []
        for rows in _blocks(T):
            p = torch.bmm(q[:, rows], k[:, : rows.stop].mT).mul_(K**-0.5)
            here = rows.stop - rows.start
            p[:, :, rows].add_(later_QQ[:here, :here])
            torch.softmax(p, -1, out=p)
            y = torch.bmm(p, v[:, : rows.stop])
            y_BTHK[:, rows] = y.view(B, H, here, K).transpose(1, 2)
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        return y_BTHK.transpose(1, 2)  # in memory as the next product wants it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTK: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *probabilities = ctx.saved_tensors
        B, H, T, K = grad_BHTK.shape
        grad = grad_BHTK.contiguous().flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        # The last block first, whose keys are all: it writes what the others add to.
        for rows, p in reversed([*zip(_blocks(T), probabilities, strict=True)]):
            keys, beta = slice(rows.stop), 0.0 if rows.stop == T else 1.0
            grad_p = torch.bmm(grad[:, rows], v[:, keys].mT)
            torch._softmax_backward_data(grad_p, p, -1, p.dtype, grad_input=grad_p)
            grad_q[:, rows] = torch.bmm(grad_p, k[:, keys])
            grad_k[:, keys].baddbmm_(grad_p.mT, q[:, rows], beta=beta)
            grad_v[:, keys].baddbmm_(p.mT, grad[:, rows], beta=beta)
        grad_q.mul_(K**-0.5)
        grad_k.mul_(K**-0.5)
        shape = B, H, T, K
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape)


def _blocks(time: int) -> list[slice]:
    return [slice(start, min(start + QUERIES, time)) for start in range(0, time, QUERIES)]

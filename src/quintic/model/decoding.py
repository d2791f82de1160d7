"""A model's parts as generation on a CPU uses them, which is given few new tokens at a time.

One new token reads every weight for a row of numbers. Between two products nothing is in the
processor's cache any more, and every operator costs 10 to 20 microseconds, where it takes 2 when it
is repeated: so queries, keys and values are one product here, a norm and a rotation few operators.

For several texts `F.linear` in float32 is MKL's product. It reads a matrix for one row at memory's
speed, but for 4 to 16 rows takes 1.3 to 2.3 times as long as oneDNN's, which wants the matrix in
blocks of its own and takes longer for one row. docs/generate.md has the figures.

Shapes: B texts, T new positions, D model width, H heads, K head width, r = K / 2 planes that are
rotated, N rows of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quintic.kernels import cpu_block
from quintic.model import gpt, gpt2
from quintic.model.base import LanguageModel
from quintic.model.fused import unfused
from quintic.model.gpt import ForwardContext
from quintic.model.linear import Linear

FEWEST_TEXTS, FEWEST_TOKENS = 4, 16
"""With fewer texts packing gains nothing, and with fewer tokens less than the copies take."""
FEWEST_ELEMENTS = 2**19
"""Smaller matrices stay in the processor's cache, where a call of oneDNN takes too long itself."""


class Matrix(Protocol):
    """A weight and its bias, if any, in some form; nothing in it has a gradient."""

    def product(self, x: Tensor) -> Tensor:
        """Return `F.linear` of x."""
        ...


class PlainMatrix:
    """The weight as it is, multiplied with one operator."""

    def __init__(self, weight_ND: Tensor, bias_N: Tensor | None = None) -> None:
        self._weight_DN = weight_ND.detach().T
        self._bias_N = None if bias_N is None else bias_N.detach()

    def product(self, x: Tensor) -> Tensor:
        """Return `F.linear` of x."""
        x_RD = x.reshape(-1, x.shape[-1])
        if self._bias_N is None:
            y_RN = torch.mm(x_RD, self._weight_DN)
        else:
            y_RN = torch.addmm(self._bias_N, x_RD, self._weight_DN)
        return y_RN.view(*x.shape[:-1], -1)


class PackedMatrix:
    """A copy of a float32 weight on a CPU in oneDNN's order, for inputs of about so many rows."""

    def __init__(self, weight_ND: Tensor, bias_N: Tensor | None = None, *, rows: int) -> None:
        # These two are what PyTorch's own compiler calls where it freezes a model.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_ND.detach(), rows)
        self._bias_N = None if bias_N is None else bias_N.detach()

    def product(self, x: Tensor) -> Tensor:
        """Return `F.linear` of x, to rounding."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self._bias_N, "none", [], ""
        )
        return y


MakeMatrix = Callable[[Tensor, Tensor | None], Matrix]
"""Makes a matrix of a weight and a bias."""


class DecodingParts:
    """The parts of a model, as its weights are when this is made; large ones are no copies for
    fewer than `FEWEST_TEXTS`. There are none where they would not pay."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        texts: int,
        tokens: int,
        linear: MakeMatrix | None = None,
        head: MakeMatrix | None = None,
    ) -> None:
        """Make them for so many texts and new tokens; `linear` and `head` make the matrices of the
        blocks and of the head, where these are to be of another form."""
        self._model = model
        self._parts: list[tuple[dict[str, Any], str, Callable[..., Any]]] = []
        if not _pays(model, tokens):
            return
        linear = linear or partial(_matrix, texts)
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        with torch.inference_mode():
            self._add(model, "products", (head or linear)(model.head_weight, None).product)
            stacked: set[nn.Module] = set()
            for module in model.modules():
                if isinstance(module, gpt2.Attention) or (
                    isinstance(module, gpt.Attention) and module.key_smear is None
                ):
                    self._add(module, "qkv", _qkv(module, model, linear))
                    stacked |= {module.q, module.k, module.v}
                elif isinstance(module, nn.RMSNorm):
                    forwards[module] = _rms_norm(module, model.compute_dtype)
                elif isinstance(module, Linear) and module not in stacked:
                    forwards[module] = linear(module.weight, module.bias).product
        for module, forward in forwards.items():
            self._add(module, "forward", forward)
        blocks = (b for b in model.modules() if isinstance(b, gpt.Block | gpt2.Block))
        with unfused(model):
            for parent in (module for block in blocks for module in block.modules()):
                for name, child in parent.named_children():
                    # Called as it is: what `nn.Module.__call__` looks for takes an operator's time.
                    self._add(parent, name, forwards.get(child, child.forward))

    def _add(self, module: nn.Module, name: str, part: Callable[..., Any]) -> None:
        self._parts.append((vars(module), name, part))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model compute by them while open; nothing in it has a gradient then."""
        # A model that trains by fused kernels looks for the modules that parts stand in for.
        with unfused(self._model) if self._parts else nullcontext():
            before: list[tuple[dict[str, Any], str, Any]] = [
                (own, name, own.get(name)) for own, name, _ in self._parts
            ]
            for own, name, part in self._parts:
                own[name] = part
            try:
                yield
            finally:
                for own, name, was in before:
                    if was is None:
                        del own[name]
                    else:
                        own[name] = was


def _pays(model: LanguageModel, tokens: int) -> bool:
    weight = model.head_weight
    return (
        tokens >= FEWEST_TOKENS
        and weight.device.type == "cpu"
        and weight.dtype == model.compute_dtype
        and weight.dtype in (torch.float32, torch.float64)
    )


def _matrix(texts: int, weight_ND: Tensor, bias_N: Tensor | None) -> Matrix:
    packs = (
        texts >= FEWEST_TEXTS
        and weight_ND.numel() >= FEWEST_ELEMENTS
        and weight_ND.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )
    return PackedMatrix(weight_ND, bias_N, rows=texts) if packs else PlainMatrix(weight_ND, bias_N)


def _rms_norm(module: nn.RMSNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return what computes a norm without parameters, which is a dozen operators on a CPU, by
    three: x sqrt(D) / hypot(|x|, sqrt(D eps))."""
    (width,) = module.normalized_shape
    floor = torch.tensor(math.sqrt(width * torch.finfo(dtype).eps), dtype=dtype)
    zero, factor = torch.zeros((), dtype=dtype), math.sqrt(width)

    def norm(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcdiv(zero, x, torch.hypot(length, floor), value=factor)

    return norm


def _qkv(
    attention: gpt.Attention | gpt2.Attention, model: LanguageModel, linear: MakeMatrix
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return what computes queries, keys and values of an attention as `Attention.qkv`, by one
    product.

    Where positions are rotations, the two coordinates of a plane lie beside each other in queries
    and keys, as in `cpu_block.rotated_qkv`; the keys of a cache must all be made like this.
    """
    linears = attention.q, attention.k, attention.v
    weights: list[Tensor] = [layer.weight for layer in linears]
    biases: list[Tensor] = [layer.bias for layer in linears if layer.bias is not None]
    rotation_Tr, norm = None, None
    if isinstance(attention, gpt.Attention):
        if isinstance(attention.qk_norm, nn.RMSNorm):
            norm = _rms_norm(attention.qk_norm, model.compute_dtype)
        if isinstance(positions := model.positions, gpt.Rotary):
            rotation_Tr = cpu_block.rotation(positions.cos_TK, positions.sin_TK)
            weights[:2] = (cpu_block.planes_beside(w, attention.heads) for w in weights[:2])
    matrix = linear(torch.cat(weights), torch.cat(biases) if biases else None)
    heads = attention.heads

    def qkv(x_BTD: Tensor, ctx: ForwardContext | None = None) -> tuple[Tensor, Tensor, Tensor]:
        qkv_BT3HK = matrix.product(x_BTD).unflatten(-1, (3, heads, -1))
        qkv_3BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
        qk_2BHTK, v_BHTK = qkv_3BHTK[:2], qkv_3BHTK[2]
        if rotation_Tr is not None:
            assert ctx is not None, "the attention that rotates is given it"
            rotated = cpu_block.as_complex(qk_2BHTK) * rotation_Tr[ctx.at]
            qk_2BHTK = torch.view_as_real(rotated).flatten(-2)
        if norm is not None:
            qk_2BHTK = norm(qk_2BHTK)
        return qk_2BHTK[0], qk_2BHTK[1], v_BHTK

    return qkv

"""The head's three products, in the compute precision or in float8, and how they become logits.

    logits = x W^T      forward
    grad_x = G W        backward, where G is the gradient of the logits
    grad_W = G^T x

Shapes: N tokens, C of them in a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quintic.kernels.runnable import runs_triton

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
"""Three bits of mantissa and numbers to 448, for x and W; two and 57,344, for gradients."""

GRADIENT_SCALE = 2.0**-15
"""The gradient of a token's logits is divided by this. It lies in [-1, 1], as softmax minus one-hot
does: e5m2 then holds it from 1 down to 4.7e-10."""


def logits_of(products: Tensor, softcap: float | None) -> Tensor:
    """Return the head's products as logits: in float32 (float64 for float64), and capped."""
    logits = products.to(torch.promote_types(products.dtype, torch.float32))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class Products:
    """The products of a chunk in the precision of x; the weight is the object's.

    The gradient G of the mean loss is given as softmax minus one-hot, divided by `grad_divisor`, in
    `grad_dtype`.
    """

    grad_dtype: torch.dtype
    grad_divisor: float

    def __init__(self, x_ND: Tensor, weight_VD: Tensor) -> None:
        """Take x of all tokens, whose mean loss it is."""
        self._head_VD = weight_VD.to(x_ND.dtype)
        self.grad_dtype, self.grad_divisor = x_ND.dtype, len(x_ND)

    def logits(self, x_CD: Tensor) -> Tensor:
        """Return x W^T, [C, V], in the precision of x."""
        return x_CD @ self._head_VD.T

    def grad_x(self, grad_CV: Tensor) -> Tensor:
        """Return G W, [C, D], in the precision of x."""
        return grad_CV @ self._head_VD

    def grad_weight(self, grad_CV: Tensor, x_CD: Tensor) -> Tensor:
        """Return G^T x, [V, D]."""
        return grad_CV.T @ x_CD


class Float8Products(Products):
    """x and W in e4m3, G in e5m2, accumulated in float32: twice the speed on GPUs that have it.

    Each of the three has one scale, a power of two, so that dividing by it is exact and only the
    rounding to float8 loses anything: those of x and W from their largest entries, that of G from
    its bound. Elsewhere than on CUDA the rounded numbers are multiplied in float32, which gives the
    same up to the order of summation.

    It is the speedrun's, from the record of 2025-01-13, whose scales are constants
    (https://github.com/KellerJordan/modded-nanogpt).
    """

    grad_dtype = E5M2
    grad_divisor = GRADIENT_SCALE

    def __init__(self, x_ND: Tensor, weight_VD: Tensor) -> None:
        self._x_scale, self._head_scale = power_of_two_scale(x_ND), power_of_two_scale(weight_VD)
        self._head_VD = (weight_VD / self._head_scale).to(E4M3)
        self._head_DV = _transposed(self._head_VD)  # products want both operands by rows
        self._grad_scale = x_ND.new_full((), GRADIENT_SCALE / len(x_ND), dtype=torch.float32)
        self._dtype = x_ND.dtype

    def logits(self, x_CD: Tensor) -> Tensor:
        x8_CD = (x_CD / self._x_scale).to(E4M3)
        return scaled_product(
            x8_CD, self._head_VD, self._x_scale, self._head_scale, self._dtype, fast=True
        )

    def grad_x(self, grad_CV: Tensor) -> Tensor:
        return scaled_product(
            grad_CV, self._head_DV, self._grad_scale, self._head_scale, self._dtype
        )

    def grad_weight(self, grad_CV: Tensor, x_CD: Tensor) -> Tensor:
        x8_DC = _transposed((x_CD / self._x_scale).to(E4M3))
        grad_VC = _transposed(grad_CV)
        return scaled_product(grad_VC, x8_DC, self._grad_scale, self._x_scale, torch.float32)


def _transposed(a_RC: Tensor) -> Tensor:
    """The contiguous transpose of a contiguous float8 matrix."""
    if a_RC.device.type == "cuda" and runs_triton(a_RC.device):
        from quintic.kernels.transpose import transposed

        return transposed(a_RC)
    return a_RC.T.contiguous()


def power_of_two_scale(values: Tensor) -> Tensor:
    """Return the smallest power of two by which `values` can be divided to fit into e4m3."""
    largest = torch.linalg.vector_norm(values, ord=math.inf, dtype=torch.float32)
    scale: Tensor = torch.exp2(torch.ceil(torch.log2(largest / torch.finfo(E4M3).max)))
    return scale.clamp_min(2.0**-100)  # of zeros


def scaled_product(
    a_MK: Tensor,
    b_NK: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    fast: bool = False,
) -> Tensor:
    """Return (a_scale a) (b_scale b)^T of float8 matrices, both contiguous, as `dtype`.

    On CUDA all sizes must be multiples of 16. `fast` lets the tensor cores add up in fewer bits
    than float32 has, which the gradients do not bear.
    """
    if a_MK.device.type == "cuda":
        return _tensor_core_product(a_MK, b_NK, a_scale, b_scale, dtype, fast=fast)
    product_MN = a_MK.to(torch.float32) @ b_NK.to(torch.float32).T
    return (product_MN * (a_scale * b_scale)).to(dtype)


def _tensor_core_product(
    a_MK: Tensor,
    b_NK: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    fast: bool,
) -> Tensor:
    product_MN: Tensor = torch._scaled_mm(
        a_MK, b_NK.T, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
    )
    return product_MN

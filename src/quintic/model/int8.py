"""A model's matrices in eight bits, for generation on a CPU: a quarter of the memory to read.

Each row of a weight is rounded to multiples of 1/127 of its largest entry. The inputs of a product
are rounded likewise, token by token, because processors multiply bytes with bytes: in the blocks
once, and before the head, whose logits suffer most, once more for what the first rounding left.
Products of bytes are added up exactly, so that a token's are the same bits beside any others.
docs/generate.md has the price.

Shapes: R rows of the input, D its width, N rows of the weight.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from quintic.errors import QuinticError
from quintic.model.base import LanguageModel
from quintic.model.decoding import FEWEST_TEXTS, FEWEST_TOKENS, DecodingParts

LARGEST = 127
"""The largest byte; -128 is left out, so that the range is symmetric."""
LEAST = 1e-30
"""Stands for the largest entry of a row of zeros."""
CHUNK_BYTES = 2**20
"""A piece of a weight that a second product finds in the processor's own cache."""


class Int8Matrix:
    """A weight rounded to eight bits; with `twice` the inputs are rounded to sixteen."""

    def __init__(self, weight_ND: Tensor, bias_N: Tensor | None = None, *, twice: bool) -> None:
        weight_ND = weight_ND.detach()
        largest_N1 = _largest(weight_ND)
        byte_ND = (weight_ND / largest_N1).mul_(LARGEST).round_().to(torch.int8)
        self._byte_DN = byte_ND.T
        self._pieces_DN = [
            piece.T for piece in byte_ND.split(max(1, CHUNK_BYTES // byte_ND.shape[1]))
        ]
        self._scale_N = largest_N1.flatten() / LARGEST**2
        self._bias_N = None if bias_N is None else bias_N.detach()
        self._twice = twice

    def product(self, x: Tensor) -> Tensor:
        """Return `F.linear` of x with the rounded weight, x being rounded too."""
        x_RD = x.reshape(-1, x.shape[-1])
        largest_R1 = _largest(x_RD)
        x_RD = (x_RD / largest_R1).mul_(LARGEST)
        byte_RD = x_RD.round()
        if self._twice:
            rest_RD = x_RD.sub_(byte_RD).mul_(2 * LARGEST).round_()
            both_RN = self._integers(torch.cat((byte_RD, rest_RD)).to(torch.int8)) * self._scale_N
            y_RN, rest_RN = both_RN.chunk(2)
            y_RN.add_(rest_RN, alpha=1 / (2 * LARGEST))
        else:
            y_RN = torch._int_mm(byte_RD.to(torch.int8), self._byte_DN) * self._scale_N
        y_RN.mul_(largest_R1)
        if self._bias_N is not None:
            y_RN.add_(self._bias_N)
        return y_RN.view(*x.shape[:-1], -1)

    def _integers(self, byte_RD: Tensor) -> Tensor:
        """Return the products of the bytes of one token in two rows, or of several in more."""
        if len(byte_RD) > 2:
            return torch._int_mm(byte_RD, self._byte_DN)
        # A product of one row runs at the memory's speed and one of two takes twice as long; so the
        # second row reads each piece from the processor's cache, where the first has left it.
        y_RN = torch.empty((2, self._byte_DN.shape[1]), dtype=torch.int32)
        sizes = [piece.shape[1] for piece in self._pieces_DN]
        rows = list(
            zip(byte_RD.split(1), (row.split(sizes, 1) for row in y_RN.split(1)), strict=True)
        )
        for index, piece_DN in enumerate(self._pieces_DN):
            for x_1D, into in rows:
                torch._int_mm(x_1D, piece_DN, out=into[index])
        return y_RN


def _largest(x: Tensor) -> Tensor:
    """Return the largest magnitude of each row, [..., 1]."""
    largest: Tensor = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True)
    return largest.clamp_min_(LEAST)


def int8_parts(model: LanguageModel) -> DecodingParts:
    """Return the parts of a model with all matrices that read a token's vectors in eight bits;
    tables of embeddings stay as they are.

    Raises `QuinticError` for another device than a CPU, another precision than float32, and on a
    processor whose products of bytes are slow or overflow.
    """
    device, dtype = model.head_weight.device.type, model.compute_dtype
    if device != "cpu":
        raise QuinticError(
            f"--weights int8 is for a CPU, and the model is on {device}: add --device cpu"
        )
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise QuinticError(
            f"--weights int8 is for float32, and the model computes in {name}: leave it out"
        )
    if not runs_int8():
        raise QuinticError("--weights int8 needs a processor with AVX-512 VNNI: leave it out")
    blocks, head = (partial(Int8Matrix, twice=twice) for twice in (False, True))
    return DecodingParts(model, texts=FEWEST_TEXTS, tokens=FEWEST_TOKENS, linear=blocks, head=head)


def runs_int8() -> bool:
    """Return whether this processor multiplies bytes exactly and fast.

    Without AVX-512 VNNI oneDNN adds up pairs of products in 16 bits, which overflow, and with
    VNNI of AVX2 alone a product of one row takes as long as one in float32.
    """
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()

"""Copies of a model's matrices in oneDNN's order, while several texts are continued on a CPU.

`F.linear` in float32 is MKL's product there. It reads a matrix for one row at memory's speed, but
for 4 to 16 rows takes 1.3 to 2.3 times as long as oneDNN's, which wants the matrix in blocks of
its own and takes longer for one row: docs/generate.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from quintic.model.base import LanguageModel
from quintic.model.linear import Linear, PackedWeight

FEWEST_TEXTS, FEWEST_TOKENS = 4, 16
"""With fewer texts there is nothing to gain, and with fewer tokens less than packing takes."""
FEWEST_ELEMENTS = 2**19
"""Smaller matrices stay in the processor's cache, where a call of oneDNN takes too long itself."""


class PackedMatrices:
    """Packed copies of a model's large matrices, as they are when this is made.

    There are none where they would not pay.
    """

    def __init__(self, model: LanguageModel, *, texts: int, tokens: int) -> None:
        self._packed: list[tuple[LanguageModel | Linear, PackedWeight]] = []
        if not _pays(model, texts, tokens):
            return
        weights = {model: model.head_weight} | {
            module: module.weight for module in model.modules() if isinstance(module, Linear)
        }
        for module, weight in weights.items():
            if weight.numel() >= FEWEST_ELEMENTS:
                self._packed.append((module, PackedWeight(weight, rows=texts)))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model multiply by them while open; nothing in it has a gradient then."""
        for module, packed in self._packed:
            module.packed_weight = packed
        try:
            yield
        finally:
            for module, _ in self._packed:
                module.packed_weight = None


def _pays(model: LanguageModel, texts: int, tokens: int) -> bool:
    return (
        texts >= FEWEST_TEXTS
        and tokens >= FEWEST_TOKENS
        and model.head_weight.device.type == "cpu"
        and model.head_weight.dtype == model.compute_dtype == torch.float32
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )

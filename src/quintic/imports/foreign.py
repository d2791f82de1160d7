"""A model of another tool, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quintic.config import ModelConfig


@dataclass(frozen=True)
class ForeignModel:
    """Holds what a reader of a format gives."""

    kind: str
    """The format, and of which class the model is, in words."""
    config: ModelConfig
    """Its vocabulary is that of the file, padding included where the softmax has it."""
    tensors: dict[str, Tensor]
    """quintic's parameters by name, float32."""
    files: tuple[Path, ...]
    """Those that hold the weights."""
    tokenizer: Path | None = None
    """A `tokenizer.json` beside them."""
    notes: tuple[str, ...] = ()
    """What quintic computes otherwise than the tool that wrote the model, in words."""

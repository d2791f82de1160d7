"""A model as transformers loads it: weights, config, tokenizer and card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quintic.errors import QuinticError
from quintic.export.source import Source


def write_hf(source: Source, folder: Path, log: Callable[[str], None]) -> None:
    """Write what transformers loads into an empty folder, and verify it."""
    raise QuinticError("quintic export --to hf is not written yet")

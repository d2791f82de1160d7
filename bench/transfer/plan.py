"""What is trained: three ways to scale an update, at several widths and depths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.ladder.techniques import small_modded
from quintic.config import Config

BASE: dict[str, Any] = {
    "model.vocab_size": None,
    "train.steps": 256,
    "train.batch_tokens": 1024,
    "train.micro_batch": 4,
    "train.eval_every": 256,
    "train.report": False,
    "train.sample_tokens": 0,
    "train.compile": False,
    "train.cpu_kernels": "fused",
}
"""`modded` on 262,144 tokens: short, so that widths can be compared with several seeds on a CPU."""

HEAD_WIDTH = 32


@dataclass(frozen=True, eq=False)
class Rule:
    """An optimizer of the block matrices, with the field of its learning rate."""

    name: str
    changes: Mapping[str, Any]
    field: str
    start: float
    """The learning rate at which the search begins, and of which all others are a power of two
    times; a guess for width 128."""

    def rate(self, power: int) -> float:
        """Return the learning rate at a point of the grid, in four digits."""
        return float(f"{self.start * 2.0**power:.4g}")


RULES = (
    Rule("max_dim", {"optim.muon.scale": "max_dim"}, "optim.muon.lr", 0.0014),
    Rule("aspect", {"optim.muon.scale": "aspect"}, "optim.muon.lr", 0.016),
    Rule("adamw", {"optim.matrices": "adamw"}, "optim.adamw.matrix_lr", 0.004),
)
"""Muon's third scale, `rms`, is a fifth of `max_dim` for every shape: the same runs with five times
the learning rate, so the exponents are the same, and one run is enough to see it."""


@dataclass(frozen=True)
class Size:
    """A model of the series."""

    layers: int
    width: int

    def config(self, rule: Rule, power: int, data: str) -> Config:
        """Return the run of this size at a point of the grid, with the first seed."""
        base = small_modded(
            {
                **BASE,
                "data.path": data,
                "model.layers": self.layers,
                "model.width": self.width,
                "model.heads": self.width // HEAD_WIDTH,
            }
        )
        return base.override({**rule.changes, rule.field: rule.rate(power)})


WIDTHS = tuple(Size(4, width) for width in (64, 128, 192, 256, 384))
DEPTHS = tuple(Size(layers, 128) for layers in (2, 4, 8))

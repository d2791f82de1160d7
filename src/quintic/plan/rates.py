"""How fast training was measured to be, each figure with the place that has it."""

from __future__ import annotations

from dataclasses import dataclass

from quintic.config import ModelConfig
from quintic.model.build import meta_model


@dataclass(frozen=True)
class MeasuredRate:
    """Says at how many tokens a second a model was trained on a device."""

    device: str
    trained: str
    """What was trained, in words."""
    model: ModelConfig
    tokens_per_s: float
    source: str
    """Where the figure and its command stand."""

    @property
    def flops_per_s(self) -> float:
        """Return the operations of the model's products and attention in a second."""
        return self.tokens_per_s * meta_model(self.model).flops_per_token()


H200 = MeasuredRate(
    device="H200",
    trained="modded",
    model=ModelConfig(layers=12, width=768, heads=6, context=1024, vocab_size=50_304),
    tokens_per_s=556_984.0,
    source="docs/gpu.md: 941.3 ms a step, train.loss fused",
)
CPU_CORE = MeasuredRate(
    device="CPU core",
    trained="4 layers x 128",
    model=ModelConfig(layers=4, width=128, heads=2, context=256, vocab_size=4096),
    tokens_per_s=5979.0,
    source="docs/results/ladder/00-modded-seed1, one thread of an AMD EPYC",
)

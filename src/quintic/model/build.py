"""From a `ModelConfig` to a model."""

from __future__ import annotations

import torch

from quintic.config import ModelConfig
from quintic.model.base import LanguageModel
from quintic.model.gpt import GPT
from quintic.model.gpt2 import GPT2
from quintic.model.loss import CROSS_ENTROPIES

ARCHITECTURES: dict[str, type[LanguageModel]] = {"gpt": GPT, "gpt2": GPT2}


def build_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    compute_dtype: torch.dtype = torch.float32,
    loss: str = "chunked",
) -> LanguageModel:
    """A model with freshly drawn weights, on the CPU.

    The weights depend on the seed alone: drawn on the CPU in float32 whatever the device and
    precision (float64 weights are the float32 draws), so every machine starts from the same model.
    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        model = ARCHITECTURES[config.architecture](config, compute_dtype, CROSS_ENTROPIES[loss])
    return model.double() if compute_dtype is torch.float64 else model


def meta_model(config: ModelConfig) -> LanguageModel:
    """The model without its numbers: for counting parameters and FLOPs at no cost."""
    with torch.device("meta"):
        return ARCHITECTURES[config.architecture](config, torch.float32, CROSS_ENTROPIES["plain"])

"""From a `ModelConfig` to a model."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from quintic.config import ModelConfig
from quintic.model.base import LanguageModel
from quintic.model.fused_loss import FLOAT8_CROSS_ENTROPIES
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
    float8_head: bool = False,
    mtp_tokens: int = 1,
    block_masks: bool = False,
) -> LanguageModel:
    """A model with freshly drawn weights, on the CPU.

    The weights depend on the seed alone: drawn on the CPU in float32 whatever the device and
    precision (float64 weights are the float32 draws), so every machine starts from the same model.
    The caller's random state is left as it was.
    """
    cross_entropy = (FLOAT8_CROSS_ENTROPIES if float8_head else CROSS_ENTROPIES)[loss]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        model = ARCHITECTURES[config.architecture](config, compute_dtype, cross_entropy)
    model.block_masks = block_masks
    if mtp_tokens > 1:
        model.predict_tokens_ahead(mtp_tokens)
    return model.double() if compute_dtype is torch.float64 else model


def checkpoint_activations(model: LanguageModel) -> None:
    """Let the backward pass compute every block again from its input, which alone is kept.

    Source: Chen et al., https://arxiv.org/abs/1604.06174
    """
    for block in model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def meta_model(config: ModelConfig) -> LanguageModel:
    """The model without its numbers: for counting parameters and FLOPs at no cost."""
    with torch.device("meta"):
        return ARCHITECTURES[config.architecture](config, torch.float32, CROSS_ENTROPIES["plain"])

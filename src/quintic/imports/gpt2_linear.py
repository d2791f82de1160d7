"""GPT-2's tensors under nanoGPT's names, which llm.c has too: those of transformers, but with the
matrices of nn.Linear, (out, in), where transformers has them transposed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from quintic.config import ModelConfig
from quintic.export.hf import GPT2_CLASS, hf_shapes, parameters_from_hf

_MATRICES = (
    *("attn.c_attn.weight", "attn.c_proj.weight"),
    *("mlp.c_fc.weight", "mlp.c_proj.weight"),
)


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of a `gpt2`."""
    return {
        name: shape[::-1] if name.endswith(_MATRICES) else shape
        for name, shape in hf_shapes(GPT2_CLASS, config).items()
    }


def parameters_from_linear(
    config: ModelConfig, tensors: Mapping[str, Tensor], given_by: str
) -> dict[str, Tensor]:
    """Return quintic's parameters by name, made of tensors of `linear_shapes`."""
    turned = {n: x.T if n.endswith(_MATRICES) else x for n, x in tensors.items()}
    return parameters_from_hf(GPT2_CLASS, config, turned, given_by)

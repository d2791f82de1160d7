"""nanoGPT's ckpt.pt: `model_args` and the tensors of `model`, GPT-2 with or without biases.

Source: train.py and model.py of https://github.com/karpathy/nanoGPT, commit 3adf61e.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.export.hf import HEAD
from quintic.export.tensors import as_weights, check_layers, check_tensors, without_tied_head
from quintic.imports.foreign import ForeignModel
from quintic.imports.gpt2_linear import linear_shapes, parameters_from_linear
from quintic.imports.torch_file import state_dict_of

_ARGS = {
    "n_layer": "layers",
    "n_embd": "width",
    "n_head": "heads",
    "block_size": "context",
    "vocab_size": "vocab_size",
}
_MASK = re.compile(r"\.attn\.bias$")
"""Of models without flash attention, a buffer: the causal mask."""

_GELU = (
    "nanoGPT since 2023-05-17 computes GELU by the error function, and quintic, as GPT-2, in its "
    "tanh form, which differs by up to 5e-4: a checkpoint of a later nanoGPT has slightly other "
    "logits"
)


def is_nanogpt(saved: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is one of nanoGPT's."""
    return "model_args" in saved


def read_nanogpt(path: Path, saved: Mapping[str, Any]) -> ForeignModel:
    """Read a checkpoint that `load_torch_file` gave; raises `QuinticError` where something is
    missing, too much or of another shape."""
    args = saved.get("model_args")
    if not isinstance(args, Mapping):
        raise QuinticError("it has no model_args, which say the number of heads: name a ckpt.pt")
    if missing := [name for name in _ARGS if name not in args]:
        raise QuinticError(f"its model_args have no {', '.join(missing)}: name a whole ckpt.pt")
    if wrong := [f"{name} {args[name]!r}" for name in _ARGS if type(args[name]) is not int]:
        raise QuinticError(f"its model_args have {', '.join(wrong)}: all must be whole numbers")
    sizes = {ours: args[theirs] for theirs, ours in _ARGS.items()}
    config = ModelConfig(architecture="gpt2", **sizes)
    tensors = {n: x for n, x in state_dict_of(saved).items() if not _MASK.search(n) or x.ndim == 1}
    tensors = without_tied_head(tensors, HEAD, "transformer.wte.weight")
    check_layers(config.layers, tensors, "its model_args")
    has_bias, notes = bool(args.get("bias", True)), [_GELU]
    shapes = linear_shapes(config)
    biases = {} if has_bias else {n: s for n, s in shapes.items() if n.endswith(".bias")}
    given = {name: shape for name, shape in shapes.items() if name not in biases}
    check_tensors(given, tensors, "its model_args")
    tensors |= {name: torch.zeros(shape) for name, shape in biases.items()}
    if biases:
        notes.append("it has no biases: those of quintic's gpt2 are zeros, and would be trained")
    ours = parameters_from_linear(config, as_weights(tensors), "its model_args")
    return ForeignModel("nanoGPT", config, ours, (path,), notes=tuple(notes))

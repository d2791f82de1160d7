"""State dicts of modded-nanogpt, of the records whose model quintic's `gpt` is.

| record                    | quintic's `model`                 |
|---------------------------|-----------------------------------|
| 2024-10-14 to 2024-10-29  | as it is                          |
| 2024-11-03, head untied   | `embed_norm`, and `tied_head` off |

Both have the same names; tied or not tells them apart. Earlier records and those from 2024-11-06 on
have other tensors, by which they are refused. A checkpoint is a dictionary of step, code, model and
optimizers. The number of heads and the context are not in the tensors; they are read in the code,
as text.
Source: https://github.com/KellerJordan/modded-nanogpt, records/track_1_short, commit f411b3d.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.export.hf import HEAD
from quintic.export.tensors import as_weights, check_layers, check_tensors, without_tied_head
from quintic.imports.foreign import ForeignModel
from quintic.imports.torch_file import state_dict_of
from quintic.model.build import meta_model

_EMBEDDING = "transformer.wte.weight"
_LAYER = re.compile(r"transformer\.h\.(\d+)\.")
_HEADS = re.compile(r"GPTConfig\([^)]*\bn_head\s*=\s*(\d+)")
_CONTEXT = re.compile(r"^\s*sequence_length\s*:\s*int\s*=\s*(\d+)", re.MULTILINE)

_MATRICES = {
    "attn.c_q": "attention.q",
    "attn.c_k": "attention.k",
    "attn.c_v": "attention.v",
    "attn.c_proj": "attention.o",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
"""Their names of a block's matrices, and quintic's; both are (out, in)."""


def is_modded_nanogpt(saved: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has this model's own names."""
    found = saved.get("model", saved)
    return isinstance(found, Mapping) and any(".attn.c_q." in str(name) for name in found)


def read_modded_nanogpt(
    path: Path, saved: Mapping[str, Any], *, heads: int | None = None, context: int | None = None
) -> ForeignModel:
    """Read a checkpoint that `load_torch_file` gave; `heads` and `context` go before its code.

    Raises `QuinticError` where something is missing, too much or of another shape, and where
    nothing says the number of heads or the context.
    """
    tensors = without_tied_head(state_dict_of(saved), HEAD, _EMBEDDING)
    if _EMBEDDING not in tensors or tensors[_EMBEDDING].ndim != 2:
        raise QuinticError(f"it has no matrix {_EMBEDDING}: name a whole checkpoint")
    vocab_size, width = tensors[_EMBEDDING].shape
    code = saved.get("code")
    layers = 1 + max((int(m[1]) for name in tensors if (m := _LAYER.match(name))), default=0)
    check_layers(layers, tensors, "a name")
    untied = HEAD in tensors
    config = ModelConfig(
        layers=layers,
        width=width,
        heads=_said("--heads", heads, _HEADS, code),
        context=_said("--context", context, _CONTEXT, code),
        vocab_size=vocab_size,
        tied_head=not untied,
        embed_norm=untied,
    )
    names = dict(_names(config))
    shapes = {n: tuple(p.shape) for n, p in meta_model(config).named_parameters()}
    check_tensors({t: shapes[ours] for t, ours in names.items()}, tensors, "the model")
    weights = as_weights(tensors)
    ours: dict[str, Tensor] = {ours: weights[theirs] for theirs, ours in names.items()}
    record = "the record of 2024-11-03" if untied else "the record of 2024-10-14"
    return ForeignModel(f"modded-nanogpt, {record}", config, ours, (path,))


def _names(config: ModelConfig) -> list[tuple[str, str]]:
    names = [(_EMBEDDING, "embed.weight")]
    for layer in range(config.layers):
        block = f"transformer.h.{layer}", f"layers.{layer}"
        for theirs, ours in _MATRICES.items():
            names.append((f"{block[0]}.{theirs}.weight", f"{block[1]}.{ours}.weight"))
    return names if config.tied_head else [*names, (HEAD, "head.weight")]


def _said(option: str, given: int | None, pattern: re.Pattern[str], code: Any) -> int:
    if given is not None:
        return given
    if isinstance(code, str) and (found := pattern.search(code)):
        return int(found[1])
    raise QuinticError(
        f"its tensors do not say the {option.removeprefix('--')}, and it has no code that does: "
        f"give it with {option} (the records have heads of 128 and a context of 1024)"
    )

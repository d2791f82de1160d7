"""The class of transformers that is written beside the weights where it has none of its own.

Its source is `modeling_quintic.py`, which imports transformers and nothing of quintic: no module
imports it but where transformers is there. Tensors have the names that they have in quintic.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quintic.config import ModelConfig, field_facts
from quintic.config.schema import build
from quintic.errors import QuinticError

QUINTIC = "QuinticForCausalLM"
MODULE = Path(__file__).with_name("modeling_quintic.py")

SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "context": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
FIELDS = {
    name: {**SIZES, "tied_head": "tie_word_embeddings"}.get(name, name)
    for name in field_facts(ModelConfig)
    if name not in ("architecture", "init", "window_start")
}
"""The fields of a model that decide what it computes, with their names in `config.json`; `init`
decides where training begins, and a window that grows has the width of its step."""


def config_json(config: ModelConfig, *, vocab_size: int, eot_id: int) -> dict[str, Any]:
    """Return `config.json` of a model of architecture gpt whose window does not grow."""
    assert config.architecture == "gpt" and config.window_start is None, "the caller has seen to it"
    module = MODULE.stem
    return {
        "architectures": [QUINTIC],
        "auto_map": {
            "AutoConfig": f"{module}.QuinticConfig",
            "AutoModelForCausalLM": f"{module}.{QUINTIC}",
        },
        "model_type": "quintic",
        "dtype": "float32",
        **{theirs: getattr(config, name) for name, theirs in FIELDS.items()},
        "vocab_size": vocab_size,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": None,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Return the config of the model that a `config.json` describes, the inverse of `config_json`.

    A switch that is left out has quintic's default, which is the class's as well. Raises
    `QuinticError` where a size is missing or a value is not one of the field's.
    """
    if missing := [theirs for theirs in SIZES.values() if theirs not in config]:
        raise QuinticError(f"config.json has no {', '.join(missing)}: restore it")
    values = {name: config[theirs] for name, theirs in FIELDS.items() if theirs in config}
    try:
        found: ModelConfig = build(ModelConfig, values)
    except QuinticError as error:
        raise QuinticError(f"config.json: {error}") from error
    return found


def write_remote_code(folder: Path) -> None:
    """Copy the source of the class into a folder."""
    shutil.copyfile(MODULE, folder / MODULE.name)

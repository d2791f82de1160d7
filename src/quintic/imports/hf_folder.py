"""A folder that transformers writes: `config.json`, safetensors in one file or several, and perhaps
a `tokenizer.json`.

Checkpoints of GPT-2 have names with or without "transformer." before them, and older ones the
causal masks of their attention as buffers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.errors import QuinticError, one_line
from quintic.export.hf import GPT2_CLASS, HEAD, from_hf, model_class
from quintic.export.hf_folder import CONFIG_FILE, WEIGHTS_FILE
from quintic.export.tensors import as_weights
from quintic.files import parse_json
from quintic.imports.foreign import ForeignModel

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
_PREFIX = "transformer."
_BUFFER = re.compile(r"\.attn\.(masked_)?bias$")


def is_hf_folder(folder: Path) -> bool:
    """Return whether a folder has the files of a model of transformers."""
    return (folder / CONFIG_FILE).is_file() and any(
        (folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE)
    )


def read_hf_folder(folder: Path) -> ForeignModel:
    """Read a folder; raises `QuinticError` where quintic has no such model, and where tensors are
    missing, too many or of another shape."""
    given = read_object(folder / CONFIG_FILE)
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise QuinticError(
                f"{file.name} is truncated or damaged ({one_line(error)}): copy it again"
            ) from error
    if (name := model_class(given)) == GPT2_CLASS:
        tensors = _gpt2_names(tensors)
    config, ours = from_hf(given, as_weights(tensors))
    tokenizer = folder / TOKENIZER_FILE
    return ForeignModel(
        f"transformers, {name}",
        config,
        ours,
        files,
        tokenizer=tokenizer if tokenizer.is_file() else None,
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises `QuinticError` where it holds none."""
    try:
        found = parse_json(path.read_bytes())
    except QuinticError as error:
        raise QuinticError(f"{path.name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise QuinticError(f"{path.name} is not valid JSON: {error}; copy it again") from error
    if not isinstance(found, dict):
        raise QuinticError(f"{path.name} holds no object: copy it again")
    return found


def shard_names(index: dict[str, Any]) -> list[str]:
    """Return the names of the files that an index lists, sorted.

    Raises `QuinticError` where it lists none, or one that is not beside it.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise QuinticError(f"{INDEX_FILE} lists no files: copy it again")
    names = list(weight_map.values())
    if wrong := {str(n) for n in names if not isinstance(n, str) or Path(n).name != n}:
        raise QuinticError(
            f"{INDEX_FILE} lists {', '.join(sorted(wrong))}, which is not beside it: copy it again"
        )
    return sorted(set(names))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of the weights; raises `QuinticError` where one is missing."""
    if (folder / WEIGHTS_FILE).is_file():
        return (folder / WEIGHTS_FILE,)
    files = tuple(folder / name for name in shard_names(read_object(folder / INDEX_FILE)))
    if missing := [file.name for file in files if not file.is_file()]:
        raise QuinticError(f"it has no {', '.join(missing)}, which {INDEX_FILE} lists")
    return files


def _gpt2_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a GPT-2 under the names that transformers writes, without buffers."""
    kept = {n: x for n, x in tensors.items() if not (_BUFFER.search(n) and x.ndim in (0, 4))}
    if any(name.startswith(_PREFIX) for name in kept):
        return kept
    return {n if n == HEAD else f"{_PREFIX}{n}": x for n, x in kept.items()}

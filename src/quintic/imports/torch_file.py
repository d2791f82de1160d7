"""What torch.save wrote, read with `weights_only`: tensors and plain values; nothing is executed.

A file that names any other class or function is refused.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintic.errors import QuinticError, reason

COMPILED = "_orig_mod."
"""What torch.compile puts before the names of a module's parameters."""


def is_torch_file(path: Path) -> bool:
    """Return whether a file is one of torch.save's, whole or not."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def load_torch_file(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file; its tensors are mapped into memory, and read as needed.

    Raises `QuinticError` where it holds more than tensors and plain values, is damaged, or is no
    dictionary.
    """
    if not zipfile.is_zipfile(path):
        raise QuinticError("it is truncated, or no file of torch.save: copy it again")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        holds = f"it pickles {what[1]}" if what else "its pickle is not of tensors and plain values"
        raise QuinticError(
            f"{holds}, and no pickle is executed: save tensors and plain values alone"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in any way
        raise QuinticError(f"it cannot be read ({reason(error)}): copy it again") from error
    if not isinstance(found, dict):
        raise QuinticError(f"it holds {type(found).__name__}, where checkpoints hold a dictionary")
    return found


def state_dict_of(saved: Mapping[str, Any], key: str = "model") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's model by name, without torch.compile's prefix.

    A file of nothing but a model's tensors is one too. Raises `QuinticError` where there are none.
    """
    found = saved.get(key, saved)
    if not isinstance(found, Mapping) or not found:
        raise QuinticError(f"it has no tensors under {key!r}")
    if wrong := [str(name) for name, value in found.items() if not isinstance(value, Tensor)]:
        raise QuinticError(f"{', '.join(wrong)}: no tensor, where a model has nothing else")
    return {str(name).removeprefix(COMPILED): value for name, value in found.items()}

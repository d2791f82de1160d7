"""A config in a file, as a recipe: the `config.json` of a run, the best of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

from quintic.config import Config
from quintic.errors import QuinticError


def read_recipe(path: Path) -> Config:
    """The config in a file.

    Raises `QuinticError` where the file is none.
    """
    if not path.is_file():
        raise QuinticError(
            f"there is no recipe file {path}: name the best.json of a sweep or the config.json of "
            "a run"
        )
    try:
        config = Config.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except QuinticError as error:
        raise QuinticError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise QuinticError(f"{path} is not valid JSON: {error}; restore it") from error
    if Path(config.recipe).name != config.recipe:
        raise QuinticError(
            f"{path}: recipe is {config.recipe!r}: it names the folder of the run, so it must be a "
            "name without slashes"
        )
    return config

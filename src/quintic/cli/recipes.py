"""quintic recipes."""

from __future__ import annotations

from collections.abc import Sequence

from quintic.cli.options import Recipes
from quintic.config import resolve_vocabulary
from quintic.console import Console, Table
from quintic.model.build import meta_model
from quintic.recipes import RECIPES


def run(_command: Recipes, _arguments: Sequence[str]) -> None:
    """Print the recipes as a table, and what each is for."""
    rows = []
    for name, recipe in RECIPES.items():
        config = recipe.build()
        config = resolve_vocabulary(config, config.data.embedded_vocab)
        parameters = f"{meta_model(config.model).parameter_count() / 1e6:.1f}M"
        tokens = f"{config.tokens / 1e6:,.0f}M"
        rows.append([name, parameters, tokens, recipe.hardware, recipe.expected])
    console = Console()
    console.table(Table(["recipe", "parameters", "tokens", "hardware", "expected loss"], rows))
    for name, recipe in RECIPES.items():
        console.line(f"{name}: {recipe.summary}")

"""quintic recipes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from quintic.cli.options import Recipes
from quintic.config import resolve_vocabulary
from quintic.model.build import meta_model
from quintic.recipes import RECIPES


def run(_command: Recipes, _arguments: Sequence[str]) -> None:
    """Print the recipes as a table, and what each is for."""
    table = Table("recipe", "parameters", "tokens", "hardware", "expected loss", box=SIMPLE_HEAD)
    for name, recipe in RECIPES.items():
        config = recipe.build()
        config = resolve_vocabulary(config, config.data.embedded_vocab)
        table.add_row(
            name,
            f"{meta_model(config.model).parameter_count() / 1e6:.1f}M",
            f"{config.tokens / 1e6:,.0f}M",
            recipe.hardware,
            recipe.expected,
        )
    console = Console(highlight=False)
    console.print(table)
    for name, recipe in RECIPES.items():
        console.print(f"{name}: {recipe.summary}", markup=False)

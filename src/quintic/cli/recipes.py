"""quintic recipes."""

from __future__ import annotations

from collections.abc import Sequence

from quintic.cli.options import Recipes
from quintic.config import Config, resolve_vocabulary
from quintic.console import Console, Table, hours_text, short_count
from quintic.data.gpt2_tokenizer import GPT2
from quintic.ladder import DEEPEST, Rung
from quintic.model.build import meta_model
from quintic.plan.rates import CPU_CORE, H200, MeasuredRate
from quintic.recipes import RECIPES, get_recipe

RUNGS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, DEEPEST)


def run(command: Recipes, _arguments: Sequence[str]) -> None:
    """Print the recipes as a table, and what each is for; or rungs of the ladder."""
    if command.ladder:
        _print_ladder(Console())
        return
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
    console.line(
        f"ladder:N: everything follows from the depth N, 1 to {DEEPEST} (quintic recipes --ladder)"
    )


def _print_ladder(console: Console) -> None:
    """Print rungs of the ladder with GPT-2's vocabulary, and what the columns are."""
    rates = (CPU_CORE, H200)
    header = ["recipe", "width", "blocks", "all", "tokens", "batch", "steps", "FLOPs"]
    rows = [_row(f"ladder:{depth}", Rung(depth), rates) for depth in RUNGS]
    console.table(Table([*header, *(rate.device for rate in rates)], rows))
    console.line(
        "blocks: parameters of the block matrices, which the rules count; all: with the embedding "
        f"of GPT-2's vocabulary, {GPT2.vocab_size:,} tokens, which FLOPs and hours have too"
    )
    for rate in rates:
        console.line(
            f"hours on one {rate.device}: a prediction, at the {rate.flops_per_s / 1e12:,.3g} "
            f"TFLOP/s that {rate.trained} was measured at ({rate.source})"
        )


def _row(name: str, rung: Rung, rates: Sequence[MeasuredRate]) -> list[str]:
    config: Config = resolve_vocabulary(get_recipe(name), GPT2.vocab_size)
    model = meta_model(config.model)
    flops = model.flops_per_token() * config.tokens
    return [
        name,
        f"{rung.width:,}",
        short_count(rung.parameters),
        short_count(model.parameter_count()),
        short_count(config.tokens),
        f"{rung.batch_tokens:,}",
        f"{rung.steps:,}",
        f"{flops:.2g}",
        *(hours_text(flops / rate.flops_per_s) for rate in rates),
    ]

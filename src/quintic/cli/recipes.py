"""quintic recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quintic.cli.options import Recipes
from quintic.config import resolve_vocabulary
from quintic.console import Console, Table, hours_text, short_count
from quintic.data.gpt2_tokenizer import GPT2
from quintic.device import PEAK_BFLOAT16_FLOPS
from quintic.ladder import DEEPEST, Rung
from quintic.model.build import meta_model
from quintic.plan.devices import device_of
from quintic.plan.rates import CPU_CORE, H200
from quintic.recipes import RECIPES, get_recipe

RUNGS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, DEEPEST)


@dataclass(frozen=True)
class Speed:
    """Says how many operations of training a device does in a second."""

    device: str
    flops_per_s: float
    known: str
    """How that is known."""


def speeds() -> tuple[Speed, Speed]:
    """Return those that hours are of: a CPU core's was measured, and an H100's is that of `quintic
    plan`."""
    h100 = device_of("h100")
    assert h100.peak_flops == PEAK_BFLOAT16_FLOPS[H200.device]
    return (
        Speed(
            CPU_CORE.device,
            CPU_CORE.flops_per_s,
            f"measured for {CPU_CORE.trained}: {CPU_CORE.source}",
        ),
        Speed(
            "H100",
            h100.rate,
            f"none was measured: {h100.rate_label.removeprefix('prediction: ')}, which has the "
            f"same peak in bfloat16, {h100.peak_flops / 1e12:,.0f} TFLOP/s, and so the same hours",
        ),
    )


def run(command: Recipes, _arguments: Sequence[str]) -> None:
    """Print the recipes as a table, and what each is for; or rungs of the ladder."""
    if command.json:
        print(json.dumps(_ladder() if command.ladder else _recipes(), indent=1))
    elif command.ladder:
        _print_ladder(Console())
    else:
        _print_recipes(Console())


def _recipes() -> dict[str, Any]:
    """Return what is shown of every recipe, with the vocabulary of the embedded corpus where it
    names none."""
    found = []
    for name, recipe in RECIPES.items():
        config = recipe.build()
        config = resolve_vocabulary(config, config.data.embedded_vocab)
        found.append(
            {
                "recipe": name,
                "parameters": meta_model(config.model).parameter_count(),
                "tokens": config.tokens,
                "hardware": recipe.hardware,
                "expected_loss": recipe.expected,
                "summary": recipe.summary,
            }
        )
    return {"recipes": found}


def _print_recipes(console: Console) -> None:
    recipes = _recipes()["recipes"]
    rows = [
        [
            one["recipe"],
            f"{one['parameters'] / 1e6:.1f}M",
            f"{one['tokens'] / 1e6:,.0f}M",
            one["hardware"],
            one["expected_loss"],
        ]
        for one in recipes
    ]
    console.table(Table(["recipe", "parameters", "tokens", "hardware", "expected loss"], rows))
    for one in recipes:
        console.line(f"{one['recipe']}: {one['summary']}")
    console.line(
        f"ladder:N: everything follows from the depth N, 1 to {DEEPEST} (quintic recipes --ladder)"
    )


def _ladder() -> dict[str, Any]:
    """Return what is shown of rungs with GPT-2's vocabulary, and the speeds that hours are at."""
    known = speeds()
    rungs = []
    for rung in map(Rung, RUNGS):
        config = resolve_vocabulary(get_recipe(rung.name), GPT2.vocab_size)
        model = meta_model(config.model)
        flops = model.flops_per_token() * config.tokens
        rungs.append(
            {
                "recipe": rung.name,
                "width": rung.width,
                "parameters": {"blocks": rung.parameters, "all": model.parameter_count()},
                "tokens": config.tokens,
                "batch_tokens": rung.batch_tokens,
                "steps": rung.steps,
                "flops": flops,
                "hours": {speed.device: flops / speed.flops_per_s / 3600 for speed in known},
            }
        )
    return {"rungs": rungs, "speeds": [asdict(speed) for speed in known]}


def _print_ladder(console: Console) -> None:
    """Print rungs of the ladder, and what the columns are."""
    ladder = _ladder()
    rows = [
        [
            rung["recipe"],
            f"{rung['width']:,}",
            short_count(rung["parameters"]["blocks"]),
            short_count(rung["parameters"]["all"]),
            short_count(rung["tokens"]),
            f"{rung['batch_tokens']:,}",
            f"{rung['steps']:,}",
            f"{rung['flops']:.2g}",
            *(hours_text(3600 * hours) for hours in rung["hours"].values()),
        ]
        for rung in ladder["rungs"]
    ]
    header = ["recipe", "width", "blocks", "all", "tokens", "batch", "steps", "FLOPs"]
    console.table(Table([*header, *(speed["device"] for speed in ladder["speeds"])], rows))
    console.line(
        "blocks: parameters of the block matrices, which the rules count; all: with the embedding "
        f"of GPT-2's vocabulary, {GPT2.vocab_size:,} tokens, which FLOPs and hours have too"
    )
    for speed in ladder["speeds"]:
        console.line(
            f"hours on one {speed['device']}: a prediction, at {speed['flops_per_s'] / 1e12:,.3g} "
            f"TFLOP/s; {speed['known']}"
        )

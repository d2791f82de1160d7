"""The verdict on a run: how its loss stands to what its recipe expects, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from quintic.config import (
    EMBEDDED,
    Config,
    differing_fields,
    field_facts,
    flatten,
    resolve_vocabulary,
)
from quintic.errors import QuinticError, counted
from quintic.metrics_file import STOPPED_EARLY, MetricsRecord
from quintic.recipes import RECIPES, find_recipe

NEAR = 0.005
"""Part of the expected number within which a run's counts as the same: more than its rounding, and
for FineWeb's 3.28 ten times what one run differs from the next."""
EXPECTED = re.compile(r"([\d.]+) (bits per byte|FineWeb)")
"""The expectations of recipes that are a number: bits per byte, or nats per token of FineWeb."""


def departures(config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which a run differs from its recipe and which matter to its loss, each
    with the recipe's value and its own; what was left to quintic, where its data lie and the seed
    make no other recipe of it.

    There must be a recipe of its name.
    """
    recipe, facts = RECIPES[config.recipe].build(), field_facts(Config)
    if config.data.embedded_vocab == recipe.data.embedded_vocab:
        recipe = resolve_vocabulary(recipe, recipe.data.embedded_vocab)
    if recipe.train.precision == "auto":
        recipe = replace(recipe, train=replace(recipe.train, precision=config.train.precision))
    was, now = flatten(recipe), flatten(config)
    same_loss = {"train.seed", "train.eval_every", "data.tokenizer"}
    if EMBEDDED not in (recipe.data.path, config.data.path):
        same_loss.add("data.path")
    return {
        name: (was[name], now[name])
        for name in differing_fields(recipe, config)
        if name not in same_loss
        and facts[name].resume != "free"
        and facts[name].compare != "ignored"
    }


def verdict(
    config: Config, records: Sequence[MetricsRecord], bits_per_byte: float | None
) -> list[str]:
    """Return sentences on a run with these metrics: how it ended, the loss that it came to, in nats
    per token and, where it is known, in bits per byte, and whether its recipe expects that."""
    measured = [record for record in records if "val_loss" in record]
    last = max((record["step"] for record in records), default=0)
    if lost := next((r for r in records if _diverged(r)), None):
        return [f"Training diverged: the loss is not finite at step {lost['step']:,}."]
    if not measured:
        return ["No validation has measured this run yet."]
    end, steps = measured[-1], config.train.steps
    loss = f"{end['val_loss']:.4f} nats per token"
    if bits_per_byte is not None:
        loss += f", {bits_per_byte:.4f} bits per byte"
    found = [f"Validation loss after step {end['step']:,} of {steps:,}: {loss}."]
    if why := end.get(STOPPED_EARLY):
        return [*found, f"The run stopped early: {why}."]
    if end["step"] < steps:
        reached = f"It has come to step {last:,}: " if last > end["step"] else ""
        return [*found, f"{reached}The run is not finished."]
    return [*found, *_against_recipe(config, end["val_loss"], bits_per_byte)]


def _diverged(record: MetricsRecord) -> bool:
    losses = (record.get(name) for name in ("train_loss", "val_loss"))
    return any(loss is not None and not math.isfinite(loss) for loss in losses)


def _against_recipe(config: Config, val_loss: float, bits_per_byte: float | None) -> Iterator[str]:
    name = config.recipe
    recipe = None
    with suppress(QuinticError):  # a rung of a later quintic's ladder
        recipe = find_recipe(name)
    if recipe is None:
        yield f"{name} is no recipe of quintic's, which could say what to expect."
        return
    expected = recipe.expected
    if (number := EXPECTED.fullmatch(expected)) is None:
        yield f"The recipe {name} gives no number to expect (it says: {expected})."
        return
    if changed := departures(config):
        shown = [f"{field} {now} (not {was})" for field, (was, now) in [*changed.items()][:4]]
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        yield (
            f"The recipe {name} expects {expected}, unchanged; this run differs from it in "
            f"{counted(len(changed), 'setting')}, {', '.join(shown)}{more}, so the two do not "
            "compare."
        )
        return
    target, unit = float(number[1]), number[2]
    own = bits_per_byte if unit == "bits per byte" else val_loss
    if own is None:
        yield f"The recipe {name} expects {expected}, and that is not known of this run."
        return
    apart = own / target - 1
    if abs(apart) <= NEAR:
        yield f"That is what the recipe {name} expects, {expected}: {abs(apart):.1%} apart."
    else:
        word = "above" if apart > 0 else "below"
        yield f"That is {abs(apart):.1%} {word} what the recipe {name} expects, {expected}."
    if unit == "FineWeb":
        yield "The expectation is of FineWeb; other data have other losses."

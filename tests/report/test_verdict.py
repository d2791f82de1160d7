"""The verdict: what is said of a run's loss beside what its recipe expects."""

import re
from typing import Any

import pytest

from quintic.config import Config
from quintic.recipes import RECIPES, get_recipe
from quintic.report.verdict import EXPECTED, departures, verdict


def resolved(name: str, changes: dict[str, Any] | None = None) -> Config:
    """The config of a run of a recipe, with what quintic fills in."""
    on_library = name in ("laptop", "laptop-plain")
    vocabulary = {"model.vocab_size": 2048} if on_library else {"data.path": "/elsewhere"}
    filled = {**vocabulary, "train.precision": "float32", "train.micro_batch": 2}
    return get_recipe(name).override({**filled, **(changes or {})})


def said(config: Config, val_loss: float, bits: float | None = None, step: int = -1) -> str:
    end = config.train.steps if step < 0 else step
    return " ".join(verdict(config, [{"step": end, "val_loss": val_loss}], bits))


def test_every_recipe_expects_a_number_or_says_in_words_why_none() -> None:
    for name, recipe in RECIPES.items():
        assert EXPECTED.fullmatch(recipe.expected) or not re.search(r"\d", recipe.expected), name
        assert departures(resolved(name)) == {}


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (1.001, "That is what the recipe laptop expects"),
        (1.02, "That is 2.0% above what the recipe laptop expects"),
        (0.98, "That is 2.0% below what the recipe laptop expects"),
    ],
)
def test_a_recipe_unchanged_is_held_against_its_number(times: float, words: str) -> None:
    expected = RECIPES["laptop"].expected
    number = float(expected.split()[0])
    text = said(resolved("laptop", {"train.seed": 5}), 3.5, times * number)
    assert f"{words}, {expected}" in text
    assert text.startswith("Validation loss after step ")
    assert f"3.5000 nats per token, {times * number:.4f} bits per byte" in text


def test_of_fineweb_the_loss_counts_and_whether_it_is_fineweb_nobody_knows() -> None:
    text = said(resolved("modded"), 3.275)
    assert "That is what the recipe modded expects, 3.28 FineWeb: 0.2% apart." in text
    assert "The expectation is of FineWeb; other data have other losses." in text


def test_a_recipe_that_was_changed_is_not_held_against_its_number() -> None:
    text = said(resolved("laptop", {"train.steps": 20, "model.layers": 5}), 3.5, 1.6)
    assert "this run differs from it in 2 settings, model.layers 5 (not " in text
    assert "so the two do not compare" in text
    assert "expects, " not in text


def test_runs_without_a_number_to_expect() -> None:
    assert "gives no number to expect (it says: not measured)" in said(resolved("speedrun"), 3.2)
    own = resolved("laptop", {"recipe": "mine"})
    assert "mine is no recipe of quintic's" in said(own, 3.5, 1.6)
    assert "that is not known of this run" in said(resolved("laptop"), 3.5, None)


def test_runs_that_did_not_end_as_planned() -> None:
    config = resolved("laptop")
    assert verdict(config, [], None) == ["No validation has measured this run yet."]
    assert said(config, 4.0, 1.62, step=10).endswith("The run is not finished.")
    records: list[dict[str, Any]] = [
        {"step": 0, "val_loss": 7.6},
        {"step": 7, "train_loss": float("nan")},
    ]
    lost = ["Training diverged: the loss is not finite at step 7."]
    assert verdict(config, records, 1.62) == lost
    records = [{"step": 10, "val_loss": 3.9, "stopped_early": "at the target"}]
    assert verdict(config, records, None)[1] == "The run stopped early: at the target."

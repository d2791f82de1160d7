"""No position sees beyond itself, with any switch of the model: the rule of the laptop track.

The switches are found in the config, so that a new one is tested without a line here.
"""

import typing
from typing import Any, Literal

import pytest
import torch

from quintic.config import ModelConfig, field_facts
from quintic.config.schema import Needs, field_types
from tests.model.test_base import tokens, with_drawn_weights

SIZES: dict[str, Any] = {"layers": 4, "width": 24, "heads": 2, "context": 16, "vocab_size": 40}
SWITCHES = [name for name in field_facts(ModelConfig) if name not in SIZES]
KINDS = field_types(ModelConfig)


def others(name: str) -> list[Any]:
    """Values of a field besides its default."""
    default, kind = field_facts(ModelConfig)[name].default, KINDS[name]
    if typing.get_origin(kind) is Literal:
        return [choice for choice in typing.get_args(kind) if choice != default]
    if kind is bool:
        return [not default]
    numbers: dict[Any, list[Any]] = {
        **{int: [1, 2], int | None: [5, 16]},
        **{float: [0.5, 2.0], float | None: [0.5, 15.0]},
    }
    return [value for value in numbers[kind] if value != default]


def values_with(name: str, value: Any) -> dict[str, Any]:
    """The fields of a small model with one of another value, and what that needs to have effect."""
    found = {**SIZES, name: value}
    facts = field_facts(ModelConfig)[name]
    for needs in filter(None, (facts.needs, *facts.part_of)):
        found = {**_meeting(needs), **found}
    return found


def _meeting(needs: Needs) -> dict[str, Any]:
    for full, wanted in needs.items():
        name = full.removeprefix("model.")
        if isinstance(wanted, bool | str):
            return {name: wanted}
        return values_with(name, others(name)[-1])
    return {}


CASES = [(name, value) for name in SWITCHES for value in others(name)]


def leaks(values: dict[str, Any]) -> None:
    """Change one token at a time, and every token of another sequence, and look at each logit."""
    if values.get("document_mask"):
        values = {"eot_id": 8, **values}  # the dataset's, which set-up fills in
    model, before = with_drawn_weights(ModelConfig(**values)), tokens(2, values["context"])
    with torch.no_grad():
        logits = model(before)
        for t in range(1, values["context"]):
            after = before.clone()
            after[0, t:] = (after[0, t:] + 1 + torch.arange(len(after[0, t:]))) % 40
            after[1] = (after[1] + 1) % 40
            changed = model(after)
            torch.testing.assert_close(changed[0, :t], logits[0, :t], rtol=0, atol=1e-12)
            assert (changed[0, t] - logits[0, t]).abs().max() > 1e-6  # its own token, it does see


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda part: str(part))
def test_no_switch_lets_a_position_see_beyond_itself(name: str, value: Any) -> None:
    leaks(values_with(name, value))


def test_nor_do_all_switches_that_are_on_or_off_together() -> None:
    on = {name: True for name in SWITCHES if KINDS[name] is bool}
    leaks({**SIZES, **on, "tied_head": False, "eot_id": 8, "window": 6, "value_embeddings": 2})


def test_every_switch_of_the_config_is_tried() -> None:
    assert {name for name, _ in CASES} | SIZES.keys() == field_facts(ModelConfig).keys()
    assert {"value_embeddings", "x0_skip", "unet_skips", "window_start"} <= {n for n, _ in CASES}

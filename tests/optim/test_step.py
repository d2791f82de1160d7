"""A parameter that the backward pass leaves out is named, and not left as it was in silence."""

from pathlib import Path

import pytest

from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import ALONE, World
from quintic.errors import QuinticError
from quintic.setup import set_up
from quintic.train import apply_schedule, forward_backward
from tests.conftest import tiny_config
from tests.multiprocess.worlds import run_world

LEFT_OUT = "layers.1.mlp.up.weight"


def said_of_a_second_step_without(world: World, configs: list[Config]) -> list[str]:
    """Of each config, what ends the run whose second backward pass leaves a parameter out."""
    said = []
    for config in configs:
        run = set_up(config, Path("unused"), Console(quiet=True), world)
        for step in range(2):
            run.state.model.get_parameter(LEFT_OUT).requires_grad_(step == 0)
            run.state.step = step
            apply_schedule(run, step)
            forward_backward(run, run.loader.batch(step, run.rows(step)))
            if step == 0:
                run.stepper.step(None)
        with pytest.raises(QuinticError) as caught:
            run.stepper.step(None)
        said.append(str(caught.value))
    return said


@pytest.mark.parametrize("size", [1, 2])
def test_a_parameter_without_a_gradient_is_named(tiny_data: Path, size: int) -> None:
    changes = {"model.width": 16, "train.micro_batch": 2}
    kinds = ("zero1",) if size == 1 else ("zero1", "fsdp")
    configs = [tiny_config(tiny_data, {**changes, "train.sharding": kind}) for kind in kinds]
    found = (
        [said_of_a_second_step_without(ALONE, configs)]
        if size == 1
        else run_world(size, said_of_a_second_step_without, configs)
    )
    for said in found:
        assert said == [
            f"the backward pass gave no gradient to {LEFT_OUT}: use it in the model's forward "
            "pass, or take it out of the model"
        ] * len(kinds)

"""Weights cast once a step (`train.cache_bf16_weights`), where processes share the optimizers' work."""

from pathlib import Path

from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import World
from quintic.setup import set_up
from quintic.train import apply_schedule, evaluate_run, forward_backward
from tests.conftest import tiny_config
from tests.multiprocess.worlds import run_world


def losses_of(world: World, configs: list[Config]) -> list[list[float]]:
    """Of each config, the losses of four steps and the validation loss after them."""
    found = []
    for config in configs:
        run = set_up(config, Path("unused"), Console(quiet=True), world)
        losses = []
        for step in range(4):
            apply_schedule(run, step)
            losses.append(float(forward_backward(run, run.loader.batch(step, run.rows(step)))))
            run.stepper.step(config.optim.clip_norm)
        found.append([*losses, evaluate_run(run)])
    return found


def test_it_changes_no_loss_where_the_weights_come_from_their_owners(tiny_data: Path) -> None:
    base = {"train.precision": "bfloat16", "train.micro_batch": 2, "optim.clip_norm": 1.0}
    configs = [
        tiny_config(tiny_data, {**base, "train.cache_bf16_weights": o}) for o in (False, True)
    ]
    each, once = run_world(2, losses_of, configs)[0]
    assert each == once
    assert each[-1] < each[0]

"""Runs over several epochs: stopped exactly where one ends, each is the run that never stopped.

An epoch is a whole number of steps here, so that a checkpoint can lie between two of them.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quintic.cli.main import main
from quintic.config import Config
from quintic.data.shards import write_shard
from quintic.distributed.world import ALONE
from quintic.run_dir import CHECKPOINTS
from tests.conftest import made_once, tiny_arguments, tiny_config
from tests.multiprocess.test_same_result import largest_difference, losses, resume_here, train_here
from tests.multiprocess.worlds import run_world
from tests.test_resume import quintic_process
from tests.waiting import wait_until

SEQUENCES, CONTEXT, STEPS_OF_EPOCH, EPOCHS = 6, 16, 5, 8
STEPS = STEPS_OF_EPOCH * EPOCHS
OPTIONS: dict[str, Any] = {
    "model.width": 16,
    "model.context": CONTEXT,
    "train.precision": "float64",
    "train.batch_tokens": SEQUENCES * CONTEXT,
    "train.steps": STEPS,
    "train.eval_every": 10,
    "train.eval_tokens": 64,
    "train.checkpoint_every": STEPS_OF_EPOCH,
    "train.keep_checkpoints": EPOCHS,
    "optim.schedule.cooldown_fraction": 0.0,
}


@pytest.fixture(scope="module")
def epoch_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose training tokens are a whole number of batches, and not one token more."""

    def make(folder: Path) -> None:
        random = np.random.default_rng(1)
        tokens = random.integers(0, 9, STEPS_OF_EPOCH * SEQUENCES * CONTEXT).cumsum() % 128
        write_shard(folder / "short_train_000001.bin", tokens[:100])
        write_shard(folder / "short_train_000002.bin", tokens[100:])
        write_shard(folder / "short_val_000000.bin", tokens[:65])

    return made_once(tmp_path_factory, "epoch-data", make)


def config_of(data: Path, order: str) -> Config:
    return tiny_config(data, {**OPTIONS, "data.order": order})


@pytest.fixture(scope="module")
def undisturbed(epoch_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that never stopped, with all their checkpoints, by order."""

    def make(root: Path) -> None:
        for order in ("stream", "shuffle"):
            train_here(ALONE, config_of(epoch_data, order), root / order)

    root = made_once(tmp_path_factory, "epochs-undisturbed", make)
    return {order: root / order for order in ("stream", "shuffle")}


def assert_same(folder: Path, expected: Path) -> None:
    """The same losses, and bit for bit the same state at the end."""
    assert losses(folder) == losses(expected)
    (file,) = (expected / CHECKPOINTS / f"step-{STEPS:08d}").glob("*.safetensors")
    again = load_file(folder / file.relative_to(expected))
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, again[name]), name


@pytest.mark.parametrize("order", ["stream", "shuffle"])
@pytest.mark.parametrize("epochs", [1, EPOCHS - 1])
def test_a_run_stopped_at_an_epochs_end_equals_one_never_stopped(
    undisturbed: dict[str, Path], epoch_data: Path, tmp_path: Path, order: str, epochs: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[order], folder)
    for path in (folder / CHECKPOINTS).iterdir():
        if int(path.name.removeprefix("step-")) > epochs * STEPS_OF_EPOCH:
            shutil.rmtree(path)
    assert resume_here(ALONE, config_of(epoch_data, order), folder)
    assert_same(folder, undisturbed[order])


def test_a_run_killed_at_an_epochs_end_equals_one_never_stopped(
    undisturbed: dict[str, Path], epoch_data: Path, tmp_path: Path
) -> None:
    folder, end = tmp_path / "run", 2 * STEPS_OF_EPOCH
    options = {**OPTIONS, "data.order": "shuffle"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    arguments = [*tiny_arguments(epoch_data), *flags, "--out", str(folder)]
    with quintic_process(arguments, f"hold_at({end}, until=lambda: False)") as process:
        saved = folder / CHECKPOINTS / f"step-{end:08d}"
        wait_until(saved.exists, "checkpoint", alive=lambda: process.poll() is None)
        process.kill()
        process.wait()
    assert max(step for _, step in losses(folder)) <= end
    main(["train", "--resume", str(folder)])
    assert_same(folder, undisturbed["shuffle"])


def test_a_run_of_two_processes_stopped_at_an_epochs_end_goes_on_with_three(
    undisturbed: dict[str, Path], epoch_data: Path, tmp_path: Path
) -> None:
    config, folder = config_of(epoch_data, "shuffle"), tmp_path / "run"
    saved = config.override({"train.steps": 2 * STEPS_OF_EPOCH})
    run_world(2, train_here, saved, folder)
    run_world(3, resume_here, config, folder)
    assert largest_difference(folder, undisturbed["shuffle"]) < 1e-9

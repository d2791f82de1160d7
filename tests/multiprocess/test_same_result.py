"""The number of processes changes no result: laws 2, 3 and 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import World
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, read_records
from quintic.resuming import resume
from quintic.setup import set_up, start
from quintic.train import train_run
from tests.conftest import made_once, tiny_config
from tests.multiprocess.worlds import run_world

STEPS = 30
SIZES = (1, 2, 3, 4)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "muon": {"optim.clip_norm": 1.0},
    "adamw": {"optim.matrices": "adamw", "optim.adamw.weight_decay": 0.1},
    "gpt2": {"model.architecture": "gpt2", "optim.adamw.weight_decay": 0.1},
}


def train_here(world: World, config: Config, folder: Path) -> tuple[bool, int]:
    """Train a whole run; whether it ended, and the bytes that this rank sent."""
    return train_run(start(config, folder, Console(quiet=True), world), Console(quiet=True)), (
        world.sent_bytes
    )


def resume_here(world: World, config: Config, folder: Path) -> bool:
    """Continue a run to its end."""
    return train_run(resume(folder, config, Console(quiet=True), world), Console(quiet=True))


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """Training, validation losses and gradient norms by kind and step."""
    return {
        (kind, record["step"]): record[kind]
        for record in read_records(folder / METRICS)
        for kind in ("train_loss", "val_loss", "grad_norm")
        if kind in record
    }


def largest_difference(folder: Path, other: Path) -> float:
    """Between all losses of two runs, which must have the same ones."""
    one, two = losses(folder), losses(other)
    assert one.keys() == two.keys() and len(one) > STEPS
    return max(abs(one[key] - two[key]) for key in one)


def config_of(data: Path, precision: str, **changes: Any) -> Config:
    return tiny_config(
        data,
        {
            "train.steps": STEPS,
            "train.precision": precision,
            "train.micro_batch": 2,
            "train.eval_every": 10,
            "train.checkpoint_every": 1000,
            **changes,
        },
    )


@pytest.fixture(scope="session")
def alone(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Runs of one process, by optimizer and precision."""

    def make(root: Path) -> None:
        for name, precision in kinds:
            config = config_of(tiny_data, precision, **OPTIMIZERS[name])
            train_here(World(), config, root / name / precision)

    kinds = [(name, precision) for name in OPTIMIZERS for precision in ("float64", "float32")]
    root = made_once(tmp_path_factory, "alone", make)
    return {(name, precision): root / name / precision for name, precision in kinds}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("sharding", ["zero1", "fsdp"])
@pytest.mark.parametrize("size", SIZES[1:])
def test_losses_of_30_steps_in_float64_are_those_of_one_process_to_1e_9(
    alone: dict[tuple[str, str], Path],
    tiny_data: Path,
    tmp_path: Path,
    optimizer: str,
    sharding: str,
    size: int,
) -> None:
    changes = {**OPTIMIZERS[optimizer], "train.sharding": sharding}
    run_world(size, train_here, config_of(tiny_data, "float64", **changes), tmp_path / "run")
    assert largest_difference(alone[optimizer, "float64"], tmp_path / "run") < 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("sharding", ["zero1", "fsdp"])
def test_in_float32_only_the_order_of_additions_differs(
    alone: dict[tuple[str, str], Path],
    tiny_data: Path,
    tmp_path: Path,
    optimizer: str,
    sharding: str,
) -> None:
    changes = {**OPTIMIZERS[optimizer], "train.sharding": sharding}
    run_world(3, train_here, config_of(tiny_data, "float32", **changes), tmp_path / "run")
    # Muon's iteration amplifies rounding in directions that gradients hardly have (docs/muon.md).
    assert 0 < largest_difference(alone[optimizer, "float32"], tmp_path / "run") < 2e-3


def test_processes_with_fewer_micro_batches_than_others_change_nothing(
    alone: dict[tuple[str, str], Path], tiny_data: Path, tmp_path: Path
) -> None:
    # 8 sequences on 3 processes are 3, 3 and 2; one at a time, the last has one less.
    for sharding in ("zero1", "fsdp"):
        changes = {
            **OPTIMIZERS["muon"],
            "train.sharding": sharding,
            "train.micro_batch": 1,
        }
        config = config_of(tiny_data, "float64", **changes)
        run_world(3, train_here, config, tmp_path / sharding)
        assert largest_difference(alone["muon", "float64"], tmp_path / sharding) < 1e-9


def test_all_that_is_scheduled_is_the_same_for_every_number_of_processes(
    tiny_data: Path, tmp_path: Path
) -> None:
    # Stages of 4 and of 8 sequences: on 3 processes 2, 1, 1 and 3, 3, 2, on 4 one and two each.
    changes = {"model.window": 20, "model.window_start": 3, "train.mtp_tokens": 3}
    config = config_of(tiny_data, "float64", **changes, **{"train.batch_stages": 2})
    train_here(World(), config, tmp_path / "alone")
    for size, sharding in ((2, "zero1"), (3, "fsdp"), (4, "zero1")):
        folder = tmp_path / f"{size}"
        run_world(size, train_here, config.override({"train.sharding": sharding}), folder)
        assert largest_difference(tmp_path / "alone", folder) < 1e-9
    tokens = {r["step"]: r["tokens"] for r in read_records(folder / METRICS)}
    assert (tokens[0], tokens[15], tokens[20], tokens[30]) == (0, 1920, 3200, 5760)
    with pytest.raises(QuinticError, match=r"a batch of 4 .* among 5 .* --train.batch-tokens 320$"):
        set_up(config, tmp_path, Console(quiet=True), World(rank=0, size=5))


def test_activation_checkpointing_changes_nothing(
    alone: dict[tuple[str, str], Path], tiny_data: Path, tmp_path: Path
) -> None:
    changes = {**OPTIMIZERS["muon"], "train.activation_checkpointing": True}
    train_here(World(), config_of(tiny_data, "float64", **changes), tmp_path / "alone")
    assert largest_difference(alone["muon", "float64"], tmp_path / "alone") == 0
    config = config_of(tiny_data, "float64", **changes, **{"train.sharding": "fsdp"})
    run_world(2, train_here, config, tmp_path / "sharded")
    assert largest_difference(alone["muon", "float64"], tmp_path / "sharded") < 1e-9

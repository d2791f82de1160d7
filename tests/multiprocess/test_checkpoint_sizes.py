"""A checkpoint knows nothing of the number of processes or the sharding that wrote it: law 3."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from quintic.distributed.world import World
from tests.conftest import made_once
from tests.multiprocess.test_same_result import (
    OPTIMIZERS,
    config_of,
    largest_difference,
    resume_here,
    train_here,
)
from tests.multiprocess.worlds import run_world

SAVED_AT = 20


def world_of(size: int, function: Any, *arguments: Any) -> list[Any]:
    return run_world(size, function, *arguments) if size > 1 else [function(World(), *arguments)]


def train_until_saved(world: World, config: Any, folder: Path) -> None:
    """Train a run that ends early: its learning rates are those of the whole run."""
    train_here(world, config.override({"train.steps": SAVED_AT}), folder)


@pytest.fixture(scope="session")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole runs of one process with a constant learning rate, by optimizer."""

    def make(root: Path) -> None:
        for name in OPTIMIZERS:
            train_here(World(), constant_lr(tiny_data, name), root / name)

    root = made_once(tmp_path_factory, "constant-lr", make)
    return {name: root / name for name in OPTIMIZERS}


def constant_lr(data: Path, optimizer: str, sharding: str = "zero1") -> Any:
    changes = {
        **OPTIMIZERS[optimizer],
        "train.sharding": sharding,
        "optim.schedule.cooldown_fraction": 0.0,
    }
    return config_of(data, "float64", **changes)


@pytest.fixture(scope="session")
def stopped(
    undisturbed: dict[str, Path], tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Runs of 1 to 4 processes that have trained and saved their first steps."""

    def make(root: Path) -> None:
        for size in range(1, 5):
            config = constant_lr(tiny_data, "muon")
            world_of(size, train_until_saved, config, root / str(size))

    root = made_once(tmp_path_factory, "stopped", make)
    return {size: root / str(size) for size in range(1, 5)}


@pytest.mark.parametrize("resumed_on", range(1, 5))
@pytest.mark.parametrize("saved_on", range(1, 5))
def test_saved_on_one_number_of_processes_resumed_on_another_goes_on_as_if_never_stopped(
    undisturbed: dict[str, Path],
    stopped: dict[int, Path],
    tiny_data: Path,
    tmp_path: Path,
    saved_on: int,
    resumed_on: int,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped[saved_on], folder)
    world_of(resumed_on, resume_here, constant_lr(tiny_data, "muon"), folder)
    assert largest_difference(undisturbed["muon"], folder) < 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("saved", "resumed"),
    [((2, "fsdp"), (1, "zero1")), ((3, "zero1"), (2, "fsdp")), ((4, "fsdp"), (3, "fsdp"))],
)
def test_sharding_may_change_between_save_and_resume(
    undisturbed: dict[str, Path],
    tiny_data: Path,
    tmp_path: Path,
    optimizer: str,
    saved: tuple[int, str],
    resumed: tuple[int, str],
) -> None:
    folder = tmp_path / "run"
    world_of(saved[0], train_until_saved, constant_lr(tiny_data, optimizer, saved[1]), folder)
    world_of(resumed[0], resume_here, constant_lr(tiny_data, optimizer, resumed[1]), folder)
    assert largest_difference(undisturbed[optimizer], folder) < 1e-9


def test_every_element_is_stored_once_whoever_saved(stopped: dict[int, Path]) -> None:
    def stored(folder: Path) -> tuple[int, set[str]]:
        files = sorted((folder / "checkpoints" / f"step-{SAVED_AT:08d}").glob("*.safetensors"))
        elements, names = 0, set()
        for file in files:
            with safe_open(file, framework="pt") as f:
                names |= set(f.keys())
                elements += sum(f.get_tensor(name).numel() for name in f.keys())  # noqa: SIM118
        return elements, names

    alone = stored(stopped[1])
    assert alone[0] > 0 and not any("module." in name for name in alone[1])
    assert all(stored(stopped[size]) == alone for size in (2, 3, 4))

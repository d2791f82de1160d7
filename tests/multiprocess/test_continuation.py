"""Several processes begin with a checkpoint that one process wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quintic.console import Console
from quintic.continuation import continue_run, start_from
from quintic.distributed.world import ALONE, World
from quintic.run_dir import CHECKPOINTS, read_config
from quintic.train import train_run
from tests.multiprocess.test_same_result import losses
from tests.multiprocess.worlds import run_world


def go_on(world: World, origin: Path, root: Path, sharding: str) -> None:
    """Train two more steps of a finished run, and two with its weights."""
    console = Console(quiet=True)
    config = read_config(origin).override({"train.sharding": sharding, "train.eval_every": 1})
    tuned = config.override({"train.steps": 2, "data.order": "shuffle"})
    train_run(start_from(origin, tuned, root / "tuned", console, world), console)
    longer = read_config(origin).override({"train.steps": 14, "train.sharding": sharding})
    train_run(continue_run(origin, longer, root / "longer", console, world), console)


def test_two_processes_go_on_from_a_run_as_one_does(tiny_run: Path, tmp_path: Path) -> None:
    origin = tmp_path / "run"
    shutil.copytree(tiny_run, origin)
    go_on(ALONE, origin, tmp_path / "one", "zero1")
    run_world(2, go_on, origin, tmp_path / "two", "fsdp")
    for name in ("tuned", "longer"):
        one, two = (losses(tmp_path / count / name) for count in ("one", "two"))
        assert one.keys() == two.keys()
        assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
        assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["longer", "tuned"]
    final = losses(origin)["val_loss", 12]
    assert losses(tmp_path / "two" / "tuned")["val_loss", 0] == pytest.approx(final, rel=1e-6)
    assert (tmp_path / "two" / "longer" / CHECKPOINTS / "step-00000014").exists()

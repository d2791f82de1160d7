"""A run of two processes that nothing disturbs, for those that are disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import flags_of, made_once, tiny_config, tiny_options
from tests.multiprocess.test_same_result import train_here
from tests.multiprocess.worlds import run_world

STEPS = 120
LONG: dict[str, Any] = {
    "data.order": "shuffle",
    "optim.clip_norm": 1.0,
    "train.precision": "float64",
    "train.steps": STEPS,
    "train.eval_every": 25,
    "train.checkpoint_every": 10,
}
"""A run long enough to be disturbed: seconds, with a checkpoint every 10 steps."""


@pytest.fixture(scope="session")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the long run on two processes; tests must not change it."""

    def make(folder: Path) -> None:
        run_world(2, train_here, tiny_config(tiny_data, LONG), folder / "run")

    return made_once(tmp_path_factory, "undisturbed", make) / "run"


@pytest.fixture
def long_run(tiny_data: Path) -> list[str]:
    """The command line of the same run, without its folder and its launcher."""
    flags = flags_of({**tiny_options(tiny_data), **LONG})
    return ["train", "laptop", *flags, "--train.no-report", "--train.log-to"]

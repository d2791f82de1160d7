"""What a run of several processes says when it has ended: rank 0 alone, without the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import World
from quintic.run_lines import closing_lines
from quintic.setup import start
from quintic.train import train_run
from tests.conftest import tiny_config
from tests.multiprocess.worlds import run_world


def train_and_close(world: World, config: Config, folder: Path) -> str:
    """Train a run; what rank 0 says then, while the others have gone on."""
    run = start(config, folder, Console(quiet=True), world)
    train_run(run, Console(quiet=True))
    return "\n".join(closing_lines(run)) if world.is_main else ""


@pytest.mark.parametrize(
    ("sharding", "expected"),
    [("zero1", "sample: the first 48 tokens"), ("fsdp", "no sample: the weights are divided")],
)
def test_rank_0_closes_a_run_by_itself(
    text_data: Path, tmp_path: Path, sharding: str, expected: str
) -> None:
    changes = {"model.vocab_size": None, "train.sharding": sharding}
    config = tiny_config(text_data, changes)
    said, silence = run_world(2, train_and_close, config, tmp_path / "run")
    assert silence == ""
    assert "bits per byte" in said and expected in said and "loss.png" in said

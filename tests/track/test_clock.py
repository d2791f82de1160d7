"""The time of a run: the first step and what it warms up count, what is no training does not."""

from pathlib import Path
from typing import Any

import pytest

import quintic.train
from quintic.checkpoint_writer import CheckpointWriter
from quintic.errors import QuinticError
from quintic.metrics_file import read_records
from quintic.track.clock import training_seconds
from tests.conftest import main, tiny_arguments


class Clock:
    """Stands still but for what a test says takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def taking(self, seconds: list[float], function: Any) -> Any:
        """Return the function, whose calls take so many seconds, the first first."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.now += seconds.pop(0) if len(seconds) > 1 else seconds[0]
            return function(*arguments, **options)

        return timed


def test_the_first_step_counts_and_neither_preparation_nor_checkpoint_nor_the_last_validation(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, train = Clock(), quintic.train
    monkeypatch.setattr("quintic.device.time", clock)
    monkeypatch.setattr("quintic.train.time", clock)
    for name, seconds in {
        "evaluate_run": [3.0, 5000.0],  # the second is the one at the end
        "forward_backward": [100.0, 10.0],  # the first compiles
        "_open_metrics": [70_000.0],
    }.items():
        monkeypatch.setattr(train, name, clock.taking(seconds, getattr(train, name)))
    save = CheckpointWriter.save
    monkeypatch.setattr(CheckpointWriter, "save", clock.taking([900_000.0], save))
    every = ["--train.steps", "4", "--train.eval-every", "4", "--train.checkpoint-every", "2"]
    main([*tiny_arguments(tiny_data), *every, "--out", str(tmp_path / "run")])
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert training_seconds(records, 4) == 3 + 100 + 3 * 10
    with pytest.raises(QuinticError, match=r"^a run of 5 steps has the losses of 4 and valid"):
        training_seconds(records, 5)
    with pytest.raises(QuinticError, match="its time is not known"):
        training_seconds(records[1:], 4)

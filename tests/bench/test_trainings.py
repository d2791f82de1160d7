"""Runs of a bench that are there already, and the end of the time; the rest by bench.ladder."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from bench.trainings import OutOfTimeError, copy_records, train_all

from quintic.compare.runs import read_run
from quintic.run_dir import read_config
from quintic.sweep.plan import PlannedRun


def test_after_the_end_of_the_time_only_what_is_there_already_has_a_loss(
    text_run: Path, tmp_path: Path
) -> None:
    run = PlannedRun(text_run.name, {}, read_config(text_run))
    said: list[str] = []
    losses = train_all([run], text_run.parent, end=-math.inf, say=said.append)
    assert losses == {run.name: read_run(text_run).final_loss}
    for runs in ([replace(run, name="new")], [run, replace(run, name="new")]):
        with pytest.raises(OutOfTimeError):
            train_all(runs, tmp_path / "runs", end=-math.inf, say=said.append)
    assert said == []
    assert not list((tmp_path / "runs").iterdir())


def test_records_of_a_run_are_copied(text_run: Path, tmp_path: Path) -> None:
    copy_records(text_run, tmp_path / "results" / "run")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "results" / "run").iterdir()}
    names = ("config.json", "environment.json", "metrics.jsonl")
    assert copied == {name: (text_run / name).read_bytes() for name in names}

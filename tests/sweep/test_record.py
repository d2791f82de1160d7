"""sweep.json and run folders: what is known of a run, and whose sweep a folder holds."""

import json
import shutil
from pathlib import Path

import pytest

from quintic import run_dir
from quintic.cli.grid import parse_vary
from quintic.errors import QuinticError
from quintic.metrics_file import read_records
from quintic.recipes import get_recipe
from quintic.sweep.plan import Plan, PlannedRun, make_plan
from quintic.sweep.record import (
    RECORD,
    Outcome,
    outcome_in,
    read_outcomes,
    steps_done,
    write_record,
)


def plan(*varied: str, seeds: int = 1, **changes: object) -> Plan:
    base = get_recipe("laptop-plain").override(changes)
    return make_plan(base, [parse_vary(text) for text in varied], seeds=seeds)


def as_begun(folder: Path, of: Plan, *outcomes: Outcome) -> None:
    """A sweep folder on disk, with a run folder for each run."""
    folder.mkdir()
    for run in of.runs:
        run_dir.create(folder / run.name, run.config, "")
    write_record(folder, of, {run.name: o for run, o in zip(of.runs, outcomes, strict=True)})


def test_a_run_counts_as_finished_only_with_its_last_validation_and_its_last_state(
    tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    run = PlannedRun("run", {}, run_dir.read_config(tiny_run))
    metrics = folder / "metrics.jsonl"
    loss = read_records(metrics)[-1]["val_loss"]
    assert outcome_in(folder, run) == Outcome("finished", loss)
    assert not outcome_in(folder, run).learned_nothing
    assert steps_done(folder) == 12
    shutil.move(folder / "checkpoints" / "step-00000012", tmp_path / "away")
    assert outcome_in(folder, run) == Outcome()
    shutil.move(tmp_path / "away", folder / "checkpoints" / "step-00000012")
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:-1]))
    assert outcome_in(folder, run) == Outcome()
    for loss in ("NaN", 'null, "diverged": {"train_loss": "nan"}'):  # before 0.2 and since
        metrics.write_text(lines[0] + f'{{"step": 1, "train_loss": {loss}}}\n{{"step": 2, "tr')
        assert outcome_in(folder, run).kind == "diverged"
        assert steps_done(folder) == 0, "the last line is not whole yet"
    metrics.write_text("".join(lines[:-1]) + '{"step": 12, "val_loss": 4.852}\n')
    guessed = outcome_in(folder, run)
    assert guessed.learned_nothing
    assert guessed.message == (
        "the loss is no better than that of guessing among all 128 tokens, 4.8520"
    )
    metrics.unlink()
    assert outcome_in(folder, run) == Outcome()
    assert steps_done(folder) == 0


def test_what_is_recorded_is_known_again_and_what_failed_or_is_gone_is_to_be_done(
    tmp_path: Path,
) -> None:
    of = plan("model.layers=1,2,3,4")
    outcomes = [
        Outcome("finished", 3.25),
        Outcome("diverged", None, "at step 3"),
        Outcome("failed"),
    ]
    as_begun(tmp_path / "s", of, *outcomes, Outcome("finished", 3.5))
    shutil.rmtree(tmp_path / "s" / of.runs[3].name)
    assert list(read_outcomes(tmp_path / "s", of).values()) == [*outcomes[:2], Outcome(), Outcome()]


def test_a_sweep_may_grow_by_values_and_seeds_and_keeps_what_it_has(tmp_path: Path) -> None:
    of = plan("model.layers=2,4")
    as_begun(tmp_path / "s", of, Outcome("finished", 3.0), Outcome("finished", 2.0))
    known = read_outcomes(tmp_path / "s", plan("model.layers=1,4,2", seeds=2))
    assert {name: o.val_loss for name, o in known.items()} == {
        **{
            "model.layers=1,seed=1337": None,
            "model.layers=4,seed=1337": 2.0,
            "model.layers=2,seed=1337": 3.0,
        },
        **dict.fromkeys(
            ("model.layers=1,seed=1338", "model.layers=4,seed=1338", "model.layers=2,seed=1338")
        ),
    }


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            plan("model.layers=2"),
            "with model.layers=4,seed=1337, which this one lacks: choose another --",
        ),
        (plan("model.layers=2,4", **{"train.seed": 1}), "with another train.seed: choose another"),
        (
            plan("model.layers=2,4", **{"model.width": 64}),
            "with another model.width: choose anothe",
        ),
        (plan("model.width=64,128"), "which varies model.layers: choose another --out"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(other: Plan, message: str, tmp_path: Path) -> None:
    as_begun(tmp_path / "s", plan("model.layers=2,4"), Outcome(), Outcome())
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(QuinticError) as caught:
        read_outcomes(tmp_path / "s", other)
    assert str(caught.value).startswith(f"{tmp_path / 's'} holds another sweep, {message}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_varied_field_may_have_another_value_in_the_recipe(tmp_path: Path) -> None:
    """Since none of the runs has it."""
    of = plan("model.layers=2,4")
    as_begun(tmp_path / "s", of, Outcome("finished", 3.0), Outcome())
    again = read_outcomes(tmp_path / "s", plan("model.layers=2,4", **{"model.layers": 7}))
    assert again["model.layers=2,seed=1337"] == Outcome("finished", 3.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not the record of a sweep: choose another --out"),
        ("[]", "is not the record of a sweep"),
        ("{}", "is not the record of a sweep"),
        (
            '{"base": {"train": {"stesp": 3}}, "varied": [], "runs": []}',
            "is not the record of a sw",
        ),
    ],
)
def test_a_damaged_record_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(QuinticError) as caught:
        read_outcomes(tmp_path, plan("model.layers=2"))
    assert message in str(caught.value)


def test_a_folder_with_anything_else_in_it_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, message in {
        tiny_run: f"--out {tiny_run} is not empty and holds no sweep: choose another",
        tmp_path / "file": f"--out {tmp_path / 'file'} is not a folder: choose another",
    }.items():
        with pytest.raises(QuinticError, match=message):
            read_outcomes(out, plan("model.layers=2"))


def test_the_record_says_what_was_asked_and_is_plain_json(tmp_path: Path) -> None:
    of = plan("optim.adamw.betas=0.9 0.95,0.8 0.9", "optim.clip_norm=None,1", seeds=2)
    as_begun(tmp_path / "s", of, *[Outcome()] * 8)
    record = json.loads((tmp_path / "s" / RECORD).read_text(), parse_constant=pytest.fail)
    assert record["varied"] == [
        {"field": "optim.adamw.betas", "values": [[0.9, 0.95], [0.8, 0.9]]},
        {"field": "optim.clip_norm", "values": [None, 1.0]},
    ]
    assert (record["seeds"], record["random"], record["base"]["recipe"]) == (
        2,
        None,
        "laptop-plain",
    )
    assert record["runs"][0] == {
        "name": "adamw.betas=0.9_0.95,optim.clip_norm=None,seed=1337",
        "values": {"optim.adamw.betas": [0.9, 0.95], "optim.clip_norm": None},
        **{"seed": 1337, "outcome": "unfinished", "val_loss": None, "message": None},
    }

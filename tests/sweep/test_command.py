"""`quintic sweep` with real runs: killed, stopped, diverged, failed, extended, refused."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quintic import run_dir
from quintic.cli.main import main
from quintic.metrics_file import read_records
from quintic.run_checkpoints import checkpoints
from quintic.sweep.execute import Job, run_environment
from quintic.sweep.plan import PlannedRun
from quintic.sweep.record import Outcome
from tests import warm
from tests.conftest import refusal, tiny_arguments, tiny_config
from tests.waiting import outputs, wait_until

pytestmark = pytest.mark.usefixtures("warm_runs")

Capture = pytest.CaptureFixture[str]
VARY = ["--vary", "optim.adamw.lr=0.005,1e30"]


def sweep_of(data: Path, *options: str) -> list[str]:
    """The command line of a sweep over tiny runs."""
    return ["sweep", *tiny_arguments(data)[1:], *options]


@contextmanager
def sweep_process(
    arguments: list[str], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = warm.Popen(
        [sys.executable, "-m", "quintic", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def steps_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("train_loss") if path.exists() else 0


def starts_of(run: Path) -> int:
    return len(json.loads((run / run_dir.ENVIRONMENT).read_text()))


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


HALF_DONE = """
import quintic.train
from tests.moments import hold
def half_done(run, step):
    config = run.config
    return (step, config.train.seed, config.optim.adamw.lr) == (12, 1338, 0.005)
hold(quintic.train, "apply_schedule", half_done)
"""
"""The third run waits there to be killed."""


def test_killed_and_started_again_it_does_no_run_twice_and_what_diverged_stops_nothing(
    tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A learning rate that learns and one that diverges, with two seeds each, killed with its third
    run half done."""
    folder = tmp_path / "s"
    arguments = sweep_of(
        tiny_data,
        *(*VARY, "--seeds", "2", "--out", str(folder)),
        *("--train.steps", "60", "--train.eval-every", "30"),
    )
    third = folder / "adamw.lr=0.005,seed=1338"
    (tmp_path / "sitecustomize.py").write_text(HALF_DONE)
    with sweep_process(arguments, {"PYTHONPATH": str(tmp_path)}) as sweep:
        wait_until(
            lambda: steps_of(third) >= 12, "the third run", alive=lambda: sweep.poll() is None
        )
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(sweep.pid)], capture_output=True, text=True
        ).stdout.split()
        sweep.kill()
        sweep.wait()
        assert len(children) == 1, "one run at a time"
        os.kill(int(children[0]), signal.SIGKILL)
    assert 12 <= steps_of(third) < 60
    main(arguments)

    assert {path.parent.name: starts_of(path.parent) for path in runs_in(folder)} == {
        "adamw.lr=0.005,seed=1337": 1,
        "adamw.lr=1e+30,seed=1337": 1,
        "adamw.lr=0.005,seed=1338": 2,
        "adamw.lr=1e+30,seed=1338": 1,
    }
    assert "resuming from" in (folder / f"{third.name}.log").read_text()
    record = record_of(folder)
    assert [(run["seed"], run["outcome"]) for run in record["runs"]] == [
        *((1337, "finished"), (1337, "diverged"), (1338, "finished"), (1338, "diverged")),
    ]
    for run in record["runs"]:
        if run["outcome"] == "diverged":
            assert "training has diverged" in run["message"]
            assert run["val_loss"] is None
        else:
            last = read_records(folder / run["name"] / "metrics.jsonl")[-1]
            assert (last["step"], last["val_loss"]) == (60, run["val_loss"])
    losses = [run["val_loss"] for run in record["runs"] if run["val_loss"] is not None]
    assert record["best"]["values"] == {"optim.adamw.lr": 0.005}
    assert record["best"]["mean"] == pytest.approx(sum(losses) / 2)
    assert record["best"]["standard_error"] == pytest.approx(abs(losses[0] - losses[1]) / 2)

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*")}
    capsys.readouterr()
    main(arguments)
    out = capsys.readouterr().out
    assert "training " not in out
    assert "4 done" in out
    assert re.search(r"0\.005 +\d\.\d{4} ± 0\.\d{4} +2/2 +best", out)
    assert re.search(r"1e\+30 +– +0/2 +diverged", out)
    assert "note: the best optim.adamw.lr, 0.005, is the smallest tried: extend the sweep" in out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*")} == before


def runs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/environment.json"))


def test_ctrl_c_saves_the_runs_and_says_how_to_continue(tiny_data: Path, tmp_path: Path) -> None:
    arguments = sweep_of(
        tiny_data,
        *("--vary", "optim.muon.lr=0.01,0.02", "--jobs", "2", "--out", str(tmp_path / "s")),
        *("--train.steps", "100000", "--train.eval-every", "100000"),
    )
    runs = [tmp_path / "s" / f"muon.lr={lr},seed=1337" for lr in ("0.01", "0.02")]
    with sweep_process(arguments) as sweep:
        wait_until(
            lambda: all(steps_of(run) >= 10 for run in runs),
            "step 10 of both runs",
            alive=lambda: sweep.poll() is None,
        )
        sweep.send_signal(signal.SIGINT)
        out, _ = outputs(sweep)
    assert sweep.returncode == 130
    assert out.rstrip().endswith("stopped and saved; the same command continues the sweep")
    for run in runs:
        held = run_dir.lock(run)  # nobody trains in it any more
        held.release()
        assert checkpoints(run / "checkpoints")[-1].name == f"step-{steps_of(run):08d}"
    assert [run["outcome"] for run in record_of(tmp_path / "s")["runs"]] == ["unfinished"] * 2


def test_a_run_that_fails_is_told_of_at_the_end_and_the_best_of_the_others_is_a_recipe(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """More tokens in a batch than there are to train on: only the run itself finds that."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(sweep_of(tiny_data, "--vary", "train.batch_tokens=16384,512"))
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("quintic: 1 of 2 runs failed, see above and runs/laptop-sweep/")
    assert said.err.count("\n") == 1
    failed, finished = record_of(tmp_path / "runs" / "laptop-sweep")["runs"]
    assert (failed["outcome"], finished["outcome"]) == ("failed", "finished")
    assert "has 12,000 training tokens, one batch needs 16,385" in failed["message"]
    assert f"failed: {failed['name']}: {failed['message']}" in said.out

    best = "runs/laptop-sweep/best.json"
    assert f"best    train.batch_tokens=512: quintic train {best}" in said.out
    main(["train", best, "--train.steps", "2"])
    config = run_dir.read_config(Path("runs/laptop-1"))
    assert (config.recipe, config.train.batch_tokens, config.train.seed) == ("laptop", 512, 1337)
    assert (config.train.steps, config.model.width) == (2, 32)
    capsys.readouterr()
    main(["train", best, "--out", "runs/laptop-1", "--auto-resume"])
    assert "runs/laptop-1 is complete" in capsys.readouterr().out


def test_a_run_that_an_earlier_start_still_trains_is_waited_for_and_not_started_twice(
    tiny_run: Path, tmp_path: Path
) -> None:
    """As after the sweep alone was killed: its run goes on, with the log as its output."""
    config = run_dir.read_config(tiny_run)
    run = PlannedRun("run", {}, config)
    with (tmp_path / "run.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        orphan = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=log
        )
    job = Job(run, tmp_path, os.environ)
    assert job.outcome() is None
    assert job.waits
    assert not job.stop(), "it is not ours to stop"
    shutil.copytree(tiny_run, tmp_path / "run")
    assert job.outcome() is None
    orphan.communicate(b"\n")
    found = job.outcome()
    assert found is not None
    assert (found.kind, found.val_loss) == (
        "finished",
        read_records(tiny_run / "metrics.jsonl")[-1]["val_loss"],
    )
    assert not (tmp_path / "run.json").exists(), "no process was started"


def test_a_run_that_is_killed_has_failed_and_the_reason_is_said(
    tiny_data: Path, tmp_path: Path
) -> None:
    job = Job(PlannedRun("run", {}, tiny_config(tiny_data)), tmp_path, os.environ)
    assert job.outcome() is None
    job.kill()
    assert job.outcome() == Outcome("failed", message="was ended by SIGKILL")


@pytest.mark.parametrize(("jobs", "threads"), [(1, None), (2, "4"), (3, "2"), (100, "1")])
def test_the_cores_are_divided_among_the_runs_that_go_on_at_once(
    jobs: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quintic.sweep.execute.available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    environment = run_environment(jobs)
    assert environment.get("OMP_NUM_THREADS") == threads
    assert environment.get("OMP_WAIT_POLICY") == ("passive" if jobs > 1 else None)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert run_environment(jobs)["OMP_NUM_THREADS"] == "5", "what the user set stays"


def test_the_runs_wait_for_no_processes_of_a_launcher_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert not {"WORLD_SIZE", "RANK"} & run_environment(1).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "sweep needs something to vary: --vary optim.muon.lr="),
        (("--vary", "optim.muon.lr=fast"), "--vary optim.muon.lr has the value 'fast'"),
        (("--vary", "optim.muon.lr=1", "--jobs", "0"), "--jobs is 0: it must be at least 1"),
        (
            ("--vary", "optim.muon.lr=1", "--job", "2"),
            "there is no option --job: did you mean --jobs",
        ),
        (("--vary", "optim.muon.lr=1", "--train.device", "cuda"), "there is no cuda device here"),
        (("--vary", "optim.muon.lr=1", "--data.path", "nowhere"), "dataset nowhere"),
        (("--vary", "optim.muon.lr=1", "--model.vocab-size", "None"), "the vocabulary of "),
        (("--vary", "optim.muon.lr=1", "--random", "x"), "--random is 'x': it must be an integer"),
    ],
)
def test_what_would_fail_in_every_run_is_refused_before_anything_is_written(
    options: tuple[str, ...],
    message: str,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refusal(sweep_of(tiny_data, *options), capsys).startswith(message)
    assert not list(tmp_path.iterdir())


def test_two_sweeps_at_once_in_one_folder_are_refused(
    tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    held = run_dir.lock(tmp_path)
    try:
        message = refusal(sweep_of(tiny_data, *VARY, "--out", str(tmp_path)), capsys)
    finally:
        held.release()
    assert message.startswith(f"{tmp_path} is in use by another process")
    assert not (tmp_path / "sweep.json").exists()

"""SIGTERM and Ctrl-C: all ranks agree on the step, save once, exit 0; the run goes on from there.

Nothing is lost beyond the step in progress, and the continued run has bit for bit the losses of one
that nothing disturbed.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from quintic.runfolder import holds_run
from tests.multiprocess.commands import (
    Command,
    assert_tidy,
    losses,
    running,
    steps_done,
    whole_checkpoints,
)

SLOW_MOMENTS = {
    "a step": """
import time, quintic.train
own = quintic.train.apply_schedule
def slow(config, optimizers, step):
    if step == 33:
        print("now", flush=True); time.sleep(1)
    return own(config, optimizers, step)
quintic.train.apply_schedule = slow
""",
    "validation": """
import time, quintic.train
own = quintic.train.evaluate_run
def slow(run, watchdog=None):
    if run.state.step == 50:
        print("now", flush=True); time.sleep(1)
    return own(run, watchdog)
quintic.train.evaluate_run = slow
""",
    "a checkpoint": """
import time, quintic.checkpoint
own = quintic.checkpoint.save_checkpoint
def slow(root, tensors, state, world=None):
    if state["step"] == 40:
        print("now", flush=True); time.sleep(1)
    return own(root, tensors, state, world)
quintic.checkpoint.save_checkpoint = slow
""",
}
"""On rank 1 these take a second, which begins when it says "now"."""


def assert_continues(
    command: Command, arguments: list[str], folder: Path, logs: Path, undisturbed: Path
) -> None:
    """The stopped run has saved its last step, once; its continuation is the undisturbed run."""
    assert command.alive() == {}
    assert_tidy(folder)
    assert whole_checkpoints(folder)[-1] == steps_done(folder) < 200
    assert losses(folder) == losses(undisturbed)[: len(losses(folder))]
    with running([*arguments, "--procs", "2", "--auto-resume"], logs) as again:
        assert (again.wait(), again.errors) == (0, "")
    assert f"resuming from {folder}/checkpoints/step-" in again.output
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)


@pytest.mark.parametrize(
    ("moment", "number", "rank"),
    [
        ("a step", signal.SIGTERM, None),
        ("validation", signal.SIGTERM, None),
        ("a checkpoint", signal.SIGTERM, None),
        ("a step", signal.SIGINT, None),
        ("a step", signal.SIGTERM, 1),
    ],
)
def test_a_signal_to_the_launcher_or_to_one_rank_stops_all_at_one_step(
    long_run: list[str],
    tmp_path: Path,
    undisturbed: Path,
    moment: str,
    number: signal.Signals,
    rank: int | None,
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, "--out", str(folder)]
    launched = [*arguments, "--procs", "2", "--max-restarts", "3"]
    with running(launched, tmp_path / "first", fault=SLOW_MOMENTS[moment]) as run:
        run.until(lambda: "now" in run.output, moment)
        done = steps_done(folder)
        run.signal(number, rank)
        sent_s = time.monotonic()
        assert (run.wait(), run.errors) == (0, "")
        print(f"{number.name} in {moment}: exit after {time.monotonic() - sent_s:.1f} s")
        steps = steps_done(folder)
        # The step in progress ends, and the votes for the one after it may be under way.
        assert done <= steps <= done + (40 if moment == "a checkpoint" else 2)
        last = run.output.splitlines()[-1]
        expected = f"stopped and saved at step {steps} of 200; continue with: quintic train --resume"
        assert last.startswith(expected)
        assert_continues(run, arguments, folder, tmp_path / "second", undisturbed)


def test_a_second_ctrl_c_ends_at_once_and_damages_nothing(
    long_run: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, "--out", str(folder)]
    endless = SLOW_MOMENTS["a step"].replace("sleep(1)", "sleep(600)")
    with running([*arguments, "--procs", "2"], tmp_path / "first", fault=endless) as run:
        run.until(lambda: "now" in run.output, "the step")
        run.signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.process.poll() is None, "the first waits for the step"
        run.signal(signal.SIGINT)
        sent_s = time.monotonic()
        assert run.wait(20) == 130
        print(f"second Ctrl-C: exit after {time.monotonic() - sent_s:.1f} s")
        assert run.alive() == {}
    assert run.errors == "interrupted\n"
    assert whole_checkpoints(folder)[-1] == 30
    with running([*arguments, "--procs", "2", "--auto-resume"], tmp_path / "second") as again:
        assert (again.wait(), again.errors) == (0, "")
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)


def test_a_signal_before_training_has_begun_ends_all_and_leaves_nothing_in_the_way(
    long_run: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, "--out", str(folder), "--procs", "2", "--max-restarts", "3"]
    with running(arguments, tmp_path / "first") as run:
        run.rank(1)
        run.signal(signal.SIGTERM)
        assert run.wait() == 128 + signal.SIGTERM
        assert run.alive() == {}
    assert run.errors == ""
    assert not holds_run(folder)


def test_sigterm_to_torchrun_saves_and_the_run_goes_on(
    long_run: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, "--out", str(folder)]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    command = (*torchrun, "--nproc-per-node", "2", "-m", "quintic")
    with running(arguments, tmp_path / "first", command=command) as run:
        run.until(lambda: steps_done(folder) > 20, "20 steps")
        run.signal(signal.SIGTERM)
        run.wait()
        run.until_gone(1)
        assert "stopped and saved at step" in run.output
        assert_continues(run, arguments, folder, tmp_path / "second", undisturbed)

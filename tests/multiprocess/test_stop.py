"""SIGTERM and Ctrl-C: all ranks agree on the step, save once, exit 0; the run goes on from there.

Nothing is lost beyond the step in progress, and the continued run has bit for bit the losses of one
that nothing disturbed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import quintic.train
from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import World
from quintic.run import Run
from quintic.run_dir import holds_run
from quintic.setup import start
from quintic.train import train_run
from tests.conftest import tiny_config
from tests.multiprocess.commands import (
    assert_tidy,
    losses,
    running,
    steps_done,
    whole_checkpoints,
)
from tests.multiprocess.conftest import LONG, STEPS
from tests.multiprocess.test_same_result import resume_here
from tests.multiprocess.worlds import run_world

MOMENTS = {
    "a step": "quintic.train, 'apply_schedule', lambda run, step: step == {}",
    "validation": "quintic.train, 'evaluate_run', lambda run, watchdog: run.state.step == {}",
    "a checkpoint": (
        "quintic.checkpoint_writer, 'save_checkpoint', lambda r, t, s, w: s['step'] == {}"
    ),
}
"""Begins when rank 1 says "now", and does not end there before a signal has asked it to stop."""


def hold_in(moment: str, step: int, **options: Any) -> str:
    return (
        "import quintic.train, quintic.checkpoint_writer; from tests.moments import hold\n"
        f"hold({MOMENTS[moment].format(step)}, **{options})"
    )


def test_a_run_stopped_in_every_way_one_after_the_other_is_the_undisturbed_run(
    long_run: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, "--out", str(folder), "--procs", "2", "--max-restarts", "3"]
    ways = [
        ("validation", 25, signal.SIGTERM),
        ("a checkpoint", 40, signal.SIGTERM),
        ("a step", 83, signal.SIGINT),
    ]
    for moment, at, number in ways:
        way = f"{number.name} in {moment}"
        logs, fault = tmp_path / way.replace(" ", "-"), hold_in(moment, at)
        before = steps_done(folder)
        with running([*arguments, "--auto-resume"], logs, fault=fault) as run:
            run.until(lambda run=run: "now" in run.output, moment)  # type: ignore[misc]
            done = steps_done(folder)
            run.signal(number)
            assert (run.wait(), run.errors) == (0, ""), way
            assert run.alive() == {}
        steps = steps_done(folder)
        # A step in progress ends. Training goes on while a checkpoint is written.
        assert done <= steps <= done + (30 if moment == "a checkpoint" else 2), way
        assert whole_checkpoints(folder)[-1] == steps < STEPS, way
        assert ("resuming from" in run.output) == (before > 0)
        last = run.output.splitlines()[-1]
        assert last.startswith(f"stopped and saved at step {steps} of {STEPS}; continue with: "), (
            way
        )
        assert_tidy(folder)

    endless = hold_in("a step", 93, forever=True)
    with running([*arguments, "--auto-resume"], tmp_path / "twice", fault=endless) as run:
        run.until(lambda: "now" in run.output, "the step")
        run.signal(signal.SIGINT)
        run.until(lambda: "told" in run.output, "the first Ctrl-C in rank 1")
        assert run.process.poll() is None, "the first waits for the step"
        run.signal(signal.SIGINT)
        assert run.wait() == 128 + signal.SIGINT
        assert run.alive() == {}
    assert run.errors == "interrupted\n"
    assert whole_checkpoints(folder)[-1] == 90

    with running([*arguments, "--auto-resume"], tmp_path / "last") as run:
        assert (run.wait(), run.errors) == (0, "")
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)


def train_until_told(world: World, config: Config, folder: Path) -> tuple[bool, int]:
    """Train; rank 1 is sent SIGTERM in its step 13. Whether the run ended, and at which step."""
    own = quintic.train.apply_schedule

    def told(run: Run, step: int) -> Any:
        if (world.rank, step) == (1, 13):
            os.kill(os.getpid(), signal.SIGTERM)
        return own(run, step)

    quintic.train.apply_schedule = told
    run = start(config, folder, Console(quiet=True), world)
    return train_run(run, Console(quiet=True)), run.state.step


def test_sigterm_to_one_rank_alone_stops_all_at_the_same_step(
    tiny_data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    config, folder = tiny_config(tiny_data, LONG), tmp_path / "run"
    one, two = run_world(2, train_until_told, config, folder)
    assert one == two == (False, 14)  # heeded once all have voted in step 13
    assert whole_checkpoints(folder)[-1] == 14
    assert run_world(2, resume_here, config, folder) == [True, True]
    assert losses(folder) == losses(undisturbed)


def test_a_signal_before_training_has_begun_ends_all_and_leaves_nothing_in_the_way(
    long_run: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*long_run, "--out", str(folder), "--procs", "2", "--max-restarts", "3"]
    with running(arguments, tmp_path / "first", fault="import time; time.sleep(3600)") as run:
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
    held = hold_in("a step", 21)
    with running(arguments, tmp_path / "first", command=command, fault=held) as run:
        run.until(lambda: steps_done(folder) > 20, "20 steps")
        run.signal(signal.SIGTERM)
        run.wait()
        run.until_gone()
    assert "stopped and saved at step" in run.output
    assert whole_checkpoints(folder)[-1] == steps_done(folder) < STEPS
    assert losses(folder) == losses(undisturbed)[: len(losses(folder))]
    assert_tidy(folder)

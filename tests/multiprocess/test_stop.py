"""SIGTERM and Ctrl-C: all ranks agree on the step, save once, exit 0; the run goes on from there.

Nothing is lost beyond the step in progress, and the continued run has bit for bit the losses of one
that nothing disturbed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import quintic.train
from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import World
from quintic.run_dir import holds_run
from quintic.setup import Run, start
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

SLOW = """
import time, quintic.train, quintic.checkpoint
def slow(module, name, step_of):
    own = getattr(module, name)
    def slowed(*arguments):
        if step_of(*arguments) == STEP:
            print("now", flush=True); time.sleep(SECONDS)
        return own(*arguments)
    setattr(module, name, slowed)
"""
MOMENTS = {
    "a step": "slow(quintic.train, 'apply_schedule', lambda run, step: step)",
    "validation": "slow(quintic.train, 'evaluate_run', lambda run, watchdog: run.state.step)",
    "a checkpoint": "slow(quintic.checkpoint, 'save_checkpoint', lambda r, t, s, w: s['step'])",
}
"""On rank 1 this takes a second, which begins when it says "now"."""


def slow_in(moment: str, step: int, seconds: float = 1) -> str:
    fault = SLOW.replace("STEP", str(step)).replace("SECONDS", str(seconds))
    return fault + MOMENTS[moment]


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
        logs, fault = tmp_path / way.replace(" ", "-"), slow_in(moment, at)
        before = steps_done(folder)
        with running([*arguments, "--auto-resume"], logs, fault=fault) as run:
            run.until(lambda run=run: "now" in run.output, moment)  # type: ignore[misc]
            done = steps_done(folder)
            run.signal(number)
            sent_s = time.monotonic()
            assert (run.wait(), run.errors) == (0, ""), way
            print(f"{way}: exit after {time.monotonic() - sent_s:.1f} s")
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

    endless = slow_in("a step", 93, 600)
    with running([*arguments, "--auto-resume"], tmp_path / "twice", fault=endless) as run:
        run.until(lambda: "now" in run.output, "the step")
        run.signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.process.poll() is None, "the first waits for the step"
        run.signal(signal.SIGINT)
        sent_s = time.monotonic()
        assert run.wait(30) == 128 + signal.SIGINT
        print(f"second Ctrl-C: exit after {time.monotonic() - sent_s:.1f} s")
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
    assert whole_checkpoints(folder)[-1] == steps_done(folder) < STEPS
    assert losses(folder) == losses(undisturbed)[: len(losses(folder))]
    assert_tidy(folder)

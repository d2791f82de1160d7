"""A rank that hangs is found and named with what it was doing; a slow one is left alone."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from quintic.distributed.world import World
from quintic.model.base import LanguageModel
from tests.conftest import tiny_config
from tests.multiprocess.commands import (
    assert_tidy,
    losses,
    running,
    steps_done,
    whole_checkpoints,
)
from tests.multiprocess.conftest import LONG
from tests.multiprocess.test_same_result import train_here
from tests.multiprocess.worlds import run_world

HANG_TIMEOUT_S = 3.0
SOON_S = 25.0
"""From the hanging to the end: the timeout, a few looks at each other, and the end of processes."""

SLEEPING = """
import time, quintic.data.loader as loader
own = loader.Loader.batch
def sleeping(self, step, rows=None):
    if step == 13:
        print(f"hangs at {time.monotonic()}", flush=True); time.sleep(3600)
    return own(self, step, rows)
loader.Loader.batch = sleeping
"""


def test_a_rank_that_sleeps_in_its_data_is_named_and_the_run_goes_on_by_itself(
    long_run: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    options = ["--train.hang-timeout-s", str(HANG_TIMEOUT_S), "--procs", "2", "--max-restarts", "1"]
    arguments = [*long_run, *options, "--out", str(folder)]
    with running(arguments, tmp_path, fault=SLEEPING) as run:
        run.until(lambda: "starting all" in run.errors, "a restart")
        hung_s = float(run.output.partition("hangs at ")[2].split()[0])
        restarted_s = time.monotonic() - hung_s
        print(f"sleeping: restarted after {restarted_s:.1f} s")
        assert HANG_TIMEOUT_S < restarted_s < SOON_S
        assert run.wait() == 0
        assert run.alive() == {}
    message, again = run.errors.splitlines()
    assert re.match(
        r"quintic: no progress for 3 s: rank 1 has been in reading its batch of step 13 for \d+ s "
        r"\(loader\.py line \d+\); stopped, continue with --resume, and if ",
        message,
    )
    assert again == "quintic: starting all 2 processes again (restart 1 of 1)"
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)


def test_a_rank_that_is_stopped_does_not_answer_and_the_run_ends(
    long_run: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ["--train.hang-timeout-s", str(HANG_TIMEOUT_S), "--procs", "2"]
    with running([*long_run, *options, "--out", str(folder)], tmp_path) as run:
        run.until(lambda: steps_done(folder) > 12, "12 steps")
        run.signal(signal.SIGSTOP, 1)
        stopped_s = time.monotonic()
        assert run.wait() == 1
        ended_s = time.monotonic() - stopped_s
        print(f"SIGSTOP: exit after {ended_s:.1f} s")
        assert HANG_TIMEOUT_S < ended_s < SOON_S
        assert run.alive() == {}
    assert re.fullmatch(
        r"quintic: no progress for 3 s: rank 1 does not answer any more, last seen in [\w ]+ of "
        r"step \d+; stopped, continue with --resume, and if .*\n",
        run.errors,
    )
    whole_checkpoints(folder)  # what it was writing when it was stopped, the next start removes


def train_slowly(world: World, data: Path, folder: Path) -> None:
    """On rank 1 every pass of the model takes a while; what is made of many takes long."""
    own = LanguageModel.loss
    if world.rank == 1:

        def slow(self: LanguageModel, *arguments: object) -> object:
            time.sleep(0.3)
            return own(self, *arguments)  # type: ignore[arg-type]

        LanguageModel.loss = slow  # type: ignore[method-assign, assignment]
    changes = {
        "train.steps": 2,
        "train.micro_batch": 1,
        "train.eval_every": 2,
        "train.hang_timeout_s": 1.0,
    }
    train_here(world, tiny_config(data, {**LONG, **changes}), folder)


def test_long_accumulation_and_long_validation_are_not_hanging(
    tiny_data: Path, tmp_path: Path
) -> None:
    began_s = time.monotonic()
    run_world(2, train_slowly, tiny_data, tmp_path / "run")
    # 2 steps of 4 passes and 2 validations of 8 on rank 1: each longer than the timeout.
    assert time.monotonic() - began_s > 24 * 0.3
    assert steps_done(tmp_path / "run") == 2


def test_the_timeout_is_checked_before_anything_begins(tiny_data: Path) -> None:
    with pytest.raises(ValueError, match="hang_timeout_s"):
        tiny_config(tiny_data, {"train.hang_timeout_s": 0.0})

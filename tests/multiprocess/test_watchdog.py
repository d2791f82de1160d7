"""A rank that hangs is found and named with what it was doing; a slow one is left alone."""

from __future__ import annotations

import re
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import quintic.distributed.watchdog
from quintic.distributed.watchdog import Watchdog
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
from tests.waiting import LAST_BOUND_S

HANG_TIMEOUT_S = 3.0
SLEEPING = """
import os, pathlib, time, quintic.data.loader as loader
from tests.moments import watch_once
watch_once("HANGS" if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else "/never")
own = loader.Loader.batch
def sleeping(self, step, rows=None):
    if step == 13 and os.environ["RANK"] == "1" and not os.path.exists("HANGS"):
        pathlib.Path("HANGS").touch()
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
    fault = SLEEPING.replace("HANGS", str(tmp_path / "hangs"))
    with running(arguments, tmp_path, fault=fault, ranks=(0, 1), restarts=1) as run:
        run.until(lambda: "starting all" in run.errors, "a restart")
        hung_s = float(run.output.partition("hangs at ")[2].split()[0])
        restarted_s = time.monotonic() - hung_s
        assert restarted_s > HANG_TIMEOUT_S
        assert run.wait() == 0
        assert run.alive() == {}
    message, again = run.errors.splitlines()
    assert re.match(
        r"quintic: no progress for 3 s: rank 1 has been in reading its batch of step 13 for \d+ s "
        r"\(prefetch\.py line \d+\); stopped, continue with --resume, and if ",
        message,
    )
    assert again == "quintic: starting all 2 processes again (restart 1 of 1)"
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)


HELD = """
import os, pathlib
from tests.moments import *
watch_once("STOPPED")
own = Watchdog._post
def post(self, store):
    doing = own(self, store)
    pathlib.Path("POSTED").touch()
    return doing
if os.environ["RANK"] == "1":
    hold_at(13)
    Watchdog._post = post
"""
"""Rank 1 waits in a step, and the others have heard of it."""


def test_a_rank_that_is_stopped_does_not_answer_and_the_run_ends(
    long_run: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ["--train.hang-timeout-s", str(HANG_TIMEOUT_S), "--procs", "2"]
    stopped, posted = tmp_path / "stopped", tmp_path / "posted"
    fault = HELD.replace("STOPPED", str(stopped)).replace("POSTED", str(posted))
    arguments = [*long_run, *options, "--out", str(folder)]
    with running(arguments, tmp_path, fault=fault, ranks=(0, 1)) as run:
        run.until(lambda: "now" in run.output and posted.exists(), "step 13 and word of it")
        run.signal(signal.SIGSTOP, 1)
        stopped_s = time.monotonic()
        stopped.touch()
        assert run.wait() == 1
        assert time.monotonic() - stopped_s > HANG_TIMEOUT_S
        assert run.alive() == {}
    assert re.fullmatch(
        r"quintic: no progress for 3 s: rank 1 does not answer any more, last seen in [\w ]+ of "
        r"step \d+; stopped, continue with --resume, and if .*\n",
        run.errors,
    )
    whole_checkpoints(folder)  # what it was writing when it was stopped, the next start removes


def train_slowly(world: World, data: Path, folder: Path) -> None:
    """On rank 1 every pass of the model takes a while; what is made of many takes long.

    All else takes no time there, and what rank 0 waits for may take any, so that this machine may
    be slow itself.
    """
    own, passes_s, seen = LanguageModel.loss, [0.0], [0, 0]
    own_everybody, own_store = Watchdog._everybody, World.another_store
    if world.rank == 1:

        def slow(self: LanguageModel, *arguments: object, **options: object) -> object:
            time.sleep(0.3)
            passes_s[0] += 0.3
            return own(self, *arguments, **options)  # type: ignore[arg-type]

        LanguageModel.loss = slow  # type: ignore[method-assign, assignment]
        vars(quintic.distributed.watchdog)["time"] = SimpleNamespace(monotonic=lambda: passes_s[0])

    def everybody(self: Watchdog, store: Any) -> Any:
        """Look when all have posted since the last look."""
        found = own_everybody(self, store)
        while not self._ended.is_set() and not all(
            doing and doing.beats > beats for doing, beats in zip(found, seen, strict=True)
        ):
            time.sleep(0.01)
            found = own_everybody(self, store)
        seen[:] = [doing.beats if doing else 0 for doing in found]
        return found

    Watchdog._everybody = everybody  # type: ignore[method-assign]
    vars(quintic.distributed.watchdog)["World"].another_store = lambda self, _: own_store(
        self, timedelta(seconds=LAST_BOUND_S)
    )
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

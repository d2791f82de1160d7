"""Ranks and launchers that die: the run goes on as if nothing had happened, and nothing is damaged.

`QUINTIC_SLOW_TESTS=1` kills twenty times (3 minutes on two cores) instead of three.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

import quintic.checkpoint
import quintic.distributed.world
from quintic.checkpoint import read_state
from quintic.cli.parsing import parse
from quintic.cli.train import train_here as train_command
from quintic.console import Console
from quintic.distributed.failures import first_failure_speaks
from quintic.distributed.world import World
from quintic.errors import QuinticError
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS
from quintic.setup import start
from tests.conftest import tiny_config
from tests.multiprocess.commands import Command, assert_tidy, losses, running, steps_done
from tests.multiprocess.conftest import LONG, STEPS
from tests.multiprocess.test_same_result import train_here
from tests.multiprocess.worlds import run_world

KILLS = 20 if os.environ.get("QUINTIC_SLOW_TESTS") else 3


def damaged(folder: Path) -> list[str]:
    """What is wrong with the checkpoints; another process may be removing old ones just now."""
    found = []
    for path in checkpoints(folder / CHECKPOINTS):
        try:
            read_state(path)
        except QuinticError as error:
            if path.exists():
                found.append(str(error))
    return found


def test_sigkills_at_random_moments_of_ranks_and_launchers_change_no_loss_and_damage_nothing(
    long_run: list[str], tiny_data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    choices, folder = random.Random(0), tmp_path / "run"
    steps = max(STEPS, 30 * KILLS)
    if steps > STEPS:
        undisturbed = tmp_path / "undisturbed"
        config = tiny_config(tiny_data, {**LONG, "train.steps": steps})
        run_world(2, train_here, config, undisturbed)
    arguments = [*long_run, "--train.steps", str(steps), "--out", str(folder)]
    arguments += ["--procs", "2", "--max-restarts", "30", "--auto-resume"]
    all_killed = tmp_path / "all-killed"
    # However slow this test is, the run does not end before its last kill.
    held_at = steps - 10
    fault = f"from tests.moments import *; hold_at_until({held_at}, {str(all_killed)!r})"
    killed: dict[str, int] = {"rank": 0, "launcher": 0}
    starts = 0
    while True:
        starts += 1
        logs = tmp_path / f"start-{starts}"
        with running(arguments, logs, fault=fault, ranks=(0, 1), restarts=30) as run:
            while sum(killed.values()) < KILLS:
                if choices.random() < 0.25:  # while it starts
                    time.sleep(choices.random())
                else:  # in or between steps, validations and checkpoints
                    wait_for_progress(run, folder, held_at)
                    time.sleep(0.3 * choices.random())
                assert steps_done(folder) < steps, "too short a run for so many kills"
                rank = choices.choice([0, 1, 0, 1, None])
                run.signal(signal.SIGKILL, rank)
                assert damaged(folder) == []
                if rank is None:
                    killed["launcher"] += 1
                    killed_s = time.monotonic()
                    run.until_gone()
                    print(f"launcher killed: ranks ended in {time.monotonic() - killed_s:.1f} s")
                    break
                killed["rank"] += 1
                named = f"quintic: rank {rank} was ended by SIGKILL"
                run.until(lambda named=named: named in run.errors, named)  # type: ignore[misc]
            else:
                all_killed.touch()
                assert run.wait() == 0, run.errors
                break
        assert damaged(folder) == []
    print(f"{killed}, {starts} starts of the command")
    assert sum(killed.values()) == KILLS
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)


def wait_for_progress(run: Command, folder: Path, last: int) -> None:
    before = steps_done(folder)
    run.until(lambda: steps_done(folder) not in (0, before) or before == last, "a step")


# What differs between ranks is found at the start.


def refused(world: World, data: Path, other_data: Path, root: Path) -> list[str]:
    """Set up with something different on rank 1, three times; what each rank was told."""
    said = []
    differences: list[tuple[Path, dict[str, Any], Callable[[], str]]] = [
        (other_data, {}, quintic.distributed.world._code_digest),
        (data, {"optim.muon.lr": 0.03, "train.steps": 13}, quintic.distributed.world._code_digest),
        (data, {}, lambda: "0123456789abcdef"),
    ]
    for number, (other, changes, digest) in enumerate(differences):
        config = tiny_config(data)
        if world.rank == 1:
            config = tiny_config(other, changes)
            quintic.distributed.world._code_digest = digest
        try:
            start(config, root / str(number), Console(quiet=True), world)
        except QuinticError as error:
            said.append(str(error))
    return said


def test_other_data_config_or_code_on_a_rank_is_refused_on_all_in_one_line_that_names_it(
    tiny_data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    shard = other / "tiny_train_000002.bin"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    one, two, three = run_world(3, refused, tiny_data, other, tmp_path / "runs")
    assert one == two == three
    data, config, code = one
    assert re.match(r"rank 1 on \S+ has other data than rank 0 \(\w{12}, not \w{12}\): ", data)
    assert config.startswith(
        "rank 1 was started with another optim.muon.lr, train.steps than rank 0: "
    )
    assert re.match(r"rank 1 on \S+ has other code than rank 0 \(0123456789ab, not ", code)
    assert not (tmp_path / "runs").exists()


def begin_or_continue(world: World, begin: list[str], go_on: list[str]) -> str:
    with pytest.raises(QuinticError) as refused, ExitStack() as taken:
        train_command(parse(go_on if world.rank == 1 else begin), (), world, taken)
    return str(refused.value)


def test_a_rank_that_would_begin_a_run_where_others_continue_it_is_refused(
    tiny: list[str], tiny_run: Path, tmp_path: Path
) -> None:
    begin, go_on = [*tiny, "--out", str(tmp_path / "run")], ["train", "--resume", str(tiny_run)]
    for message in run_world(2, begin_or_continue, begin, go_on):
        assert message.startswith("some processes would continue a run and others begin one: give")
    assert not (tmp_path / "run").exists()


# A disk that one rank cannot write to.


class FullDisk(HuggingFaceStorageWriter):  # type: ignore[misc, unused-ignore]
    """Has no room from the third checkpoint on."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        if "step-00000030" in str(self.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write_data(plan, planner)


def train_on_full_disk(world: World, config: Any, folder: Path) -> tuple[str, str]:
    """Train; the disk of rank 1 is full. What this rank says."""
    if world.rank == 1:
        vars(quintic.checkpoint)["HuggingFaceStorageWriter"] = FullDisk
    try:
        with first_failure_speaks(world):
            train_here(world, config, folder)
    except (QuinticError, SystemExit) as error:
        return type(error).__name__, str(error)
    return "", ""


def test_a_disk_full_on_one_rank_is_said_once_and_leaves_the_other_checkpoints_whole(
    tiny_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    told = run_world(2, train_on_full_disk, tiny_config(tiny_data, LONG), folder)
    (_, message), (silent, _) = sorted(told, key=lambda item: item[0])
    assert (silent, {name for name, _ in told}) == ("SystemExit", {"QuinticError", "SystemExit"})
    last = folder / CHECKPOINTS / "step-00000020"
    assert re.fullmatch(
        rf"rank \d: could not write a checkpoint to {folder / CHECKPOINTS}: No space left on "
        rf"device; what is there is whole \(the last checkpoint is {last}\): make room, then "
        f"continue with --resume {folder}",
        message,
    )
    assert read_state(last)["step"] == 20
    assert_tidy(folder)


# What may change on a resume.


def resumed(command: list[str], run: Path, logs: Path) -> Command:
    with running(["train", "--resume", str(run), *command], logs) as again:
        again.wait()
    return again


def test_resume_on_three_processes_is_exact_and_another_dtype_is_refused_in_one_line(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    shutil.rmtree(checkpoints(folder / CHECKPOINTS)[-1])
    changed = ["--train.precision", "float32", "--train.batch-tokens", "512", "--procs", "2"]
    again = resumed(changed, folder, tmp_path / "refused")
    assert again.process.returncode == 2
    assert re.fullmatch(
        r"quintic: rank \d: --resume cannot change train.batch_tokens, train.precision: the 110 "
        r"steps done were trained otherwise; start a new run with another --out\n",
        again.errors,
    )
    again = resumed(["--procs", "3"], folder, tmp_path / "exact")
    assert (again.process.returncode, again.errors) == (0, "")
    found, expected = losses(folder), losses(undisturbed)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in found] == pytest.approx([e[2] for e in expected], abs=1e-9)

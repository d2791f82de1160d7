"""The state of a run, by its lock, its records and its checkpoints."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from quintic.metrics_file import METRICS, STOPPED_EARLY
from quintic.run_dir import CONFIG, LOCK, lock
from quintic.watch import held_locks, metrics_tail
from quintic.watch.held_locks import is_held
from quintic.watch.run import WatchedRun
from quintic.watch.watcher import Watcher
from tests.watch.runs import (
    STEPS,
    append,
    task_record,
    train_record,
    validation_record,
    write_run,
)


def look(run: WatchedRun, *, held: bool = False) -> dict[str, Any]:
    found: set[tuple[int, int, int]] = set()
    if held:
        (run.folder / LOCK).touch()
        stat = (run.folder / LOCK).stat()
        found = {(os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino)}
    while run.look(frozenset(found)) and not run.metrics.whole:
        pass
    return run.summary


def age(folder: Path) -> None:
    """Let the last record be an hour old."""
    before = time.time() - 3600
    os.utime(folder / METRICS, (before, before))


def watched(folder: Path, *, old: bool = True) -> WatchedRun:
    if old:
        age(folder)
    return WatchedRun(folder, "run")


def test_a_run_that_holds_its_lock_is_running_however_long_it_says_nothing(tmp_path: Path) -> None:
    run = watched(write_run(tmp_path / "run", 20))
    found = look(run, held=True)
    assert found["state"] == "running"
    assert (found["step"], found["steps"]) == (19, STEPS)
    assert found["tokens_per_s"] == 4096
    assert found["left_s"] == 42  # 81 steps of 0.5 s and one validation of 2 s
    assert found["train_loss"] == pytest.approx(4.81)


def test_a_lock_that_was_held_and_is_not_says_that_the_run_has_ended(tmp_path: Path) -> None:
    run = watched(write_run(tmp_path / "run", 20), old=False)
    assert look(run)["state"] == "running"  # on another machine, as far as is known
    assert look(run, held=True)["state"] == "running"
    found = look(run)
    assert found["state"] == "crashed"
    assert found["left_s"] is None


def test_without_a_lock_a_record_not_long_ago_says_that_a_run_is_alive(tmp_path: Path) -> None:
    run = watched(write_run(tmp_path / "run", 20))
    assert look(run)["state"] == "crashed"
    append(run.folder, [train_record(20)])
    age(run.folder)  # by the clock of the machine that trains
    assert look(run)["state"] == "running"


def test_reading_a_long_file_bit_by_bit_is_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_tail, "OVERVIEW_BYTES", 1000)
    monkeypatch.setattr(metrics_tail, "BLOCK_BYTES", 1000)
    run = watched(write_run(tmp_path / "run", 20))
    assert look(run)["state"] == "crashed"
    assert run.metrics.whole
    assert run.summary["written_at"] < time.time() - 3000


@pytest.mark.parametrize(("saved", "state"), [(None, "crashed"), (15, "crashed"), (20, "stopped")])
def test_a_run_is_stopped_where_all_its_steps_are_saved(
    tmp_path: Path, saved: int | None, state: str
) -> None:
    assert look(watched(write_run(tmp_path / "run", 20, saved=saved)))["state"] == state


def test_scores_count_for_the_time_left_and_may_take_long(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = watched(write_run(folder, 60, train__eval_tasks="blimp", train__eval_tasks_every=20))
    assert look(run, held=True)["left_s"] == 20
    append(run.folder, [{**task_record(59, 0.5), "tasks_s": 1300.0}])
    age(run.folder)
    assert look(run, held=True)["left_s"] == 20 + 2 * 1300
    run = watched(run.folder)  # an hour ago it wrote last, and scores may take as long
    assert look(run)["state"] == "running"


def test_a_run_is_finished_with_the_validation_at_its_end(tmp_path: Path) -> None:
    run = watched(write_run(tmp_path / "run", STEPS, saved=STEPS))
    assert look(run)["state"] == "finished"
    early = write_run(tmp_path / "early", 20)
    append(early, [{**validation_record(20, 4.0), STOPPED_EARLY: "it is low"}])
    assert look(watched(early))["state"] == "finished"


def test_a_loss_that_is_not_finite_is_the_end_of_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 20)
    lost = {**train_record(20), "train_loss": None, "diverged": {"train_loss": "inf"}}
    append(folder, [lost])
    run = watched(folder)
    assert look(run)["state"] == "diverged"
    assert run.summary["train_loss"] is None


def test_a_folder_that_vanishes_is_gone_and_may_come_back(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 20, saved=20)
    run = watched(folder)
    look(run)
    folder.rename(tmp_path / "aside")
    found = look(run)
    assert (found["state"], found["step"]) == ("gone", 19)
    (tmp_path / "aside").rename(folder)
    assert look(run)["state"] == "stopped"


def test_a_run_that_comes_while_the_changes_are_told_waits_for_the_next(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "one", 1)
    watcher = Watcher([tmp_path])
    watcher.look()
    (one,) = watcher.runs.values()

    class Version(int):
        def __gt__(self, other: int) -> bool:
            watcher.discover()
            return super().__gt__(other)

    one.version = Version(one.version)
    write_run(tmp_path / "two", 1)
    assert watcher.changes(0, 0.0) == (1, [one.summary])
    assert [run.name for run in watcher.runs.values()] == ["one", "two"]


def test_a_config_of_another_version_leaves_its_curves(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 20)
    (folder / CONFIG).write_text('{"format": 99, "needs_quintic": "9.1", "train": {"steps": 70}}')
    found = look(watched(folder))
    assert "needs quintic 9.1" in found["problem"]
    assert (found["step"], found["steps"]) == (19, 70)
    (folder / CONFIG).write_text('{"train": {"steps"')
    append(folder, [{"tokens": 3}])
    run = watched(folder)
    assert "is not valid JSON" in look(run)["problem"]
    assert "metrics.jsonl has 1 line left out, no record" in run.summary["problem"]
    assert run.summary["steps"] is None


def test_the_lock_of_a_run_is_seen_without_asking_for_it(tmp_path: Path) -> None:
    if not held_locks.LOCKS.exists():
        pytest.skip("only Linux says which files are locked")
    taken = lock(tmp_path)
    assert is_held(tmp_path / LOCK, held_locks.held_locks())
    taken.release()
    assert not is_held(tmp_path / LOCK, held_locks.held_locks())
    assert not is_held(tmp_path / "none", held_locks.held_locks())


def test_runs_are_found_at_any_depth_and_when_they_come(tmp_path: Path) -> None:
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "sweep" / "lr=1" / "seed=2", 1)
    write_run(tmp_path / "one" / "checkpoints" / "copy", 1)
    write_run(tmp_path / ".hidden" / "run", 1)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / CONFIG).write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path)
    watcher = Watcher([tmp_path])
    watcher.look()
    assert [run.name for run in watcher.runs.values()] == ["one", "sweep/lr=1/seed=2"]
    version, found = watcher.changes(0, 0)
    assert [run["name"] for run in found] == ["one", "sweep/lr=1/seed=2"]
    while watcher.look():
        pass
    version, _ = watcher.changes(version, 0)
    append(tmp_path / "one", [train_record(1)])
    watcher.look()
    later, found = watcher.changes(version, 0)
    assert later > version
    assert [run["step"] for run in found] == [1]
    assert watcher.changes(later, 0) == (later, [])
    write_run(tmp_path / "three", 1)
    watcher.discover()
    assert len(watcher.runs) == 3

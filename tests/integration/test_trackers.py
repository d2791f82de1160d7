"""Trackers themselves, as they are: a run that is killed twice and resumed is one run in each, with
every point once, on a machine whose proxy counts who asks for anything.

A test is skipped where the tracker's package is not installed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from quintic.metrics_file import METRICS, read_records
from tests.conftest import main, tiny_arguments
from tests.integration import tracker_stores
from tests.integration.tracker_stores import Points
from tests.test_resume import quintic_process, wait_for_step
from tests.test_trackers import losses, serving
from tests.waiting import outputs, wait_until
from tests.warm import output_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="not Linux")

TIMES = {"step_ms", "tokens_per_s", "optimizer_ms", "elapsed_s", "val_s", "memory_gib"}
"""What is measured by a clock, so that a step which is trained twice has two of it."""


@contextmanager
def counting_proxy() -> Iterator[list[str]]:
    """A proxy that refuses everybody, and what it was asked for."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(200).decode(errors="replace"))

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                patch.setenv(name, url)
                patch.setenv(name.upper(), url)
            for name in ("no_proxy", "NO_PROXY"):
                patch.delenv(name, raising=False)
            yield asked
        server.shutdown(socket.SHUT_RDWR)


def openings(folder: Path, name: str) -> int:
    """How often the tracker has been opened for the run."""
    if name == "tensorboard":
        found = (folder / name).glob("*.tfevents.*")
        return max((path.stat().st_mtime_ns for path in found if path.stat().st_size), default=0)
    log = folder / "trackers" / f"{name}.log"
    text = log.read_text() if log.exists() else ""
    return text.count("look at it with") + text.count("offline, in")


def descendants(pid: int) -> Iterator[int]:
    """All that a process has started, and that in turn."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield from (*descendants(child), child)


def kill_at(arguments: list[str], folder: Path, name: str, step: int, *, tracker: bool) -> None:
    """Kill a run at a step, once its tracker is open; the tracker's processes first, or not."""
    before = openings(folder, name)
    with quintic_process(arguments, f"hold_at({step}, forever=True)") as process:
        wait_for_step(process, folder, step - 1)
        wait_until(
            lambda: openings(folder, name) > before,
            f"{name} to open the run",
            alive=lambda: process.poll() is None,
        )
        if tracker:
            for descendant in [*descendants(process.pid)]:
                os.kill(descendant, signal.SIGKILL)
        process.kill()
        outputs(process)


def stored(folder: Path, name: str) -> list[Points]:
    """What the tracker's own reader finds in the run's folder, run by run."""
    # By its file: the test stands in a folder of its own, where `tests` is no package.
    reader = [sys.executable, tracker_stores.__file__, name, str(folder)]
    found: list[Points] = json.loads(output_of(reader, plain=True).splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_run_killed_twice_and_resumed_is_one_run_with_every_point_once(
    name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    home, here, folder = tmp_path / "home", tmp_path / "here", tmp_path / "run"
    for path in (home, here):
        path.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    for variable in os.environ:
        if variable.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(variable)
    options = ["--train.log-to", name, "--train.steps", "16", "--out", str(folder)]
    with counting_proxy() as asked:
        # The first leaves a tracker with all steps so far, of which some will be trained again,
        # and the second one that may have lost any of what it was given.
        kill_at([*tiny_arguments(tiny_data), *options], folder, name, 7, tracker=False)
        kill_at(["train", "--resume", str(folder)], folder, name, 10, tracker=True)
        with quintic_process(["train", "--resume", str(folder)]) as process:
            out, err = outputs(process)
    assert (process.returncode, err) == (0, ""), out
    assert "may not have all" not in out
    assert "failed" not in out
    assert asked == []
    assert [*home.rglob("*"), *here.rglob("*")] == []

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    expected: dict[tuple[str, int], Any] = {}
    for record in read_records(folder / METRICS):
        step = record.pop("step")
        expected |= {(metric, step): value for metric, value in record.items()}
    if name == "tensorboard":
        expected = {key: value for key, value in expected.items() if key[0] != "tokens"}
    (points,) = stored(folder, name)
    names = {metric for metric, _ in expected}  # the tools have columns of their own beside them
    found: dict[tuple[str, int], float] = {}
    for metric, step, value in points:
        if metric in names:
            assert (metric, step) not in found, f"{metric} of step {step} twice"
            found[metric, step] = value
    assert found.keys() == expected.keys()
    exact = 1e-6 if name == "tensorboard" else 0.0
    for key, value in expected.items():
        # MLflow cannot forget, and keeps what was measured first.
        if name != "mlflow" or key[0] not in TIMES:
            assert found[key] == pytest.approx(value, rel=exact, abs=0), key
    assert expected.keys() >= {("train_loss", step) for step in range(16)} | {("val_loss", 16)}


@pytest.mark.parametrize("behaviour", ["errors", "hangs", "dies"])
def test_mlflow_with_a_server_that_does_not_serve_changes_nothing_of_the_run(
    behaviour: str,
    tiny: list[str],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    folder = tmp_path / "run"
    if behaviour == "hangs":  # the process is killed in the midst of a request, or of an import
        monkeypatch.setattr("quintic.trackers.processes.FINISH_S", 5.0)
    with serving(behaviour) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        main([*tiny, "mlflow", "--out", str(folder)])
    assert losses(folder) == losses(tiny_run)
    out = capsys.readouterr().out
    assert out.count("mlflow: it may not have all of the run") == 1
    assert out.count("mlflow: failed") == 1 or behaviour == "hangs"


FAILED_AND_OPENED_ANEW = """
import sys
from importlib import import_module
from pathlib import Path
from quintic.trackers import TrackedRun
from quintic.trackers.points import Point
folder, open_run = Path(sys.argv[2]), import_module("quintic.trackers." + sys.argv[1]).open_run
points = [Point(step, {"train_loss": float(step)}) for step in range(5)]
run = TrackedRun(folder, "0123456789ab", {"train": {"steps": 5}})
failed = open_run(run)
failed.log(points[:3])
again = open_run(run)
again.log(points)
again.finish("finished", None)
"""


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_tracker_that_fails_and_is_opened_anew_in_its_process_has_every_point_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    program = [sys.executable, "-c", FAILED_AND_OPENED_ANEW, name, str(tmp_path / "run")]
    output_of(program, plain=True)
    (points,) = stored(tmp_path / "run", name)
    losses = sorted((step, value) for metric, step, value in points if metric == "train_loss")
    assert losses == [(step, float(step)) for step in range(5)]

"""Trackers: the copy that one gets, and that no fault of one touches the run.

The tracker here is trackio's interface before a server on loopback, which does what a test asks it
to; `tests/integration/test_trackers.py` has the tools themselves.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from quintic.cli.main import main
from quintic.metrics_file import METRICS, MetricsFile, read_records
from quintic.trackers.points import Points
from tests.conftest import refusal

TRACKIO = """
import json, os, signal, urllib.request

def call(**what):
    body = json.dumps(what).encode()
    urllib.request.urlopen(os.environ["TRACKER_SERVER"], body).read()

class Api:
    def runs(self, project):
        call(opened=project)
        return []

class Image:
    def __init__(self, path):
        self.size = path.stat().st_size

class Run:
    def log(self, values, step):
        if "TRACKER_DIES" in os.environ and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        call(step=step, values={name: getattr(v, "size", v) for name, v in values.items()})

    def finish(self):
        call(finished=True)

def finish():
    raise RuntimeError("there is no run")

def init(**options):
    call(name=options["name"], config=options["config"])
    return Run()
"""


class Server(ThreadingHTTPServer):
    """Takes what the tracker sends; what it does with a request is for the test to say."""

    daemon_threads = True

    def __init__(self, behaviour: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.asked, self.released = behaviour, 0, threading.Event()
        self.taken: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        server, number = self.server, self.server.asked
        server.asked += 1
        if server.behaviour == "hangs":
            server.released.wait()
        if server.behaviour == "dies" and number == 4:
            server.socket.close()
            self.connection.close()
            return
        fails = server.behaviour == "errors" or (server.behaviour == "recovers" and number == 4)
        if not fails:
            server.taken.append(body)
        self.send_response(500 if fails else 200)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(behaviour: str) -> Iterator[Server]:
    """A server on loopback that behaves so."""
    with Server(behaviour) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()


@contextmanager
def tracker(behaviour: str, tmp_path: Path) -> Iterator[Server]:
    """A tracker by the name of trackio with such a server."""
    package = tmp_path / "packages" / "trackio"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TRACKIO)
    with pytest.MonkeyPatch.context() as patch, serving(behaviour) as server:
        patch.syspath_prepend(str(package.parent))
        path = [str(package.parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        patch.setenv("TRACKER_SERVER", f"http://127.0.0.1:{server.server_port}")
        yield server


def losses(folder: Path) -> list[tuple[int, float]]:
    records = read_records(folder / METRICS)
    return [(r["step"], r["train_loss" if "train_loss" in r else "val_loss"]) for r in records]


def test_a_tracker_gets_config_every_point_figure_and_end(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with tracker("works", tmp_path) as server:
        main([*tiny, "trackio", "--out", str(folder)])
    opened, begun, *logged, figure, finished = server.taken
    assert opened == {"opened": "quintic"}
    assert begun["name"] == f"run-{(folder / 'trackers' / 'id').read_text()}"
    assert begun["config"]["train.steps"] == 12
    assert begun["config"]["environment.processes"] == 1
    expected: dict[int, dict[str, Any]] = {}
    for record in read_records(folder / METRICS):
        expected.setdefault(record.pop("step"), {}).update(record)
    assert [(point["step"], point["values"]) for point in logged] == sorted(expected.items())
    assert figure == {"step": 12, "values": {"loss": (folder / "loss.png").stat().st_size}}
    assert finished == {"finished": True}


@pytest.mark.parametrize("behaviour", ["errors", "hangs", "dies", "is killed"])
def test_a_tracker_that_fails_changes_nothing_of_the_run_and_is_named(
    behaviour: str,
    tiny: list[str],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    if behaviour == "hangs":
        monkeypatch.setattr("quintic.trackers.processes.FINISH_S", 0.5)
    if behaviour == "is killed":
        monkeypatch.setenv("TRACKER_DIES", "yes")
    with tracker(behaviour, tmp_path) as server:
        main([*tiny, "trackio", "--out", str(folder)])
        if behaviour == "hangs":
            assert server.asked <= 1, "the run does not wait for an answer"
    assert losses(folder) == losses(tiny_run)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trackio: ")]
    told = [line for line in lines if "look at it" not in line]
    *failures, last = [line for line in told if "getting the rest" not in line]
    assert "it may not have all of the run" in last
    assert "training goes on" in "".join(failures) or behaviour in ("hangs", "is killed")
    assert len(failures) <= 1
    assert "figure" not in last
    assert (folder / "trackers" / "trackio.log").exists()


def test_a_tracker_whose_server_recovers_has_everything(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with tracker("recovers", tmp_path) as server:
        main([*tiny, "trackio", "--out", str(folder)])
    out = capsys.readouterr().out
    assert out.count("trackio: failed (HTTP Error 500: Internal Server Error); training goes") == 1
    assert "may not have all" not in out
    again = max(n for n, taken in enumerate(server.taken) if "opened" in taken)
    assert again > 0
    steps = [taken["step"] for taken in server.taken[again:] if "values" in taken]
    assert steps == [*range(13), 12], "from the first point on, and the figure"


def test_a_tracker_that_cannot_be_started_is_a_line(
    tiny: list[str],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    main([*tiny, "tensorboard", "--out", str(tmp_path / "run")])
    said = "tensorboard: not started (No such file or directory); training goes on without"
    assert said in capsys.readouterr().out.splitlines()
    assert losses(tmp_path / "run") == losses(tiny_run)


def test_a_tracker_whose_package_is_missing_is_refused_before_training(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "mlflow" else find_spec(name)
    )
    said = refusal([*tiny, "tensorboard", "mlflow", "--out", tmp_path / "run"], capsys)
    expected = "train.log_to mlflow needs the package mlflow: pip install 'quintic[mlflow]'"
    assert said == expected
    # What a tool has left where Python is started is not the tool.
    (tmp_path / "here" / "mlflow").mkdir(parents=True)
    found = PathFinder.find_spec("mlflow", [str(tmp_path / "here")])
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: found if name == "mlflow" else find_spec(name)
    )
    assert refusal([*tiny, "mlflow", "--out", tmp_path / "run"], capsys) == expected
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("wandb tensorbord", "train.log-to"),
        ("wandb wandb", "train.log_to is ('wandb', 'wandb'): each may be named once"),
    ],
)
def test_a_tracker_that_does_not_exist_or_is_named_twice_is_refused(
    given: str, message: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal([*tiny, *given.split()], capsys)


# What a tracker is given.


def test_a_point_is_given_once_it_is_whole(tmp_path: Path) -> None:
    """What is read are the files of a run that goes on."""
    points, file = Points(tmp_path), MetricsFile(tmp_path / METRICS)
    assert points.read(last=False) == []
    file.append({"step": 0, "val_loss": math.nan, "tokens": 2**60 + 1})
    assert points.read(last=False) == []
    file.append({"step": 0, "train_loss": 4.0, "tokens": 2**60 + 1})
    file.append({"step": 4, "val_loss": 3.0, "stopped_early": "enough"})
    (point,) = points.read(last=False)
    assert (point.step, point.values.pop("tokens")) == (0, 2**60 + 1)
    assert str(point.values) == "{'val_loss': nan, 'train_loss': 4.0}"
    sample = {"step": 4, "tokens": 9, "prompt": "def ", "text": "f():\n", "sample_s": 0.1}
    cut = json.dumps(sample).encode() + b"\n"
    with (tmp_path / "samples.jsonl").open("wb", buffering=0) as samples:
        samples.write(cut[:20])
        assert points.read(last=False) == []
        samples.write(cut[20:])
    (point,) = points.read(last=True)
    assert point.values == {"val_loss": 3.0}
    assert point.texts == {"stopped_early": "enough", "sample": "def |f():\n"}
    assert points.read(last=True) == []
    file.append({"step": 8, "blimp/acc": 0.5, "blimp/acc_stderr": 0.25, "blimp/chance": 0.5})
    (point,) = points.read(last=True)
    assert point.values == {"blimp/acc": 0.5, "blimp/acc_stderr": 0.25, "blimp/chance": 0.5}
    file.close()

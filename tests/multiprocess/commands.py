"""The real command in processes of its own, with faults put into chosen ranks.

Whatever a test does to them, none of these processes outlives it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quintic.checkpoint import read_state
from quintic.metrics_file import METRICS, read_records
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS
from tests import warm
from tests.waiting import LOOK_EVERY_S, outputs, wait_until

TOKEN = "QUINTIC_TEST_TOKEN"
"""In the environment of every process of a test, by which it is found again."""

FAULT = """\
import os, sys
if os.environ.get("RANK") in {ranks!r} and os.environ.get("TORCHELASTIC_RESTART_COUNT") in {starts}:
    {body}
"""


class Command:
    """A command that runs, its output, and its descendants wherever they have gone."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, environment: dict[str, str], *, plain: bool
    ) -> None:
        self.token = uuid.uuid4().hex
        self._output, self._errors = folder / "stdout", folder / "stderr"
        self._processes = folder / "processes"
        self._processes.mkdir()
        with self._output.open("w") as output, self._errors.open("w") as errors:
            start = subprocess.Popen if plain else warm.Popen
            self.process = start(
                arguments,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                    TOKEN: self.token,
                    warm.REGISTER: str(self._processes),
                },
            )

    @property
    def output(self) -> str:
        """Standard output so far."""
        return self._output.read_text()

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self._errors.read_text()

    def alive(self) -> dict[int, str]:
        """Every process of this command that lives, with its rank; the launcher has none."""
        found = {}
        for path in self._processes.iterdir():
            with suppress(OSError):
                state = Path("/proc", path.name, "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found[int(path.name)] = path.read_text()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                environment = (entry / "environ").read_bytes().decode().split("\0")
                if f"{TOKEN}={self.token}" in environment:
                    values = dict(item.partition("=")[::2] for item in environment)
                    found[int(entry.name)] = values.get("RANK", "")
            except OSError:
                continue
        return found

    def rank(self, rank: int) -> int:
        """The process of a rank, once there is one."""
        self.until(lambda: self._of(rank) != [], f"start of rank {rank}")
        return self._of(rank)[0]

    def _of(self, rank: int) -> list[int]:
        return [pid for pid, found in self.alive().items() if found == str(rank)]

    def signal(self, number: signal.Signals, rank: int | None = None) -> None:
        """To the command itself, or to a rank of it."""
        os.kill(self.process.pid if rank is None else self.rank(rank), number)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition while the command runs."""
        wait_until(
            condition,
            what,
            alive=lambda: self.process.poll() is None,
            said=lambda: f"{self.output}{self.errors}",
        )

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        self.until(lambda: self.process.poll() is not None, "end")
        return self.process.wait()

    def until_gone(self) -> None:
        """Wait until no process of it lives."""
        said = f"{self.output}{self.errors}"
        wait_until(lambda: not self.alive(), f"end of {self.alive()}", said=lambda: said)

    def end(self) -> None:
        """Kill what is left."""
        while alive := self.alive():
            for pid in alive:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(LOOK_EVERY_S)
        outputs(self.process)


@contextmanager
def running(
    arguments: Sequence[str],
    folder: Path,
    *,
    fault: str = "",
    ranks: Sequence[int] = (1,),
    restarts: int = 0,
    environment: dict[str, str] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "quintic"),
    plain: bool = False,
) -> Iterator[Command]:
    """Run `quintic` with these arguments.

    Args:
        arguments: of quintic.
        folder: for its output, and for the fault.
        fault: Python that the given ranks execute before they begin.
        ranks: those ranks.
        restarts: at how many starts after the first they execute it too.
        environment: added to this one's.
        command: what runs quintic.
        plain: in new processes of Python, not in forked ones (`tests.warm`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(environment or {})
    if fault:
        body = "\n    ".join(fault.strip().splitlines())
        starts = [str(start) for start in range(restarts + 1)]
        (folder / "sitecustomize.py").write_text(
            FAULT.format(ranks=[str(rank) for rank in ranks], starts=starts, body=body)
        )
        path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
    started = Command([*command, *arguments], folder, environment, plain=plain)
    try:
        yield started
    finally:
        started.end()


def records(folder: Path) -> list[dict[str, Any]]:
    """Of `metrics.jsonl`, which may be written at this moment."""
    try:
        return read_records(folder / METRICS)
    except OSError:
        return []


def losses(folder: Path) -> list[tuple[int, str, float]]:
    """Every loss of a run in the order of the file."""
    return [
        (record["step"], name, record[name])
        for record in records(folder)
        for name in ("val_loss", "train_loss")
        if name in record
    ]


def steps_done(folder: Path) -> int:
    """Steps that a run has in its metrics."""
    steps = [record["step"] + 1 for record in records(folder) if "train_loss" in record]
    return max(steps, default=0)


def whole_checkpoints(folder: Path) -> list[int]:
    """The steps of a run's checkpoints, all of which must be whole."""
    return [read_state(path)["step"] for path in checkpoints(folder / CHECKPOINTS)]


def assert_tidy(folder: Path) -> None:
    """Nothing half-written is left, and every checkpoint is whole."""
    whole_checkpoints(folder)
    assert sorted((folder / CHECKPOINTS).iterdir()) == checkpoints(folder / CHECKPOINTS)
    assert not list(folder.glob(".*.tmp"))

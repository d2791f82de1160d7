"""The runs of a sweep, each a process of its own, several at once.

A run is `quintic train` as anybody would start it, so what is true of that is true here: a run that
was stopped or killed continues from its checkpoint, and one that dies takes nothing with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quintic.cores import available_cores
from quintic.distributed.signals import GracefulShutdown
from quintic.files import write_json
from quintic.sweep.plan import PlannedRun
from quintic.sweep.record import Outcome, Outcomes, outcome_in

POLL_S = 0.1
USER_ERROR = 2
DIVERGED = re.compile(r"training has diverged|is not finite after step \d+ and was not saved")
"""Matches the messages with which `quintic train` ends, with exit code 2, on divergence: the loss
of a step is not finite, or a weight that a checkpoint would hold."""


class Job:
    """A run and the process that trains it."""

    def __init__(self, run: PlannedRun, folder: Path, environment: Mapping[str, str]) -> None:
        self.run, self.folder = run, folder / run.name
        self._config, self._log = (folder / f"{run.name}.{kind}" for kind in ("json", "log"))
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self.waits = False
        """A process of an earlier start of the sweep, which was killed, still trains this run."""

    def outcome(self) -> Outcome | None:
        """Return what became of the run, None while it goes on; the first call starts it."""
        if self._process is None:
            return self._begin()
        if self._process.poll() is None:
            return None
        return self._judge(self._process.returncode)

    def stop(self) -> bool:
        """Ask the run to save and end; False where no process of ours trains it."""
        self._signal(signal.SIGINT)
        return self._process is not None

    def kill(self) -> None:
        """End it at once; its checkpoints stay whole."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _begin(self) -> Outcome | None:
        with self._log.open("ab") as log:
            # The lock goes with the open file, which is the run's standard output: it is free when
            # the run has ended, and not before, even where this process is killed.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.waits = True
                return None
            if self.waits:
                self.waits = False
                if (found := outcome_in(self.folder, self.run)).final:
                    return found
            write_json(self._config, self.run.config.to_dict())
            self._log_start = log.seek(0, os.SEEK_END)
            out = ["--out", str(self.folder), "--auto-resume"]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quintic", "train", str(self._config), *out],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Of its own, so that Ctrl-C reaches this process alone, which then tells the runs.
                start_new_session=True,
            )
        return None

    def _judge(self, code: int) -> Outcome:
        found = outcome_in(self.folder, self.run)
        message = self._last_words()
        if code == USER_ERROR and DIVERGED.search(message):
            return Outcome("diverged", message=message)
        if found.final:
            return found
        if code < 0:
            message = f"was ended by {signal.Signals(-code).name}"
        return Outcome("failed", message=message or f"ended with exit code {code}")

    def _last_words(self) -> str:
        """Return the message with which the process ended, of what it printed."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        spoken = [line for line in lines if line.startswith("quintic: ")]
        return (spoken or lines or [""])[-1].removeprefix("quintic: ")


def execute(
    runs: Sequence[PlannedRun],
    folder: Path,
    outcomes: Outcomes,
    *,
    jobs: int,
    on_change: Callable[[list[Job]], None],
    on_end: Callable[[PlannedRun], None],
) -> bool:
    """Train every run that is not done, and note in `outcomes` what becomes of it.

    `on_change` is called now and then, with the runs that go on; `on_end` after each run. Returns
    False where SIGINT or SIGTERM stopped it: the runs are then saved and have ended. A second
    SIGINT kills them and raises `KeyboardInterrupt`.
    """
    environment = run_environment(jobs)
    waiting = deque(run for run in runs if not outcomes[run.name].final)
    going: list[Job] = []
    told = False
    with GracefulShutdown().handling_signals() as stop:
        try:
            while waiting or going:
                if stop.requested and not told:
                    told = True
                    waiting.clear()
                    going = [job for job in going if job.stop()]
                while waiting and len(going) < jobs:
                    going.append(Job(waiting.popleft(), folder, environment))
                for job in list(going):
                    if (outcome := job.outcome()) is None:
                        continue
                    going.remove(job)
                    if told and outcome.kind == "failed":
                        outcome = Outcome()
                    outcomes[job.run.name] = outcome
                    on_end(job.run)
                on_change(going)
                if going:
                    time.sleep(POLL_S)
        finally:
            for job in going:
                job.kill()
    return not told


def run_environment(jobs: int) -> dict[str, str]:
    """Return the environment of the runs: the cores are divided among those that go on at once, and
    none waits for the processes of a launcher whose variables are left over here."""
    left_over = ("RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in left_over}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // jobs)))
        # Threads that spin while they wait slow those of the other runs ten times and more; GNU
        # OpenMP's heed what `quintic.openmp` has told them.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    return environment

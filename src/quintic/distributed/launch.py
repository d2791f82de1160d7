"""`quintic train --procs N`: the processes of a run on this machine.

They are PyTorch's to manage (torch elastic, as torchrun is). What is added here: quintic's own
messages instead of its banners, an end that is whole when the launcher is told to stop, and no
second try of what a user got wrong. Several machines are torchrun's: docs/launch.md.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from subprocess import Popen
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from quintic.cores import available_cores
from quintic.distributed.signals import handling
from quintic.errors import QuinticError

USER_ERROR = QuinticError.exit_code
"""The exit code of what a user got wrong, which no restart mends."""

MONITOR_EVERY_S = 0.1
LAST_WORDS_S = 5.0
"""How long the others get to end by themselves once one process has failed."""


def process_count(procs: str) -> int:
    """The number that `--procs` stands for; `auto` is one process for each visible GPU.

    Raises `QuinticError` for anything else.
    """
    if procs == "auto":
        return max(1, torch.cuda.device_count())
    if not procs.isdecimal() or int(procs) < 1:
        raise QuinticError(
            f"--procs is {procs!r}: it must be a number of processes, or auto for one on each GPU"
        )
    return int(procs)


def launch(arguments: Sequence[str], procs: int, max_restarts: int) -> int:
    """Run `quintic` with these arguments in `procs` processes; returns the exit code.

    A process that dies takes the others with it, and all are started again, at most
    `max_restarts` times, from the newest checkpoint. SIGTERM and Ctrl-C reach every process, which
    save and end.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # One after the other, as torchrun does it, would leave most of a CPU idle.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // procs)))
    # Ours to handle: the elastic agent would end the processes without their own last words.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    rendezvous = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        is_host=True,
    )
    spec = WorkerSpec(
        role="quintic",
        local_world_size=procs,
        entrypoint=sys.executable,
        args=("-m", "quintic", *arguments),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=max_restarts,
        monitor_interval=MONITOR_EVERY_S,
        local_addr="localhost",
    )
    # Named here, since PyTorch leaves a folder of its own behind, though nothing is logged there.
    with TemporaryDirectory(prefix="quintic_", ignore_cleanup_errors=True) as logs:
        agent = _Agent(spec, DefaultLogsSpecs(logs))
        try:
            with handling(agent.pass_on):
                result = agent.run()
        except NoRestart as failed:
            result = failed.result
    if not result.is_failed():
        return 0
    if _user_error(result):
        return USER_ERROR
    return 1 if agent.stopped_by is None else 128 + agent.stopped_by


class _Agent(LocalElasticAgent):
    """PyTorch's agent of one machine, with quintic's manners.

    It overrides the two methods that PyTorch documents for that; `_pcontext`, the processes
    themselves, is the one attribute of its own that PyTorch does not document.
    """

    stopped_by: int | None = None
    """The signal that asked the run to stop."""
    _starts = 0
    _give_up_at_s: float | None = None
    """When processes that have not ended by themselves are ended (`time.monotonic`)."""

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Give a signal to every process; they agree on the step at which they stop.

        A second Ctrl-C ends those that do not heed it: they may wait for one that hangs.
        """
        if self.stopped_by is not None and number == signal.SIGINT:
            self._give_up_at_s = time.monotonic() + LAST_WORDS_S
        self.stopped_by = number
        for process in self._alive():
            process.send_signal(number)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        spec = worker_group.spec
        if self._starts > 0:
            self._say(
                f"starting all {spec.local_world_size} processes again "
                f"(restart {self._starts} of {spec.max_restarts})"
            )
        self._starts += 1
        pids: dict[int, Any] = super()._start_workers(worker_group)
        if self.stopped_by is not None:  # they were not there yet to be told
            for process in self._alive():
                process.terminate()
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        killed = self._end_the_rest()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state not in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            return result
        for rank, failure in sorted(result.failures.items()):
            if failure.exitcode < 0 and failure.pid not in killed and not self.stopped_by:
                self._say(f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}")
        if self.stopped_by or _user_error(result):
            raise NoRestart(result)
        return result

    def _end_the_rest(self) -> set[int]:
        """Once a process has failed, let the others end with their own words, for a while; returns
        those that had to be killed. PyTorch would send them a signal, which here means to save."""
        failed = any(process.poll() for process in self._processes())
        if failed and self._give_up_at_s is None:
            self._give_up_at_s = time.monotonic() + LAST_WORDS_S
        if self._give_up_at_s is None:
            return set()
        while (alive := self._alive()) and time.monotonic() < self._give_up_at_s:
            if not failed and not any(process.poll() for process in self._processes()):
                return set()  # all may yet end well
            time.sleep(MONITOR_EVERY_S)
        for process in alive:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._give_up_at_s = None
        return {process.pid for process in alive}

    def _processes(self) -> list[Popen[bytes]]:
        assert isinstance(self._pcontext, SubprocessContext | None), "the entrypoint is a command"
        if self._pcontext is None:
            return []
        return [handler.proc for handler in self._pcontext.subprocess_handlers.values()]

    def _alive(self) -> list[Popen[bytes]]:
        return [process for process in self._processes() if process.poll() is None]

    def _say(self, message: str) -> None:
        print(f"quintic: {message}", file=sys.stderr, flush=True)


class NoRestart(Exception):  # noqa: N818
    """The processes have failed in a way that starting them again would not mend."""

    def __init__(self, result: RunResult) -> None:
        self.result = result


def _user_error(result: RunResult) -> bool:
    return USER_ERROR in {failure.exitcode for failure in result.failures.values()}

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
import uuid
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from quintic.errors import QuinticError

USER_ERROR = 2
"""The exit code of what a user got wrong, which no restart mends."""

MONITOR_EVERY_S = 0.1
LAST_WORDS_S = 10
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
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // procs)))
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
    agent = _Agent(
        WorkerSpec(
            role="quintic",
            local_world_size=procs,
            entrypoint=sys.executable,
            args=("-m", "quintic", *arguments),
            rdzv_handler=get_rendezvous_handler(rendezvous),
            max_restarts=max_restarts,
            monitor_interval=MONITOR_EVERY_S,
            local_addr="localhost",
        ),
        DefaultLogsSpecs(),
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, agent.pass_on)
    try:
        result = agent.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not result.is_failed():
        return 0
    codes = {failure.exitcode for failure in result.failures.values()}
    return USER_ERROR if USER_ERROR in codes else 1


class _Agent(LocalElasticAgent):
    """PyTorch's agent of one machine, with quintic's manners."""

    _stopping = False

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Give a signal to every process; they agree on the step at which they stop."""
        self._stopping = True
        for pid in self._pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _pids(self) -> list[int]:
        return list(self._pcontext.pids().values()) if self._pcontext is not None else []

    def _monitor_workers(self, worker_group: WorkerGroup) -> Any:
        result = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            codes = [failure.exitcode for failure in result.failures.values()]
            if self._stopping or USER_ERROR in codes:
                self._remaining_restarts = 0
            for rank, failure in sorted(result.failures.items()):
                if failure.exitcode < 0 and not self._stopping:
                    self._say(f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}")
            if self._remaining_restarts > 0:
                done = self._worker_group.spec.max_restarts - self._remaining_restarts + 1
                self._say(
                    f"starting all {self._worker_group.spec.local_world_size} processes again "
                    f"(restart {done} of {self._worker_group.spec.max_restarts})"
                )
        return result

    def _say(self, message: str) -> None:
        print(f"quintic: {message}", file=sys.stderr, flush=True)

    def _shutdown(
        self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = LAST_WORDS_S
    ) -> None:
        super()._shutdown(death_sig, min(timeout, LAST_WORDS_S))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

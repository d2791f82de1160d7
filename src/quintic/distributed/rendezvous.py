"""How the processes that a launcher started meet, in a store that only they write to.

PyTorch's elastic launcher (`quintic train --procs N`, or torchrun) tells each process its rank in
the environment. Its store outlives a restart, and so does what earlier processes put into it, such
as the addresses at which they listened: whoever read those would wait for the dead. Neither the
number of restarts nor the rendezvous tells starts apart on all nodes (each agent of torchrun counts
its own restarts, and none where a node comes back), so the ranks agree on a name for this one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore

from quintic.distributed.world import World, connect_store, error_words
from quintic.errors import LostRankError, QuinticError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""When a collective gives up; the watchdog finds a rank that hangs long before."""

MEETING_TIMEOUT = timedelta(minutes=10)
"""How long the ranks wait for each other at the start; nodes boot at different speed."""

NOTICE_S = 20.0
"""How long nothing is said of ranks that do not answer, and then again that long."""

POLL_S = 0.02
HELLO, ROLL = "quintic/hello/{}", "quintic/roll"
PRESENT, COMPLETE = "quintic/{}/present", "quintic/{}/complete"


def rendezvous_barrier(
    store: Any, rank: int, size: int, timeout_s: float
) -> tuple[str, PrefixStore]:
    """The name of this start and the store under it, once all its ranks have answered.

    Every rank says hello with a name of its own. Rank 0 reads the names out, anew whenever one has
    changed, and the start begins when all have heard their own name in the same roll: a name that
    a dead process left behind is never answered.

    Raises `TimeoutError` naming the ranks that said nothing, `RuntimeError` where the store fails
    or another process has taken the place of this one.
    """
    own, began_s, notice_s = uuid.uuid4().hex, time.monotonic(), NOTICE_S
    store.set(HELLO.format(rank), own)
    start, names = "", [""] * size
    while (waited_s := time.monotonic() - began_s) < timeout_s:
        if waited_s > notice_s:
            notice_s += NOTICE_S
            silent = _silent(store, size)
            if rank == min(set(range(size)) - set(silent)):  # one of them speaks
                _say_waiting(rank, size, _words_for(silent), timeout_s - waited_s)
        if rank == 0:
            found = [_read(store, HELLO.format(other)) for other in range(size)]
            if found[0] != own:
                raise RuntimeError("another process has begun as rank 0")
            if "" not in found and found != names:
                start, names = uuid.uuid4().hex, found
                store.set(ROLL, json.dumps([start, names]))
            if start and store.add(PRESENT.format(start), 0) == size - 1:
                store.set(COMPLETE.format(start), "1")
                return start, PrefixStore(start, store)
        else:
            read_out, names = json.loads(_read(store, ROLL) or '["", []]')
            if own in names:
                if read_out != start:
                    start = read_out
                    store.add(PRESENT.format(start), 1)
                if store.check([COMPLETE.format(start)]):
                    return start, PrefixStore(start, store)
        time.sleep(POLL_S)
    raise TimeoutError(f"no answer from {_words_for(_silent(store, size))} in {timeout_s:.0f} s")


def _silent(store: Any, size: int) -> list[int]:
    """Return the ranks that have said nothing yet."""
    return [rank for rank in range(size) if not store.check([HELLO.format(rank)])]


def _words_for(silent: list[int]) -> str:
    return f"rank {', '.join(map(str, silent))}" if silent else "the processes of an earlier start"


def _say_waiting(rank: int, size: int, for_whom: str, left_s: float) -> None:
    message = (
        f"quintic: rank {rank} of {size} on {socket.gethostname()} waits for {for_whom}, for "
        f"{left_s:.0f} s more; if this is to be a run of one process, unset WORLD_SIZE and RANK"
    )
    print(message, file=sys.stderr, flush=True)


def launched_size() -> int:
    """The number of processes that a launcher started for this run; 1 without a launcher.

    Raises `QuinticError` where the environment gives none.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise QuinticError(
            f"WORLD_SIZE is {size!r} in the environment: it must be the number of processes of the "
            "run; unset it, or start them with --procs N or with torchrun, which set it"
        )
    return int(size)


def connect(backend_device: str) -> World:
    """Meet the other processes that the launcher started; a world of one where it started none.

    `backend_device` is "cuda" where CUDA tensors will travel, else "cpu". Raises `QuinticError`
    where the environment is not what a launcher sets, and `LostRankError` where nobody answers.
    """
    size = launched_size()
    if size == 1:
        return World()
    try:
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not 0 <= rank < size:
            raise ValueError(f"RANK is {rank}, of WORLD_SIZE {size}")
        shared = _reach_store(rank, size)
        start, store = rendezvous_barrier(shared, rank, size, MEETING_TIMEOUT.total_seconds())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if backend_device == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        side = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        mesh = init_device_mesh("cpu", (size,))
    except KeyError as error:
        raise QuinticError(
            f"WORLD_SIZE is {size} and {error.args[0]} is not set: start several processes with "
            "--procs N or with torchrun, which set both (docs/launch.md); if this is to be a run "
            "of one process, unset WORLD_SIZE"
        ) from error
    except (ValueError, RuntimeError, TimeoutError) as error:
        raise LostRankError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} could not meet the other "
            f"processes ({error_words(error)}): MASTER_ADDR and MASTER_PORT must reach rank 0, and "
            "GLOO_SOCKET_IFNAME name the interface that does (docs/launch.md)"
        ) from error
    return World(rank, size, local_rank, local_size, start, store, side, mesh)


def _reach_store(rank: int, size: int) -> Any:
    """Return a connection to the store; says what it waits for where that is long in coming.

    Raises `RuntimeError` where it cannot be reached, and as `connect_store` does.
    """
    began_s = time.monotonic()
    while True:
        try:
            store = connect_store(timedelta(seconds=NOTICE_S))
        except dist.DistError as error:
            left_s = MEETING_TIMEOUT.total_seconds() - (time.monotonic() - began_s)
            if rank == 0 or left_s < 0:
                raise
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            _say_waiting(rank, size, f"rank 0 at {address} ({error_words(error)})", left_s)
        else:
            store.set_timeout(MEETING_TIMEOUT)
            return store


def _read(store: Any, key: str) -> str:
    """Return what is stored under a key, or nothing; `get` would wait."""
    return store.get(key).decode() if store.check([key]) else ""

"""Several ranks in a test: processes that meet over loopback, each runs one function.

They are forked from a server that has imported PyTorch once, so a world starts in a moment.
"""

from __future__ import annotations

import os
import queue
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.waiting import wait_until
from tests.warm import CONTEXT


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def run_world(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(world, *arguments)` returned on each of `size` ranks.

    Raises `RuntimeError` with the traceback of the first rank that raised.
    """
    results: Any = CONTEXT.Queue()
    port = free_port()
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, size, port, results, function, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}

    def all_came() -> bool:
        with suppress(queue.Empty):
            while True:
                rank, failure, value = results.get_nowait()
                if failure is not None:
                    raise RuntimeError(f"rank {rank}:\n{failure}")
                found[rank] = value
        return len(found) == size

    def none_died() -> bool:
        dead = {rank for rank, process in enumerate(processes) if not process.is_alive()}
        return all_came() or dead <= found.keys()

    try:
        wait_until(
            all_came, "result of all ranks", alive=none_died, said=lambda: f"only {sorted(found)}"
        )
    finally:
        for process in processes:
            if len(found) < size:
                process.kill()
            process.join()
    return [found[rank] for rank in range(size)]


def _rank(
    rank: int,
    size: int,
    port: int,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch
    import torch.distributed

    from quintic.distributed.world import connect

    torch.set_num_threads(1)
    try:
        value = function(connect("cpu"), *arguments)
        results.put((rank, None, value))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
    finally:
        results.close()
        results.join_thread()  # what was put is sent before the process ends
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

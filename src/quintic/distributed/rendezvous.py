"""A store that only the processes of this start write to.

The launcher's store outlives a restart, and so does what earlier processes put into it, such as the
addresses at which they listened: whoever read those would wait for the dead. Neither the number of
restarts nor the rendezvous tells starts apart on all nodes (each agent of torchrun counts its own
restarts, and none where a node comes back), so the ranks agree on a name for this one.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

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
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    store.set(HELLO.format(rank), own)
    start, names = "", [""] * size
    while time.monotonic() < deadline:
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
    silent = [r for r in range(size) if not store.check([HELLO.format(r)])]
    who = f"rank {', '.join(map(str, silent))}" if silent else "the processes of an earlier start"
    raise TimeoutError(f"no answer from {who} in {timeout_s:.0f} s")


def _read(store: Any, key: str) -> str:
    """What is there, or nothing; `get` would wait."""
    return store.get(key).decode() if store.check([key]) else ""

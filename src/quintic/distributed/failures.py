"""When one process of a run fails, it says why, and the others end without a word."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from quintic.distributed.world import World, error_words
from quintic.errors import LostRankError, QuinticError

FAILED_KEY = "quintic/failed"
PEER_GRACE_S = 2.0
"""How long a rank that lost the others waits for one of them to say why."""


@contextmanager
def first_failure_speaks(world: World) -> Iterator[None]:
    """End all ranks with the message of the one that failed first.

    The others fail too, a moment later, for want of it: they end without a word.
    """
    try:
        yield
    except KeyboardInterrupt:
        if world.size == 1:
            raise
        if _claim(world):
            print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (SystemExit, BrokenPipeError):
        raise
    except Exception as error:
        if world.size == 1:
            raise
        lost = lost_a_peer(error)
        if lost:
            _await_claim(world)
        if not _claim(world):
            raise SystemExit(LostRankError.exit_code) from None
        if lost:
            raise LostRankError(
                f"rank {world.rank} lost another rank, which ended without a word of its own "
                f"({error_words(_root(error))}): all stop here"
            ) from error
        if isinstance(error, QuinticError):
            raise QuinticError(f"rank {world.rank}: {error}") from error
        raise
    finally:
        if world.size > 1 and dist.is_initialized():
            # What is under way with a rank that is gone must not hold up the end of this one.
            dist.destroy_process_group()


def lost_a_peer(error: BaseException) -> bool:
    """Return whether an error says that another rank is gone, rather than what is wrong here."""
    if isinstance(error, QuinticError):
        return error.__cause__ is not None and lost_a_peer(error.__cause__)
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        mark in text
        for mark in ("gloo", "Connection closed by peer", "Connection reset", "Broken pipe")
    )


def _claim(world: World) -> bool:
    """Return whether this rank is the first to fail; the store counts."""
    try:
        return bool(world.store.add(FAILED_KEY, 1) == 1)
    except RuntimeError:  # the store went down with the rank that held it
        return False


def _await_claim(world: World) -> None:
    deadline = time.monotonic() + PEER_GRACE_S
    try:
        while time.monotonic() < deadline and not world.store.check([FAILED_KEY]):
            time.sleep(0.05)
    except RuntimeError:
        time.sleep(max(0.0, deadline - time.monotonic()))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error

"""How long PyTorch's threads spin while they wait for each other.

PyTorch's wheels for Linux bring GNU OpenMP, whose threads meet after each operator. One that comes
first looks 300,000 times whether the others have come before it sleeps. That takes milliseconds, in
which, on a machine where something else runs too, it keeps those that it waits for from its core.
`docs/launch.md` has what that costs, and `bench/threads.py` measures it. The libraries that other
systems' wheels bring do not read this variable.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPIN_COUNT = 30_000
"""Longer than nearly all waits on a machine that is otherwise quiet (`docs/launch.md`)."""

_COUNT, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def spin_less() -> None:
    """Let threads sleep sooner, here and in the processes started from here, unless the user has
    said how they wait.

    The library reads its variables when it is loaded, with PyTorch: where that has been imported
    already, this does nothing.
    """
    told = _COUNT in os.environ or _POLICY in os.environ
    if sys.platform == "linux" and "torch" not in sys.modules and not told:
        os.environ[_COUNT] = str(SPIN_COUNT)


def spins_less() -> bool:
    """Return whether PyTorch's threads wait as `spin_less` chooses, by a library that heeds it."""
    if os.environ.get(_COUNT) != str(SPIN_COUNT):
        return False
    return "libgomp" in Path("/proc/self/maps").read_text()

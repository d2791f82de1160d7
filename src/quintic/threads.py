"""The threads that a run on a CPU computes with, where other programs use its cores too.

They wait for each other after each operator, so that one whose core is taken holds up all: beside a
busy program on every core, one thread is faster than two (docs/launch.md). The number is chosen
once, at the start, and a run that goes on keeps it: how sums are divided among threads decides how
they are rounded, so another number in the middle would make it another run.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from quintic.cores import available_cores, free_cores
from quintic.run_dir import read_environments


def choose_threads(goes_on: Path | None) -> str | None:
    """Take fewer of PyTorch's threads where other programs use the cores, but at least half, which
    is what the system gives to them beside as many programs; return in words what was chosen and
    why, None where all stay.

    A run that goes on from the one in `goes_on` keeps the number that its last start had. A user
    who has set `OMP_NUM_THREADS` has chosen.
    """
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or threads == 1:
        return None
    if (had := _threads_before(goes_on)) is not None:
        chosen, why = had, "as the run had so far, since rounding depends on it"
    else:
        free = free_cores()
        chosen = max(round(free), threads // 2)
        why = f"since other programs leave {free:.1f} of {available_cores()} cores free"
    if chosen >= threads:
        return None
    torch.set_num_threads(chosen)
    return f"threads {chosen}, not {threads}, {why}; OMP_NUM_THREADS sets another number"


def _threads_before(folder: Path | None) -> int | None:
    """Return the threads of a run's last start; None where there was none, or it had several
    processes."""
    starts = read_environments(folder) if folder is not None else []
    last = starts[-1] if starts else {}
    threads = last.get("threads")
    return threads if isinstance(threads, int) and last.get("processes") == 1 else None

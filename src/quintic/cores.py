"""The number of cores there are to work on."""

import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: those it may run on, or fewer where the limit of
    a container (`docker run --cpus`, Kubernetes' `limits.cpu`) gives it less of their time.

    `root` is where `proc` and `sys` are.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    # Rounded down: a thread more than there is time for makes all others wait for it.
    return max(1, int(min([cores, *_cgroup_limits(root)])))


LOOK_S = 0.5
"""Seconds that `free_cores` looks, in which a core counts 50 of its ticks."""


def free_cores(root: Path = Path("/")) -> float:
    """Return how many of the available cores nobody uses while this process sleeps for `LOOK_S`;
    all of them where the system does not say, which Linux does in `proc/stat` (proc_stat(5)).

    The load average would still know of what has ended a minute ago, and `proc/pressure` knows only
    of programs that wait for a core, as ours do not yet. `root` is where `proc` and `sys` are.
    """
    cores, before = available_cores(root), _ticks(root)
    if before:
        time.sleep(LOOK_S)
    passed = [
        (idle - before[core][0], ticks - before[core][1])
        for core, (idle, ticks) in _ticks(root).items()
        if core in before
    ]
    shares = [idle / ticks for idle, ticks in passed if ticks > 0]  # a sandbox may count nothing
    return min(sum(shares), cores) if shares else cores


def _ticks(root: Path) -> dict[int, tuple[int, int]]:
    """Return for each core that this process may run on how long it was idle, and all of its time,
    in ticks of the system's clock."""
    found = {}
    for line in _text_of(root / "proc/stat").splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in os.sched_getaffinity(0):
            # user, nice, system, idle, iowait, irq, softirq, steal; user and nice include guests
            ticks = [int(column) for column in columns[:8]]
            found[int(name[3:])] = sum(ticks[3:5]), sum(ticks)
    return found


def _cgroup_limits(root: Path) -> Iterator[float]:
    """Yield the limits, in cores, of this process's cgroups and of all that these are in.

    Version 2 keeps quota and period, in microseconds, in `cpu.max`, version 1 in two files (Linux:
    Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst); no limit is `max` or -1.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        own = PurePosixPath(path.lstrip("/"))
        # In a container the path may be that of the host, which is not there; the root is.
        for mount in {mounts, mounts / (controllers or "unified"), mounts / "cpu"}:
            for folder in (mount / part for part in (own, *own.parents)):
                limit = " ".join(_text_of(folder / name) for name in files).split()
                if len(limit) == 2 and limit[0] not in ("max", "-1"):
                    yield int(limit[0]) / int(limit[1])


def _text_of(file: Path) -> str:
    """Return the text of a small file; nothing where it cannot be read."""
    try:
        return file.read_text()
    except OSError:
        return ""

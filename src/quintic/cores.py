"""The number of cores there are to work on."""

import os
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

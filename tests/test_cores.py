"""The cores a process may use (its affinity, and the limits of the containers that it is in), and
those that others leave free."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from quintic.cores import LOOK_S, available_cores, free_cores
from quintic.device import choose_device

V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"
MACHINES = {
    "no cgroups": ({}, 8),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
    "v2, seen from within a container": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2,
    ),
    "v2, a limit of the cgroup above": (
        {
            "proc/self/cgroup": "0::/kubepods/pod 1/main\n",
            "sys/fs/cgroup/kubepods/pod 1/main/cpu.max": "max 100000\n",
            "sys/fs/cgroup/kubepods/pod 1/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/kubepods/cpu.max": "700000 100000\n",
        },
        3,
    ),
    "v2 beside v1": (
        {
            "proc/self/cgroup": "2:memory:/\n1:name=systemd:/\n0::/\n",
            "sys/fs/cgroup/unified/cpu.max": "400000 100000\n",
        },
        4,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "v1, where the host's path is not there": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1, a limit of its own": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "10000\n",
        },
        5,
    ),
    "less than one core": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        1,
    ),
    "more than there are": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"},
        8,
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_limit_of_a_container_counts_as_much_as_affinity(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, cores = MACHINES[machine]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert available_cores(tmp_path) == cores


def proc_stat(*cores: str) -> str:
    """Return a `/proc/stat` with the columns of these cores, and lines of other things around."""
    lines = [f"cpu{number} {columns} 9 9" for number, columns in enumerate(cores)]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 9", *lines, "intr 99 1 0", "ctxt 1", ""])


IDLE, BUSY = "0 0 0 0 0 0 0 0", "40 2 3 0 0 2 2 1"
"""A core's columns at first, and 50 ticks later if all were somebody's."""


@pytest.mark.parametrize(
    ("after", "quota", "free"),
    [
        (["0 0 0 50 0 0 0 0", "0 0 1 29 20 0 0 0", BUSY], "max", 1.98),
        ([BUSY, BUSY, "0 0 0 50 0 0 0 0"], "max", 0.0),  # the third is not for this process
        (["20 0 5 25 0 0 0 0", BUSY, BUSY], "max", 0.5),
        (["0 0 0 50 0 0 0 0", "0 0 0 50 0 0 0 0", BUSY], "100000", 1),
        (["0 0 0 50 0 0 0 0", BUSY, BUSY], "100000", 1.0),
        ([IDLE, IDLE, IDLE], "max", 2),  # a sandbox that counts nothing
        (["0 0 0 50 0 0 0 0"], "max", 1.0),  # the second was taken away meanwhile
    ],
)
def test_what_others_leave_free_is_the_idle_time_of_the_cores(
    after: list[str], quota: str, free: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{quota} 100000\n")
    stat = tmp_path / "proc/stat"
    stat.write_text(proc_stat(IDLE, IDLE, IDLE))
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        stat.write_text(proc_stat(*after))

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert free_cores(tmp_path) == pytest.approx(free)
    assert slept == [LOOK_S]


def test_where_no_system_says_it_all_cores_are_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delattr(time, "sleep")
    assert free_cores(tmp_path) == 6


@pytest.mark.parametrize(
    ("chosen", "threads", "kept"), [(None, 64, 2), (None, 1, 1), ("16", 16, 16)]
)
def test_pytorch_gets_no_more_threads_than_cores_unless_told(
    chosen: str | None, threads: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [threads]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    monkeypatch.setattr("quintic.device.available_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    choose_device("cpu")
    assert now == [kept]

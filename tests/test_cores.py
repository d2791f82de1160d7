"""The cores a process may use: its affinity, and the limits of the containers that it is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from quintic.cores import available_cores
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

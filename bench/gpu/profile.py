"""Where the time of a step goes: the longest kernels of the profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KERNELS = 15


def longest_kernels(work: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """The kernels that take the longest in all while `work` is done, on a CPU the operators.

    Each with its milliseconds, its calls, and its share of all kernels' time.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
        if cuda:
            torch.cuda.synchronize(device)
    times = {
        event.key: (
            (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000,
            event.count,
        )
        for event in profiler.key_averages()
        # Annotations, such as those of compiled graphs, span kernels that are counted themselves.
        if (event.device_type.name == "CUDA") == cuda
        and not getattr(event, "is_user_annotation", False)
    }
    total = sum(ms for ms, _ in times.values()) or 1.0
    longest = sorted(times.items(), key=lambda item: -item[1][0])[:KERNELS]
    return [
        {"kernel": name[:120], "ms": round(ms, 3), "calls": calls, "share": round(ms / total, 5)}
        for name, (ms, calls) in longest
    ]

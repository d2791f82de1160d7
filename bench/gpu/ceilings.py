"""The device, and what it reaches: the two rates that every other figure is held against.

Random data, since a matrix product of zeros takes less power and runs faster than any real one;
buffers larger than the cache; the median of many repetitions, timed on the device.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch

from quintic.device import DeviceTimer, device_name

WARMUP, ROUNDS = 3, 15

SIZES = {"cuda": (8192, 2**31), "cpu": (256, 2**22), "mps": (4096, 2**28)}
"""By device: rows of the square matrices, and bytes of the buffer that is copied."""


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device and the versions of what computes on it."""
    triton = importlib.import_module("triton") if importlib.util.find_spec("triton") else None
    described: dict[str, Any] = {
        "device": device_name(device),
        "PyTorch": torch.__version__,
        "CUDA": torch.version.cuda,
        "Triton": triton and triton.__version__,
        "Python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "cuDNN": torch.backends.cudnn.version(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 2),
        }
    return described


def measure_ceilings(device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a square product, bfloat16 on CUDA and float32 elsewhere, and TB/s of a copy,
    bytes read plus bytes written."""
    rows, copied_bytes = SIZES[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randn(copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    product_ms = _median_ms(lambda: torch.mm(left, right, out=product), device)
    copy_ms = _median_ms(lambda: target.copy_(source), device)
    return {
        "product": f"{rows} x {rows} x {rows}, {str(dtype).removeprefix('torch.')}, random",
        "product_ms": round(product_ms, 4),
        "product_tflops": round(2 * rows**3 / product_ms / 1e9, 3),
        "copy_mib": copied_bytes // 2**20,
        "copy_ms": round(copy_ms, 4),
        "copy_tb_per_s": round(2 * copied_bytes / copy_ms / 1e9, 4),
    }


def _median_ms(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(WARMUP):
        work()
    timers = []
    for _ in range(ROUNDS):
        timer = DeviceTimer(device)
        work()
        timers.append(timer.stop())
    return statistics.median(timer.item() for timer in timers)

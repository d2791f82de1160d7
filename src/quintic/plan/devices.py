"""The devices that a plan can be for, and how fast they train."""

from __future__ import annotations

import os
from dataclasses import dataclass

from quintic.cores import available_cores
from quintic.device import PEAK_BFLOAT16_FLOPS
from quintic.errors import QuinticError
from quintic.plan.rates import CPU_CORE, H200, MeasuredRate

GPUS = {
    "b200": ("B200", 180),
    "h200": ("H200", 141),
    "h100": ("H100", 80),
    "a100": ("A100", 80),
    "a100-40gb": ("A100", 40),
    "l40s": ("L40S", 48),
    "l4": ("L4", 24),
    "a10g": ("A10G", 24),
    "rtx5090": ("RTX 5090", 32),
    "rtx4090": ("RTX 4090", 24),
    "rtx3090": ("RTX 3090", 24),
}
"""Each GPU's key in `PEAK_BFLOAT16_FLOPS` and its memory in GB, from NVIDIA's data sheets. A GB is
taken as 10^9 bytes, where the cards have nearly 2^30: the rest is for CUDA itself and for gaps."""

WITHOUT_FLOAT8 = ("a100", "a100-40gb", "a10g", "rtx3090")
"""Those of compute capability below 8.9."""

CPU = "cpu"

COUNTED_PRECISION = {"cuda": "bfloat16", "cpu": "float32"}
"""Precision that a plan is of, by the kind of device: what `train.precision auto` is there."""


@dataclass(frozen=True)
class Device:
    """Holds what a plan needs to know of a kind of device."""

    name: str
    type: str
    """cuda or cpu."""
    memory_bytes: int
    peak_flops: float | None
    """Data sheet's bfloat16 peak; None on a CPU."""
    rate: float
    """Operations a second that training should reach."""
    rate_label: str
    """What `rate` is: a measurement, or a prediction from one."""


def device_of(name: str) -> Device:
    """Return the device of a name; raises `QuinticError` for one that is not known."""
    asked = name.lower()
    if asked == CPU:
        cores = available_cores()
        rate = CPU_CORE.flops_per_s * cores
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        label = f"prediction: {cores} times {_measured(CPU_CORE)}"
        return Device(CPU, "cpu", memory, None, rate, label)
    if asked not in GPUS:
        raise QuinticError(
            f"--gpu is {name!r}: it must be one of {', '.join(GPUS)}, or {CPU} for this machine's"
        )
    key, memory_gb = GPUS[asked]
    share = H200.flops_per_s / PEAK_BFLOAT16_FLOPS[H200.device]
    label = f"prediction: {share:.0%} of the peak, {_measured(H200)}"
    peak = PEAK_BFLOAT16_FLOPS[key]
    return Device(asked, "cuda", memory_gb * 10**9, peak, share * peak, label)


def _measured(rate: MeasuredRate) -> str:
    return f"measured for {rate.trained} on one {rate.device} ({rate.source})"

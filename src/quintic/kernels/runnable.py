"""Whether Triton kernels can run on a device, asked before one is."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from quintic.errors import QuinticError

LEAST_CAPABILITY = (8, 0)
"""Compute capability from which a GPU has bfloat16 units: Ampere."""


def interpreted() -> bool:
    """Whether Triton's interpreter takes the place of its compiler, which needs no GPU.

    Triton decides so where it is imported: `TRITON_INTERPRET=1` must be set before. It is for
    tests, and thousands of times slower than a compiled kernel.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def require_triton(device: torch.device, *, asked: str, instead: str) -> None:
    """Raise `QuinticError` where kernels cannot run on `device`.

    `asked` is the option that needs them and `instead` what to use where they cannot run.
    """
    if reason := _obstacle(device):
        raise QuinticError(f"{asked} runs a Triton kernel, and {reason}: use {instead}")


def _obstacle(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return (
            "triton is not installed, which PyTorch's CUDA builds for Linux bring along"
            if device.type == "cuda"
            else _no_gpu(device)
        )
    if device.type == "cuda":
        if (found := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
            least = ".".join(map(str, LEAST_CAPABILITY))
            name = torch.cuda.get_device_name(device)
            return f"{name} has compute capability {found[0]}.{found[1]}, below {least}"
        return None
    if device.type == "cpu" and interpreted():
        return None
    return _no_gpu(device)


def _no_gpu(device: torch.device) -> str:
    return f"the device is {device.type}, not an NVIDIA or AMD GPU"

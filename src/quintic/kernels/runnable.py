"""Checks before a run begins that the fast paths can run on its device."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from quintic.errors import QuinticError

LEAST_CAPABILITY = (8, 0)
"""Compute capability from which a GPU has bfloat16 units: Ampere."""

FLOAT8_CAPABILITY = (8, 9)
"""Compute capability from which it has float8 units: Ada and Hopper."""


def interpreted() -> bool:
    """Return whether Triton's interpreter, which needs no GPU, takes the place of its compiler.

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


def choose_loss(asked: str, device: torch.device) -> str:
    """Return which loss computes on a device for `train.loss`; auto is fused on a GPU that runs it.

    Raises `QuinticError` where fused is asked for by name and cannot run.
    """
    if asked == "fused":
        require_triton(device, asked="train.loss fused", instead="--train.loss chunked")
    if asked == "auto":
        return "fused" if device.type == "cuda" and runs_triton(device) else "chunked"
    return asked


def runs_triton(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device."""
    return _obstacle(device) is None


def _obstacle(device: torch.device) -> str | None:
    installed = find_spec("triton") is not None
    if device.type == "cuda":
        if not installed:
            return "triton is not installed, which PyTorch's CUDA builds for Linux bring along"
        return _too_old(device, LEAST_CAPABILITY)
    if device.type == "cpu" and installed and interpreted():
        return None
    return f"the device is {device.type}, not an NVIDIA or AMD GPU"


def require_float8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise `QuinticError` where `train.float8_head` neither runs nor rounds as it should."""
    reason = None
    if dtype is torch.float64:
        reason = "all else is to be float64"
    elif device.type == "mps" or (device.type == "cuda" and torch.version.hip is not None):
        reason = f"{device.type} is not NVIDIA's here, whose formats it needs"
    elif device.type == "cuda":
        reason = _too_old(device, FLOAT8_CAPABILITY)
    if reason:
        raise QuinticError(
            f"train.float8_head multiplies in float8, and {reason}: use --train.no-float8-head"
        )


def _too_old(device: torch.device, least: tuple[int, int]) -> str | None:
    if (found := torch.cuda.get_device_capability(device)) >= least:
        return None
    name = torch.cuda.get_device_name(device)
    return f"{name} has compute capability {found[0]}.{found[1]}, below {least[0]}.{least[1]}"

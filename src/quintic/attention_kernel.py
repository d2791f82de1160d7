"""Which of PyTorch's attention kernels computes: one asked for by name, or PyTorch's own choice.

All of them compute the same (`quintic.model.base.attend`) to rounding. The choice holds for the
whole process while `attention_kernel` is open, in compiled code as well as outside and in the
threads of the backward pass.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from quintic.errors import QuinticError

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""The values of `train.attention` besides auto; math is the plain one, the reference."""

PROBE_TOKENS = 128


def attention_kernel(name: str) -> AbstractContextManager[None]:
    """While open, attention is computed by the kernel of that name; auto leaves it to PyTorch."""
    return nullcontext() if name == "auto" else sdpa_kernel(BACKENDS[name])


def check_attention(asked: str, device: torch.device, dtype: torch.dtype, head_width: int) -> None:
    """Raise `QuinticError` where a kernel is asked for by name and does not work here."""
    if asked == "auto" or works(asked, device, dtype, head_width):
        return
    there = [name for name in BACKENDS if works(name, device, dtype, head_width)]
    raise QuinticError(
        f"train.attention {asked} does not work on {device.type} for heads of {head_width} in "
        f"{str(dtype).removeprefix('torch.')} with PyTorch {torch.__version__}: use one that does, "
        f"{', '.join(there) or 'none'}, or auto"
    )


def works(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether a kernel takes a small causal attention forward and backward on the device."""
    if device.type == "mps":
        return name == "math"  # the others are ignored there, not refused
    shape = (1, 1, PROBE_TOKENS, head_width)
    q, k, v = (torch.zeros(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every reason why it does not
        try:
            with torch.enable_grad(), attention_kernel(name):
                F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        except RuntimeError:
            return False
    return True


def own_choice(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """The kernel that PyTorch takes by itself; None where it does not tell."""
    choose = getattr(torch, "_fused_sdp_choice", None)  # what its attention asks, not documented
    if choose is None or device.type not in ("cpu", "cuda"):
        return None
    x = torch.zeros((1, 1, PROBE_TOKENS, head_width), dtype=dtype, device=device)
    chosen = choose(x, x, x, is_causal=True)
    return next((name for name, backend in BACKENDS.items() if backend.value == chosen), None)

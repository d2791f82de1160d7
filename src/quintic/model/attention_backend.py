"""Which of PyTorch's attention kernels computes: one asked for by name, or PyTorch's own choice.

All of them compute the same (`quintic.model.attention.attend`) to rounding. The choice holds for
the whole process while `attention_backend` is open, in compiled code as well as outside and in the
threads of the backward pass. Only flex, which is generated for the model where that is compiled, is
chosen by the mask that the model is built with.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.model.attention import AttentionMask, attend, attention_block_mask, attention_mask

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""The values of `train.attention` besides auto and flex; math is the plain one, the reference."""

PROBE_TOKENS = 128


def attention_backend(name: str) -> AbstractContextManager[None]:
    """While open, attention is computed by the kernel of that name; auto leaves it to PyTorch."""
    return sdpa_kernel(BACKENDS[name]) if name in BACKENDS else nullcontext()


def check_attention(
    config: ModelConfig, asked: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise `QuinticError` where a kernel is asked for by name and does not work here."""
    if asked == "auto" or works(asked, config, device, dtype):
        return
    there = [name for name in BACKENDS if works(name, config, device, dtype)]
    masked = " behind a mask" if _masked(config) else ""
    raise QuinticError(
        f"train.attention {asked} does not work on {device.type} for heads of {config.head_width} "
        f"in {str(dtype).removeprefix('torch.')}{masked} with PyTorch {torch.__version__}: use one "
        f"that does, {', '.join(there) or 'none'}, or auto"
    )


def works(name: str, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel takes a small attention of the model forward and backward on the device."""
    if device.type == "mps":
        return name == "math"  # the others are ignored there, not refused
    q, k, v = (_probe(config, device, dtype).requires_grad_() for _ in range(3))
    function, mask = attend, _mask(config, device, blocks=name == "flex")
    if name == "flex" and device.type != "cpu":
        function = torch.compile(attend, dynamic=False)  # on a CPU it refuses to train as it is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every reason why it does not
        try:
            with torch.enable_grad(), attention_backend(name):
                function(q, k, v, mask).sum().backward()
        except RuntimeError:
            return False
    return True


def own_choice(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """The kernel that PyTorch takes by itself; None where it does not tell."""
    choose = getattr(torch, "_fused_sdp_choice", None)  # what its attention asks, not documented
    if choose is None or device.type not in ("cpu", "cuda"):
        return None
    x, mask = _probe(config, device, dtype), _mask(config, device, blocks=False)
    chosen = choose(x, x, x, attn_mask=mask, is_causal=mask is None)
    return next((name for name, backend in BACKENDS.items() if backend.value == chosen), None)


def _masked(config: ModelConfig) -> bool:
    return config.window is not None or config.document_mask


def _probe(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.zeros((1, 1, PROBE_TOKENS, config.head_width), dtype=dtype, device=device)


def _mask(config: ModelConfig, device: torch.device, *, blocks: bool) -> AttentionMask | None:
    """A mask where the model has one, which not every kernel takes."""
    tokens_BT = torch.zeros((1, PROBE_TOKENS), dtype=torch.int64, device=device)
    if blocks:
        return attention_block_mask(tokens_BT, window=config.window, eot_id=config.eot_id)
    if not _masked(config):
        return None
    return attention_mask(tokens_BT, PROBE_TOKENS, window=config.window, eot_id=config.eot_id)

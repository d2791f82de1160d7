"""The device of a run: the choice, its precision, the micro-batch that fits, its peak speed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

from quintic.config import Config, ModelConfig
from quintic.cores import available_cores
from quintic.distributed.world import ALONE, World
from quintic.errors import QuinticError, counted, one_line

PEAK_BFLOAT16_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A6000": 155e12,
}
"""Dense bfloat16 peak with float32 accumulation, from NVIDIA's data sheets; first match wins."""


def choose_device(asked: str, world: World = ALONE) -> torch.device:
    """Return the device that is asked for; `auto` is the first of cuda, mps, cpu that is there.

    Each of several processes on a machine gets a GPU of its own, by its local rank. PyTorch, which
    starts a thread for every core of the machine, is kept to those that this process may use.

    Raises `QuinticError` where a device is asked for by name and absent.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        asked = next(name for name, present in there.items() if present)
    if not there[asked]:
        available = ", ".join(name for name, present in there.items() if present)
        build = "" if torch.version.cuda or asked != "cuda" else ", built without CUDA"
        raise QuinticError(
            f"there is no {asked} device here that PyTorch {torch.__version__}{build} finds: it "
            f"has {available}; ask for one of these, or for auto"
        )
    if "OMP_NUM_THREADS" not in os.environ and available_cores() < torch.get_num_threads():
        torch.set_num_threads(available_cores())
    if world.size == 1 or asked == "cpu":
        return torch.device(asked)
    found = torch.cuda.device_count() if asked == "cuda" else 1
    if world.local_size > found:
        raise QuinticError(
            f"{world.local_size} processes on this machine need as many {asked} devices and it "
            f"has {found}: start {found}, or use --train.device cpu"
        )
    if asked == "cuda":
        torch.cuda.set_device(world.local_rank)
    return torch.device(asked, world.local_rank)


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({processor_name()}, {counted(torch.get_num_threads(), 'thread')})"


def processor_name() -> str:
    """Return the processor's name, which Linux keeps in a file and other systems in `platform`."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the precision of the matrix products for `train.precision`."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, precision)
    if dtype is torch.float64 and device.type == "mps":
        raise QuinticError("train.precision float64 does not exist on mps: use --train.device cpu")
    return dtype


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s for MFU, or None where it is not known (CPUs, other precisions)."""
    if device.type != "cuda" or dtype is not torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_BFLOAT16_FLOPS.items() if key in name), None)


class Moment:
    """The time at which the work that was dispatched until now is done.

    On a GPU that is known once the device has come to it; elsewhere it is the time of the call.
    """

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._s = time.perf_counter()

    def seconds_since(self, earlier: Moment) -> float:
        """Return the seconds from an earlier moment of the same device; waits for the work."""
        if self._event is None or earlier._event is None:
            return self._s - earlier._s
        self._event.synchronize()
        ms: float = earlier._event.elapsed_time(self._event)
        return ms / 1000


class DeviceTimer:
    """A timer of work on a device, which on a GPU knows its milliseconds once the work is done.

    Reading it (`item`) waits for the work, so it is read with the loss of the step, a step late.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._end = self._start = Moment(device)

    def stop(self) -> DeviceTimer:
        """End the time, when the work has been dispatched."""
        self._end = Moment(self._device)
        return self

    def item(self) -> float:
        """Return the milliseconds."""
        return round(1000 * self._end.seconds_since(self._start), 3)


class LateScalar:
    """A number of a step, on its way from the device to the host.

    `Tensor.item` of a CUDA tensor copies behind everything that was dispatched until then, so that
    reading the loss of a step would wait for the step after it as well. Here the copy is dispatched
    with the step it belongs to, and `item` waits for that alone.
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._copied = value.detach(), None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._copied = torch.cuda.current_stream(value.device).record_event()

    def item(self) -> float:
        """Return the number, once the device has come to it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value.item()


CPU_MICRO_BATCH_TOKENS = 4096
"""On a CPU nothing is gained by larger micro-batches: activations only leave the cache."""

ACTIVATION_BYTES = 48
"""Bytes kept for the backward pass per token, layer and unit of width, in bfloat16.

Counted from the tensors that autograd saves (tests/test_device.py): 46 for gpt, 42 where it is
compiled, 36 for gpt2; the rest is room for what surrounds the blocks. The loss keeps a chunk of
logits at a time, which does not grow with the micro-batch.
"""

CHECKPOINTED_BYTES = 4
"""Those bytes where blocks are computed again from their float32 input, which alone is kept."""


def auto_micro_batch(config: Config, device: torch.device, processes: int = 1) -> int:
    """Return the sequences of a micro-batch where `train.micro_batch` is None.

    It is the divisor of the batch that takes a process's share of it in the fewest passes, with
    activations that fill at most half the device's memory.
    """
    tokens = CPU_MICRO_BATCH_TOKENS
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        each = activation_bytes_per_token(config.model, config.train.activation_checkpointing)
        tokens = int(0.5 * memory / each)
    elif device.type == "mps":
        tokens = 8192
    limit = max(1, tokens // config.model.context)
    smallest, most = config.batches.smallest, -(-config.batch_sequences // processes)
    divisors = (n for n in range(1, min(limit, smallest) + 1) if smallest % n == 0)
    return min(divisors, key=lambda n: (-(-most // n), n))


def activation_bytes_per_token(model: ModelConfig, checkpointed: bool = False) -> int:
    """Return the memory of one token's activations in all layers.

    With checkpointing those of one block live at a time.
    """
    if checkpointed:
        return (CHECKPOINTED_BYTES * model.layers + ACTIVATION_BYTES) * model.width
    return ACTIVATION_BYTES * model.layers * model.width


def check_compiler(device: torch.device) -> None:
    """Raise `QuinticError` where torch.compile would fail for want of a C++ compiler."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if device.type == "cpu" and not shutil.which(compiler):
        raise QuinticError(
            f"train.compile needs a C++ compiler on the CPU and {compiler} is not there: install "
            "it, name another in CXX (as CXX=clang++), or use --train.no-compile"
        )


def check_cache_folder(*, compiles: bool) -> None:
    """Raise `QuinticError` where the folder for what PyTorch compiles cannot be made, without which
    no optimizer of its can be either (2.13), or, to compile, cannot be written."""
    try:
        # Takes seconds, once, and makes the folder itself where it is the first.
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        folder = cache_dir()
        if compiles:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, KeyError) as error:  # KeyError: a user without a name, in older PyTorch
        raise QuinticError(
            f"PyTorch has no folder for what it compiles ({one_line(error)}): name one that can be "
            "written in TORCHINDUCTOR_CACHE_DIR"
        ) from error


@contextmanager
def compiling() -> Iterator[None]:
    """Say in one line why torch.compile failed: Python's headers are missing, nothing in the
    temporary folder may be executed, an operation is not known to it.

    Raises `QuinticError` for that.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # takes seconds

    try:
        yield
    except BackendCompilerFailed as error:
        inner = error.inner_exception
        output = str(inner).splitlines()
        reason = next((line.strip() for line in output if " error: " in line), one_line(inner))
        raise QuinticError(
            f"train.compile failed ({reason.rstrip('.')}): mend that, or use --train.no-compile"
        ) from error


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Give compiled code on the CPU one order of summation, so that a resumed run is bit-identical.

    Without it the embedding's gradient is added up atomically, in the order in which the threads
    come. GPUs are left alone, where the atomic additions are fast and losses agree to rounding.
    """
    if device.type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic  # a module with properties, which mypy cannot see
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # costs time, and no result depends on it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]

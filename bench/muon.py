"""One Muon step on the block matrices of GPT-2, against torch.optim.Muon: `python -m bench.muon`.

The rival is PyTorch's own class, its Newton-Schulz in the same precision as ours: it iterates in
bfloat16 on every device, so for float32 its cast is turned off. Both take a step with equal scale,
decay and momentum, in turn in one process; memory is the peak of two steps in a process of its own,
of which the momentum alone is eight or nine tenths: no optimizer with momentum in float32 has much
less.

What was expected of each part on two cores of a CPU, and what it did:

- Products that are symmetric by half, and one Gram matrix for several iterations of a wide matrix,
  are 0.63 of the operations of GPT-2's shapes: 1.5 times as fast. With two threads in each small
  product that came to 1.38, and to 1.5 with two matrices side by side, each on one thread.
- No matrix transposed in memory, since a pass over two that lie otherwise takes 10 to 20 ms for
  3072 x 768 and one over two alike takes 1, and work in one place for each thread: a tenth of the
  time. Beside other programs the processor time of a layer of GPT-2 small on one thread fell from
  0.79 to 0.60 s (best of 4), and the memory beyond the momentum from 151 MiB to 42.
- bfloat16 in the units for float32 where the CPU has none or slower ones for bfloat16: AVX512_BF16
  without AMX did 85 GFLOP/s on a thread, and float32 180, so 2.1 times as
  fast in each product, and 0.76 of the operations by symmetry: 2 times and more. In processor time
  of a layer on one thread it is 1.9 (0.85 against 1.64 s). Every product is rounded to bfloat16 as
  before, and a Gram matrix serves one iteration.

All together, two quiet cores, GPT-2 small and medium: 1.67 and 1.73 times as fast in float32, 2.11
and 2.04 in bfloat16 (docs/results/muon-cpu.json).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from bench.results import interleaved, median_ratio, print_table, write_result
from quintic.device import choose_device
from quintic.optim.muon import Muon

MODELS = {"small": (12, 768), "medium": (24, 1024)}
"""Layers and width."""
CLASSES = ("quintic", "torch")


def matrices(model: str, device: torch.device) -> list[nn.Parameter]:
    """The block matrices of a GPT-2 with random weights and gradients."""
    layers, width = MODELS[model]
    random = torch.Generator().manual_seed(0)
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    parameters = []
    for shape in shapes * layers:
        p = nn.Parameter(torch.randn(shape, generator=random).to(device))
        p.grad = torch.randn(shape, generator=random).to(device)
        parameters.append(p)
    return parameters


def step_of(
    which: str, parameters: list[nn.Parameter], ns_dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """A step of either class, Newton-Schulz in `ns_dtype`."""
    optimizer: torch.optim.Optimizer
    if which == "quintic":
        optimizer = Muon(parameters, lr=1e-3, scale="rms", ns_dtype=ns_dtype)
    else:
        optimizer = torch.optim.Muon(
            parameters, lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
    float32 = mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float)

    def step() -> None:
        with float32 if ns_dtype is torch.float32 else contextlib.nullcontext():
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def peak_mib(which: str, model: str, ns_dtype: torch.dtype, device: torch.device) -> float:
    """Peak memory of two steps beyond weights and gradients, in a process of its own."""
    command = [sys.executable, "-m", "bench.muon", "--memory-of", which, "--models", model]
    command += ["--device", device.type, "--ns-dtype", str(ns_dtype).removeprefix("torch.")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory(which: str, model: str, ns_dtype: torch.dtype, device: torch.device) -> None:
    # What a first step imports, and the library for products sets up, is no memory of the step's.
    small = nn.Parameter(torch.ones(256, 1024, device=device))
    small.grad = torch.ones_like(small)
    step_of(which, [small], ns_dtype, device)()
    parameters = matrices(model, device)
    held = _memory_mib(device, "VmRSS")
    step = step_of(which, parameters, ns_dtype, device)
    step()
    step()
    print(_memory_mib(device, "VmHWM") - held)


def _memory_mib(device: torch.device, line: str) -> float:
    """Memory held now (VmRSS) or at most so far (VmHWM); on CUDA the allocator's counterpart."""
    if device.type == "cuda":
        now = torch.cuda.memory_allocated if line == "VmRSS" else torch.cuda.max_memory_allocated
        return now(device) / 2**20
    status = Path("/proc/self/status").read_text()  # Linux; getrusage inherits the parent's peak
    return int(status.split(f"{line}:")[1].split()[0]) / 2**10


def precisions(device: torch.device) -> list[torch.dtype]:
    """float32, and bfloat16 where the device has units for it."""
    units = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [torch.float32, torch.bfloat16] if units else [torch.float32]


def measure(model: str, ns_dtype: torch.dtype, device: torch.device, rounds: int) -> dict[str, Any]:
    seconds = interleaved(
        {w: step_of(w, matrices(model, device), ns_dtype, device) for w in CLASSES},
        rounds=rounds,
        warmup=1,
    )
    memory = {which: peak_mib(which, model, ns_dtype, device) for which in CLASSES}
    return {
        "model": model,
        "ns_dtype": str(ns_dtype).removeprefix("torch."),
        "torch_times_quintic": round(median_ratio(seconds["torch"], seconds["quintic"]), 3),
        "step_ms": {w: round(1000 * statistics.median(s), 1) for w, s in seconds.items()},
        "peak_mib_beyond_weights_and_gradients": {w: round(m, 1) for w, m in memory.items()},
        "momentum_mib": round(sum(p.numel() for p in matrices(model, device)) * 4 / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--ns-dtype", choices=("float32", "bfloat16"), help="default both")
    parser.add_argument("--memory-of", choices=CLASSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device)
    dtypes = [getattr(torch, options.ns_dtype)] if options.ns_dtype else precisions(device)
    if options.memory_of:
        print_memory(options.memory_of, options.models[0], dtypes[0], device)
        return
    rows = []
    for model in options.models:
        for ns_dtype in dtypes:
            rows.append(measure(model, ns_dtype, device, options.rounds))
            print(f"{model}, {rows[-1]['ns_dtype']}: {rows[-1]['torch_times_quintic']}", flush=True)
    print_table(
        ("one Muon step", "in", "ms", "torch's", "times", "peak MiB", "torch's", "momentum alone"),
        [
            (
                f"GPT-2 {row['model']}",
                row["ns_dtype"],
                *(f"{row['step_ms'][which]:.0f}" for which in CLASSES),
                f"{row['torch_times_quintic']:.2f}",
                *(f"{row['peak_mib_beyond_weights_and_gradients'][w]:.0f}" for w in CLASSES),
                f"{row['momentum_mib']:.0f}",
            )
            for row in rows
        ],
    )
    print(f"written to {write_result(f'muon-{device.type}', {'steps': rows}, device)}")


if __name__ == "__main__":
    main()

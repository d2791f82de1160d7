"""One Muon step on GPT-2-small's 72 matrices, against torch.optim.Muon: `python -m bench.muon`.

Expected: faster, since same-shape matrices are orthogonalised as one batch; more memory, since a
batch of updates exists at once. torch.optim.Muon iterates in bfloat16 on every device; on a CPU
ours uses float32, so on a CPU the ratio compares precisions as well (`--ns-dtype` sets ours).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench.results import interleaved, median_ratio, print_table, write_result
from quintic.device import choose_device
from quintic.optim.muon import Muon
from quintic.optim.newton_schulz import newton_schulz_dtype

LAYERS, WIDTH = 12, 768


def matrices(device: torch.device) -> list[nn.Parameter]:
    """The block matrices of GPT-2 small with random weights and gradients."""
    random = torch.Generator().manual_seed(0)
    shapes = [(WIDTH, WIDTH)] * 4 + [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
    parameters = []
    for shape in shapes * LAYERS:
        p = nn.Parameter(torch.randn(shape, generator=random).to(device))
        p.grad = torch.randn(shape, generator=random).to(device)
        parameters.append(p)
    return parameters


def ours(
    parameters: list[nn.Parameter], device: torch.device, ns_dtype: torch.dtype
) -> Callable[[], None]:
    muon = Muon(parameters, lr=1e-3, scale="rms", ns_dtype=ns_dtype)
    return lambda: _finish(muon.step, device)


def torchs(parameters: list[nn.Parameter], device: torch.device) -> Callable[[], None]:
    muon = torch.optim.Muon(parameters, lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return lambda: _finish(muon.step, device)


def _finish(step: Callable[[], object], device: torch.device) -> None:
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(which: str, device: torch.device, ns_dtype: str) -> float:
    """Peak memory of two steps beyond weights and gradients, in a process of its own."""
    command = [sys.executable, "-m", "bench.muon", "--memory-of", which]
    command += ["--device", device.type, "--ns-dtype", ns_dtype]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory(which: str, device: torch.device, ns_dtype: torch.dtype) -> None:
    parameters = matrices(device)
    held = _memory_mib(device, "VmRSS")
    quintic = which == "quintic"
    step = ours(parameters, device, ns_dtype) if quintic else torchs(parameters, device)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--ns-dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--memory-of", choices=("quintic", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device)
    ns_dtype = (
        newton_schulz_dtype("auto", device, torch.float32)
        if options.ns_dtype == "auto"
        else getattr(torch, options.ns_dtype)
    )
    if options.memory_of:
        print_memory(options.memory_of, device, ns_dtype)
        return
    seconds = interleaved(
        {
            "quintic": ours(matrices(device), device, ns_dtype),
            "torch": torchs(matrices(device), device),
        },
        rounds=options.rounds,
        warmup=1,
    )
    memory = {which: peak_mib(which, device, options.ns_dtype) for which in seconds}
    ratio = median_ratio(seconds["torch"], seconds["quintic"])
    figures = {
        "matrices": 6 * LAYERS,
        "ns_dtype": str(ns_dtype),
        "torch_times_quintic": round(ratio, 3),
        "step_ms": {name: round(1000 * statistics.median(s), 1) for name, s in seconds.items()},
        "peak_mib_beyond_weights_and_gradients": {n: round(m, 1) for n, m in memory.items()},
    }
    print_table(
        ("one Muon step, 72 matrices", "ms", "peak MiB"),
        [(n, f"{1000 * statistics.median(s):.0f}", f"{memory[n]:.0f}") for n, s in seconds.items()],
    )
    print(f"torch.optim.Muon takes {ratio:.2f} times as long")
    print(f"written to {write_result(f'muon-{device.type}', figures, device)}")


if __name__ == "__main__":
    main()

"""Every fast path against its reference on the device: `CHECKS` here, and the tests marked so.

A check compares two ways to compute the same with a third in float64 on the CPU. The error of the
fast one, ||fast - exact|| / ||exact||, may be at most twice the plain one's own, and a little for
what rounds to nothing. Inputs are drawn anew for every call. The tests are those with the mark
`device`, in files that say it; they run in a process of their own, if pytest is there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.budget import Budget
from bench.step import newton_schulz_one
from quintic.config import ModelConfig
from quintic.device import reproducible
from quintic.errors import QuinticError
from quintic.kernels.runnable import require_triton
from quintic.model.attention import attend, attention_block_mask, attention_mask
from quintic.model.attention_backend import BACKENDS, attention_backend, backend_works
from quintic.model.build import build_model
from quintic.model.gpt import Rotary
from quintic.model.loss import CROSS_ENTROPIES
from quintic.optim.newton_schulz import newton_schulz

ROOT = Path(__file__).parents[2]

FACTOR, SLACK = 2.0, 1e-6
"""How much worse than the reference a fast path may be; the slack is float32's rounding."""


DRAWS = 16
"""Where the result is one number: over so many, the error of neither way is small by luck."""


@dataclass(frozen=True)
class Check:
    """One comparison: relative errors of the fast and of the plain way against float64."""

    name: str
    fast: float
    plain: float

    @property
    def passed(self) -> bool:
        """False also where an error is not a number."""
        return self.fast <= FACTOR * self.plain + SLACK


def error(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||, in float64 on the CPU."""
    exact = exact.detach().double().cpu()
    difference = found.detach().double().cpu() - exact
    return float(difference.norm() / exact.norm())


def precision(device: torch.device) -> torch.dtype:
    """What the device computes in: bfloat16 on CUDA."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def check_losses(device: torch.device) -> Iterator[Check]:
    """Every `train.loss` against the plain one: the values and both gradients of many draws."""
    N, D, V = 75, 128, 1003  # no multiple of any tile
    draws = [
        (torch.randn(N, D).to(precision(device)), 0.3 * torch.randn(V, D), torch.randint(V, (N,)))
        for _ in range(DRAWS)
    ]

    def computed(name: str, dtype: torch.dtype | None, at: torch.device) -> list[Tensor]:
        found: list[tuple[Tensor, ...]] = []
        for x, weight, targets in draws:
            x_ND = x.to(at, dtype or x.dtype).requires_grad_()
            weight_VD = weight.to(at, dtype).requires_grad_()
            loss = CROSS_ENTROPIES[name](x_ND, weight_VD, targets.to(at))
            found.append((loss.detach(), *torch.autograd.grad(loss, (x_ND, weight_VD))))
        return [torch.stack(same) for same in zip(*found, strict=True)]

    exact = computed("plain", torch.float64, torch.device("cpu"))
    plain = computed("plain", None, device)
    fast_losses = set(CROSS_ENTROPIES) - {"plain"}
    try:
        require_triton(device, asked="bench.gpu.parity", instead="another device")
    except QuinticError:
        fast_losses.remove("fused")
    for name in sorted(fast_losses):
        fast = computed(name, None, device)
        for what, f, p, e in zip(("value", "grad x", "grad head"), fast, plain, exact, strict=True):
            yield Check(f"loss {name}: {what}", error(f, e), error(p, e))


def check_newton_schulz(device: torch.device) -> Iterator[Check]:
    """The stacked iteration against the one matrix at a time."""
    for rows, columns in ((96, 96), (200, 72), (72, 200)):
        G_nrc = torch.randn(3, rows, columns)
        exact = newton_schulz(G_nrc.double())
        on_device = G_nrc.to(device)
        fast = newton_schulz(on_device.to(precision(device)))
        plain = torch.stack([newton_schulz_one(G) for G in on_device])
        yield Check(f"Newton-Schulz {rows} x {columns}", error(fast, exact), error(plain, exact))


def check_rotary(device: torch.device) -> Iterator[Check]:
    """Compiled against eager."""
    config = ModelConfig(layers=1, width=128, heads=1, context=64, vocab_size=128)
    x = torch.randn(2, 1, 64, 128).to(precision(device))
    exact = Rotary(config, torch.float64).rotate(x.double(), slice(64))
    rotary = Rotary(config, x.dtype).to(device)
    plain = rotary.rotate(x.to(device), slice(64))
    fast = torch.compile(rotary.rotate, dynamic=False)(x.to(device), slice(64))
    yield Check("rotary, compiled", error(fast, exact), error(plain, exact))


@contextmanager
def rounding_as_kernels_do() -> Iterator[None]:
    """While open, PyTorch's math attention computes in the precision it is given. By itself it
    computes bfloat16 in float32 inside, which no other kernel does."""
    allow = torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    allow(True)
    try:
        yield
    finally:
        allow(before)


def check_attention(device: torch.device) -> Iterator[Check]:
    """Every `train.attention` that works on the device against math in the same precision."""
    B, H, T, K = 2, 2, 160, 128
    config = ModelConfig(width=H * K, heads=H)
    inputs = [torch.randn(B, H, T, K).to(precision(device)) for _ in range(3)]
    grad = torch.randn(B, H, T, K)
    names = ("value", "grad q", "grad k", "grad v")

    def computed(at: torch.device, dtype: torch.dtype, kernel: str) -> list[Tensor]:
        q, k, v = (x.to(at, dtype).requires_grad_() for x in inputs)
        with rounding_as_kernels_do(), attention_backend(kernel):
            y = attend(q, k, v)
            return [y, *torch.autograd.grad(y, (q, k, v), grad.to(at, dtype))]

    exact = computed(torch.device("cpu"), torch.float64, "math")
    plain = computed(device, precision(device), "math")
    for kernel in (*BACKENDS, "auto"):
        if kernel == "math" or (
            kernel in BACKENDS and not backend_works(kernel, config, device, precision(device))
        ):
            continue
        fast = computed(device, precision(device), kernel)
        for what, f, p, e in zip(names, fast, plain, exact, strict=True):
            yield Check(f"attention {kernel}: {what}", error(f, e), error(p, e))


def check_blocks(device: torch.device) -> Iterator[Check]:
    """Attention by blocks, compiled, against math behind the same mask: a window, in documents."""
    B, H, T, K, window, eot_id = 2, 2, 400, 64, 150, 0
    tokens_BT = torch.randint(150, (B, T))
    inputs, grad = [torch.randn(B, H, T, K) for _ in range(3)], torch.randn(B, H, T, K)
    trains = device.type != "cpu"  # where blocks have no backward pass

    def computed(at: torch.device, dtype: torch.dtype, blocks: bool) -> list[Tensor]:
        def attention(tokens_BT: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if blocks:
                return attend(
                    q, k, v, attention_block_mask(tokens_BT, window=window, eot_id=eot_id)
                )
            mask = attention_mask(tokens_BT, T, window=window, eot_id=eot_id)
            return attend(q, k, v, mask)

        function = torch.compile(attention, dynamic=False) if blocks else attention
        q, k, v = (x.to(at, dtype).requires_grad_(trains) for x in inputs)
        with rounding_as_kernels_do(), attention_backend("math"):
            y = function(tokens_BT.to(at), q, k, v)
            grads = torch.autograd.grad(y, (q, k, v), grad.to(at, dtype)) if trains else ()
            return [y, *grads]

    exact = computed(torch.device("cpu"), torch.float64, False)
    plain = computed(device, precision(device), False)
    fast = computed(device, precision(device), True)
    names = ("value", "grad q", "grad k", "grad v")
    for what, f, p, e in zip(names[: len(exact)], fast, plain, exact, strict=True):
        yield Check(f"attention flex: {what}", error(f, e), error(p, e))


def check_model(device: torch.device) -> Iterator[Check]:
    """A compiled small model against the same eager: the loss and its gradient."""
    config = ModelConfig(layers=2, width=128, heads=1, context=128, vocab_size=512)
    ids_nBT = torch.randint(512, (DRAWS, 2, 129))

    def computed(dtype: torch.dtype, at: torch.device, compiled: bool) -> tuple[Tensor, Tensor]:
        model = build_model(config, compute_dtype=dtype)
        with torch.no_grad():  # what starts at zero would hide half of the gradient
            for number, p in enumerate(model.parameters()):
                random = torch.Generator().manual_seed(number)
                p.add_(0.02 * torch.randn(p.shape, generator=random))
        model = model.to(at)
        function = torch.compile(model.loss, dynamic=False) if compiled else model.loss
        losses = []
        for ids_BT in ids_nBT.to(at):
            losses.append(function(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous()))
            losses[-1].backward()
        grads = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
        return torch.stack(losses), torch.cat(grads)

    exact = computed(torch.float64, torch.device("cpu"), False)
    plain = computed(precision(device), device, False)
    with reproducible(device):
        fast = computed(precision(device), device, True)
    for what, f, p, e in zip(("losses", "gradient"), fast, plain, exact, strict=True):
        yield Check(f"model, compiled: {what}", error(f, e), error(p, e))


CHECKS: tuple[Callable[[torch.device], Iterator[Check]], ...] = (
    check_losses,
    check_newton_schulz,
    check_attention,
    check_rotary,
    check_blocks,
    check_model,
)
"""The last three compile, which takes a while the first time."""


def run_checks(device: torch.device, budget: Budget) -> list[dict[str, Any]]:
    """The result of every check; one that raises has failed, with what it raised."""
    results: list[dict[str, Any]] = []
    for check in CHECKS:
        if not budget.allows(10, f"parity {check.__name__}"):
            continue
        try:
            results += [
                {"name": c.name, "fast": c.fast, "plain": c.plain, "passed": c.passed}
                for c in check(device)
            ]
        except Exception as raised:  # one that fails must not hide the others
            traceback.print_exc()
            results.append({"name": check.__name__, "passed": False, "raised": str(raised)[:500]})
    return results


MOST_WORKERS = 12
"""Processes of the marked tests; each holds a context on the GPU and some gigabytes."""


def marked_files() -> list[Path]:
    """The test files that hold tests with the mark `device`, relative to the source tree."""
    return sorted(
        path.relative_to(ROOT)
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"\bmark\.device\b", path.read_text())
    )


def run_marked_tests(budget: Budget, share: float) -> dict[str, Any]:
    """Run them in a process of their own, for at most a share of the time left."""
    files = marked_files()
    if not files:
        return {"skipped": "no test has the mark `device`"}
    if importlib.util.find_spec("pytest") is None:
        budget.say("skipped the marked tests: pytest is not there")
        return {"skipped": "pytest is not there"}
    command = [sys.executable, "-m", "pytest", "-m", "device", "-rs", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None:
        # They compile, each for itself, which is nearly all that they do.
        command += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1))]
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")))
    try:
        done = subprocess.run(
            [*command, *map(str, files)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=share * budget.left_s,
        )
    except subprocess.TimeoutExpired as expired:
        budget.say(f"the marked tests did not end within {expired.timeout:.0f} s")
        return {"skipped": "not finished", "timed_out_s": round(expired.timeout)}
    if done.returncode != 0:
        print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    summary = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-300:]]
    return {
        "passed": done.returncode == 0,
        "summary": summary[0],
        "skips": [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")],
    }

"""The Triton kernels against what they replace, at `modded`'s sizes: `python -m bench.kernels`.

For head and loss: forward and backward of one micro-batch, plain and chunked, eager and compiled,
and fused. For Muon: Newton-Schulz of all matrices of the blocks, with PyTorch's products, compiled,
and with the kernel's. All ways to do one thing take turns in one process. What is expected of each
is counted before, in bytes and operations: `docs/gpu-kernels.md`, printed by `--expected`.

On a CPU the kernels are interpreted (`TRITON_INTERPRET=1`): that checks this program at toy sizes,
and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.results import interleaved, median_ratio, print_table, write_result
from quintic.config import Config
from quintic.device import choose_device, compute_dtype
from quintic.errors import QuinticError
from quintic.kernels.runnable import require_float8, require_triton
from quintic.model.build import meta_model
from quintic.model.fused_loss import fused_cross_entropy, fused_float8_cross_entropy
from quintic.model.loss import CrossEntropy, chunked_cross_entropy, plain_cross_entropy
from quintic.optim.newton_schulz import newton_schulz, polynomial_for
from quintic.optim.zero1 import newton_schulz_flops
from quintic.recipes import get_recipe

TILE = 128
"""Rows of a tile of the symmetric products, in bfloat16."""

LOSSES: dict[str, CrossEntropy] = {
    "plain": plain_cross_entropy,
    "chunked": chunked_cross_entropy,
    "fused": fused_cross_entropy,
}


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    tokens: int
    """Of a micro-batch."""
    width: int
    vocabulary: int
    stacks: tuple[tuple[int, int, int], ...]
    """(matrices, rows, columns) of every shape in the blocks."""


def sizes_of(config: Config, tokens: int) -> Sizes:
    """Those of a recipe."""
    assert config.model.vocab_size is not None
    shapes = [(p.shape[0], p.shape[1]) for p in meta_model(config.model).layers.parameters()]
    stacks = tuple((shapes.count(shape), *shape) for shape in dict.fromkeys(shapes))
    return Sizes(tokens, config.model.width, config.model.vocab_size, stacks)


TOY = Sizes(tokens=12, width=16, vocabulary=200, stacks=((2, 24, 24), (1, 16, 40)))


# What is expected, counted ------------------------------------------------------------------------


MOVE_LITTLE = {"mm", "new_full", "gather", "scatter_add_", "nll_loss_forward"}
"""Operations that are not counted: products, and those that touch one logit of a token at most."""

ONLY_WRITE = {"nll_loss_backward"}
"""Its argument of that shape is there for its shape."""


class Traffic(TorchDispatchMode):
    """Bytes of logits, and of what has their shape, that operations but products read and write."""

    def __init__(self, logits: int) -> None:
        super().__init__()
        self.logits, self.bytes = logits, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in MOVE_LITTLE:
            moved = out if name in ONLY_WRITE else (args, out)
            for leaf in tree_leaves(moved):
                if isinstance(leaf, Tensor) and leaf.numel() == self.logits:
                    self.bytes += leaf.numel() * leaf.element_size()
        return out


def eager_bytes_per_logit(loss: CrossEntropy) -> float:
    """Bytes that an eager loss moves per logit in bfloat16, counted at its operations."""
    tokens, width, vocabulary = 8, 3, 64
    x = torch.ones(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(vocabulary, width, requires_grad=True)
    with Traffic(tokens * vocabulary) as traffic:
        loss(x, weight, torch.zeros(tokens, dtype=torch.int64)).backward()
    return float(traffic.bytes / (tokens * vocabulary))


KERNEL_BYTES_PER_LOGIT = {"fused": 2 + 2 + 2, "fused, float8": 2 + 2 + 1 + (1 + 1)}
"""In bfloat16: read for the loss, read for the gradient (from the L2 cache, where a row of 100 kB
should still be), write; in float8 a byte written, and a transposed copy of it."""


def symmetric_flops(rows: int, columns: int, steps: int, tile: int = TILE) -> float:
    """`newton_schulz_flops` with the tiles of a lower triangle for A and for b A + c A A."""
    R, C = min(rows, columns), max(rows, columns)
    tiles = -(-R // tile)
    share = (tiles + 1) / (2 * tiles)
    return steps * (share * (2.0 * R * R * C + 2.0 * R**3) + 2.0 * R * R * C)


def expected(sizes: Sizes, batch_tokens: int, ns_steps: int) -> dict[str, Any]:
    """Bytes and operations of one optimizer step."""
    logits = batch_tokens * sizes.vocabulary
    whole = sum(n * newton_schulz_flops(r, c, ns_steps) for n, r, c in sizes.stacks)
    half = sum(n * symmetric_flops(r, c, ns_steps) for n, r, c in sizes.stacks)
    per_logit = {
        "plain, eager": eager_bytes_per_logit(plain_cross_entropy),
        "chunked, eager": eager_bytes_per_logit(chunked_cross_entropy),
        **KERNEL_BYTES_PER_LOGIT,
    }
    return {
        "batch_tokens": batch_tokens,
        "head_product_tflop": round(6 * logits * sizes.width / 1e12, 2),
        "loss_bytes_per_logit": per_logit,
        "loss_gigabytes": {way: round(b * logits / 1e9, 1) for way, b in per_logit.items()},
        "newton_schulz_tflop": {"torch": round(whole / 1e12, 3), "triton": round(half / 1e12, 3)},
    }


# What is measured ---------------------------------------------------------------------------------


def finish(function: Callable[[], object], device: torch.device) -> None:
    """Call it and wait until the device is done."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(
    ways: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """The median of each way, how many times faster than the first it is, and its peak memory."""
    seconds = interleaved(
        {way: partial(finish, f, device) for way, f in ways.items()}, rounds=rounds
    )
    first = next(iter(ways))
    for way, taken in seconds.items():
        yield {
            "way": way,
            "ms": round(1000 * statistics.median(taken), 3),
            f"times_{first}": round(median_ratio(seconds[first], taken), 3),
            "peak_mib": peak_mib(ways[way], device),
        }


def peak_mib(function: Callable[[], object], device: torch.device) -> float | None:
    """Memory beyond what was held before; counted on CUDA only."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    finish(function, device)
    return round((torch.cuda.max_memory_allocated(device) - held) / 2**20, 1)


def measure_losses(sizes: Sizes, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Forward and backward of head and loss."""
    random = torch.Generator().manual_seed(0)
    dtype = compute_dtype("auto", device)
    x_ND = torch.randn(sizes.tokens, sizes.width, generator=random).to(device, dtype)
    weight_VD = torch.randn(sizes.vocabulary, sizes.width, generator=random).to(device)
    targets_N = torch.randint(sizes.vocabulary, (sizes.tokens,), generator=random).to(device)
    x_ND.requires_grad_()
    weight_VD.requires_grad_()

    def step(loss: CrossEntropy) -> None:
        x_ND.grad = weight_VD.grad = None
        loss(x_ND, weight_VD, targets_N).backward()

    ways = {name: partial(step, loss) for name, loss in LOSSES.items()}
    if device.type == "cuda":
        for name in ("plain", "chunked"):
            ways[f"{name}, compiled"] = partial(step, torch.compile(LOSSES[name], dynamic=False))
        with suppress(QuinticError):  # GPUs without float8 units are measured without
            require_float8(device, dtype)
            ways["fused, float8"] = partial(step, fused_float8_cross_entropy)
    return list(measured(dict(ways), device, rounds))


def measure_newton_schulz(sizes: Sizes, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """The orthogonalisation of every matrix of the blocks, as stacks."""
    random = torch.Generator().manual_seed(0)
    dtype = compute_dtype("auto", device)
    stacks = [torch.randn(shape, generator=random).to(device, dtype) for shape in sizes.stacks]

    def all_stacks(orthogonalize: Callable[[Tensor], Tensor]) -> None:
        for G_nrc in stacks:
            orthogonalize(G_nrc)

    ways: dict[str, Callable[[], object]] = {}
    for kernel in ("torch", "triton"):
        with_it = partial(newton_schulz, polynomial=polynomial_for(kernel, device, dtype))
        ways[kernel] = partial(all_stacks, with_it)
        if device.type == "cuda":
            ways[f"{kernel}, compiled"] = partial(all_stacks, torch.compile(with_it, dynamic=False))
    return list(measured(ways, device, rounds))


MEASUREMENTS = {"head and loss": measure_losses, "Newton-Schulz": measure_newton_schulz}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tokens", type=int, default=65_536, help="of a micro-batch")
    parser.add_argument("--expected", action="store_true", help="only count, which needs no GPU")
    options = parser.parse_args()
    config = get_recipe("modded")
    sizes = sizes_of(config, options.tokens)
    counted = expected(sizes, config.train.batch_tokens, config.optim.muon.ns_steps)
    device = choose_device(options.device)
    if options.expected:
        print_table(
            ("a step of modded", "loss, bytes per logit", "loss, GB"),
            [
                (way, per_logit, counted["loss_gigabytes"][way])
                for way, per_logit in counted["loss_bytes_per_logit"].items()
            ],
        )
        print(f"products of the head: {counted['head_product_tflop']} TFLOP")
        print(f"Newton-Schulz: {counted['newton_schulz_tflop']} TFLOP")
        print(f"written to {write_result('kernels-expected', counted, torch.device('cpu'))}")
        return
    try:
        require_triton(device, asked="bench.kernels", instead="--expected, or TRITON_INTERPRET=1")
    except QuinticError as error:
        parser.error(str(error))
    if device.type != "cuda":
        sizes = TOY
    results = {
        what: measure(sizes, device, options.rounds) for what, measure in MEASUREMENTS.items()
    }
    for what, rows in results.items():
        print_table((what, *list(rows[0])[1:]), [tuple(row.values()) for row in rows])
    if device.type != "cuda":
        print("nothing is written: interpreted, these are no speeds")
        return
    figures = {"tokens": sizes.tokens, "expected": counted, **results}
    print(f"written to {write_result(f'kernels-{device.type}', figures, device)}")


if __name__ == "__main__":
    main()

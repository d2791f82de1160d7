"""What several processes send, how work divides, what it costs: `python -m bench.distributed`.

Three tables. Counted: bytes, operations and optimizer memory per rank of GPT-2's sizes, from the
plan that training uses. Measured: tokens per second, bytes at the collectives, optimizer time and
the stall of a checkpoint on 1, 2 and 4 processes of this machine over gloo. Predicted: the step of
`modded` on H100s, from a formula and stated speeds; nothing of that table was measured here.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bench.results import print_table, write_result
from quintic.checkpoint_writer import CheckpointWriter
from quintic.config import Config
from quintic.console import Console
from quintic.distributed.rendezvous import connect
from quintic.model.build import meta_model
from quintic.optim.bucket_plan import plan_buckets
from quintic.optim.newton_schulz import newton_schulz_flops
from quintic.optim.param_groups import ParamSpec, assign_parameters
from quintic.recipes import get_recipe
from quintic.setup import set_up
from quintic.train import apply_schedule, forward_backward

SIZES = {"small (modded)": "modded", "medium": "modded-medium", "xl": "modded-xl"}
RANKS = (2, 4, 8, 64)


@dataclass(frozen=True)
class ShareReport:
    """Says what a plan costs, counted from it."""

    size: int
    sent_bytes: int
    """Bytes that each rank sends in a step: gradients to owners and weights back."""
    bound_bytes: int
    """The same without padding: no plan in which every rank ends with all weights sends less."""
    flops: tuple[float, ...]
    """Newton-Schulz operations of each rank."""
    state_elements: tuple[int, ...]
    """Elements of optimizer state on each rank: one for each of Muon's, two for AdamW's."""

    @property
    def balance(self) -> float:
        """Largest over mean of the ranks' operations; 1 where Muon has nothing."""
        mean = sum(self.flops) / self.size
        return max(self.flops) / mean if mean else 1.0


def share_report(specs: Sequence[ParamSpec], size: int, element_bytes: int = 4) -> ShareReport:
    """Count bytes, operations and memory of the plan for `size` ranks."""
    buckets = plan_buckets(specs, size)
    optimizer = {spec.name: spec.optimizer for spec in specs}
    flops, state = [0.0] * size, [0] * size
    for bucket in buckets:
        for rank, own in enumerate(bucket.pieces):
            for piece in own:
                muon = optimizer[piece.name] == "muon"
                flops[rank] += newton_schulz_flops(*piece.shape) if muon else 0.0
                state[rank] += piece.elements * (1 if muon else 2)
    others = 2 * (size - 1) * element_bytes
    return ShareReport(
        size,
        sum(bucket.rank_elements for bucket in buckets) * others,
        sum(math.prod(spec.shape) for spec in specs) * others // size,
        tuple(flops),
        tuple(state),
    )


def specs_of(recipe: str) -> list[ParamSpec]:
    """Return the specs of a recipe, without its weights."""
    config = get_recipe(recipe)
    return assign_parameters(meta_model(config.model), config.optim)


def count() -> list[dict[str, Any]]:
    """The plan's costs for each of GPT-2's sizes and numbers of ranks."""
    return [
        {
            "model": name,
            "ranks": ranks,
            "sent_mb": round(report.sent_bytes / 1e6, 1),
            "bound_mb": round(report.bound_bytes / 1e6, 1),
            "over_bound": round(report.sent_bytes / report.bound_bytes, 4),
            "flops_max_over_mean": round(report.balance, 4),
            "state_mb_max": round(4 * max(report.state_elements) / 1e6, 1),
            "state_mb_alone": round(4 * sum(report.state_elements) / 1e6, 1),
        }
        for name, recipe in SIZES.items()
        for ranks in RANKS
        for report in [share_report(specs_of(recipe), ranks)]
    ]


def bench_config(sharding: str) -> Config:
    """A model whose step takes a fraction of a second on a CPU core: 4 x 256, 16 sequences."""
    return get_recipe("laptop-plain").override(
        {
            "model.width": 256,
            "model.heads": 2,
            "train.batch_tokens": 16 * 256,
            "train.micro_batch": 4,
            "train.sharding": sharding,
            "train.device": "cpu",
        }
    )


class FsdpTraffic:
    """Counts what FSDP2 sends by itself, beside the collectives of `World`; a context manager."""

    NAMES = (
        "all_gather_single",
        "all_gather_into_tensor",
        "reduce_scatter_single",
        "reduce_scatter_tensor",
    )

    def __init__(self, size: int) -> None:
        self.sent_bytes = 0
        self._size = size
        self._own = {name: getattr(dist, name) for name in self.NAMES if hasattr(dist, name)}

    def __enter__(self) -> FsdpTraffic:
        for name, collective in self._own.items():
            setattr(dist, name, self._counting(collective))
        return self

    def __exit__(self, *_: object) -> None:
        for name, collective in self._own.items():
            setattr(dist, name, collective)

    def _counting(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            tensors = [a for a in (*arguments, *options.values()) if isinstance(a, Tensor)]
            whole = max(t.numel() * t.element_size() for t in tensors)
            self.sent_bytes += whole * (self._size - 1) // self._size
            return collective(*arguments, **options)

        return counted


def measure_rank(sharding: str, steps: int, threads: int) -> dict[str, Any]:
    """Train some steps on this rank; runs in every process."""
    torch.set_num_threads(threads)
    world = connect("cpu")
    with tempfile.TemporaryDirectory() as own, FsdpTraffic(world.size) as fsdp:
        folder = Path(world.on_main(lambda: own))
        run = set_up(bench_config(sharding), folder, Console(quiet=True), world)
        writer = CheckpointWriter(folder / "checkpoints", run.config, world)
        step_s, optimizer_s, stall_s, sent = [], [], [], 0
        for step in range(steps):
            batch = run.loader.batch(step, run.rows(step))
            before, began = world.sent_bytes + fsdp.sent_bytes, time.perf_counter()
            apply_schedule(run, step)
            forward_backward(run, batch)
            optimizer_began = time.perf_counter()
            run.stepper.step(None)
            ended = time.perf_counter()
            step_s.append(ended - began)
            optimizer_s.append(ended - optimizer_began)
            sent = world.sent_bytes + fsdp.sent_bytes - before
            run.state.step = step + 1
            if step % 5 == 4:
                writer.wait()
                began = time.perf_counter()
                writer.save(run.state)
                stall_s.append(time.perf_counter() - began)
        writer.close()
        world.all_gather_object(None)  # nobody leaves while others still write
    return {
        "step_ms": 1000 * statistics.median(step_s[2:]),
        "optimizer_ms": 1000 * statistics.median(optimizer_s[2:]),
        "stall_ms": 1000 * statistics.median(stall_s),
        "sent_bytes": sent,
        "state_bytes": 4
        * sum(
            value.numel()
            for optimizer in run.state.optimizers
            for state in optimizer.state.values()
            for value in state.values()
        ),
    }


def measure(steps: int, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each number of processes and sharding; cores are divided among processes."""
    cores = len(os.sched_getaffinity(0))
    rows = []
    for sharding in ("zero1", "fsdp"):
        for size in sizes:
            if size == 1 and sharding == "fsdp":
                continue
            threads = max(1, cores // size)
            launch = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=size,
                run_id=f"bench-{sharding}-{size}",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                rdzv_configs={"is_host": True},
                local_addr="localhost",
                max_restarts=0,
            )
            found = elastic_launch(launch, measure_rank)(sharding, steps, threads)
            ranks = [found[rank] for rank in range(size)]
            config = bench_config(sharding).override({"model.vocab_size": 2048})
            specs = assign_parameters(meta_model(config.model), config.optim)
            bound = share_report(specs, size).bound_bytes
            step_ms = max(rank["step_ms"] for rank in ranks)
            rows.append(
                {
                    "sharding": sharding,
                    "processes": size,
                    "threads_each": threads,
                    "tokens_per_s": round(config.train.batch_tokens / step_ms * 1000),
                    "step_ms": round(step_ms, 1),
                    "optimizer_ms": [round(rank["optimizer_ms"], 1) for rank in ranks],
                    "sent_mb": round(max(rank["sent_bytes"] for rank in ranks) / 1e6, 3),
                    "bound_mb": round(bound / 1e6, 3),
                    "state_mb": [round(rank["state_bytes"] / 1e6, 2) for rank in ranks],
                    "checkpoint_stall_ms": round(max(rank["stall_ms"] for rank in ranks), 1),
                }
            )
    return rows


# What a prediction assumes. The step's time is a public one, of the original code.
PUBLIC_TOKENS_PER_S = 366_000
"""Of one H100 in the original's 8-GPU run of 2024-10-14, its own communication included."""
NEWTON_SCHULZ_FLOPS = 400e12
"""Half of what a large bfloat16 product reaches: the matrices of `modded` are small ones."""
LINKS = {
    8: ("NVLink 4, 450 GB/s each way, 80% of it", 0.8 * 450e9),
    64: ("8 x 400 Gb/s InfiniBand a node, 50 GB/s a GPU each way, 80% of it", 0.8 * 50e9),
}
BACKWARD_SHARE = 2 / 3
"""Of the forward and backward passes' operations."""
MICRO_BATCHES = 1


def predict(ranks: int, specs: list[ParamSpec], batch_tokens: int) -> dict[str, Any]:
    """Step time of `modded`:

    passes    = batch_tokens / ranks / tokens_per_s
    reduce    = bytes / 2 / link, hidden behind the last backward pass but for its last bucket
    muon      = largest rank's Newton-Schulz operations / their speed
    gather    = bytes / 2 / link, hidden behind muon
    step      = passes + max(reduce - backward, reduce / buckets) + max(muon, gather)
    """
    report: ShareReport = share_report(specs, ranks)
    name, link = LINKS[ranks]
    passes = batch_tokens / ranks / PUBLIC_TOKENS_PER_S
    reduce = gather = report.sent_bytes / 2 / link
    muon = max(report.flops) / NEWTON_SCHULZ_FLOPS
    exposed = max(
        reduce - BACKWARD_SHARE * passes / MICRO_BATCHES, reduce / len(plan_buckets(specs, ranks))
    )
    step = passes + exposed + max(muon, gather)
    return {
        "ranks": ranks,
        "link": name,
        "passes_ms": round(1000 * passes, 2),
        "reduce_ms": round(1000 * reduce, 2),
        "muon_ms": round(1000 * muon, 2),
        "gather_ms": round(1000 * gather, 2),
        "step_ms": round(1000 * step, 2),
        "efficiency": round(passes / step, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    counted = count()
    print("counted, per rank and step")
    print_table(
        ("model, ranks", "sent MB", "bound MB", "ratio", "FLOPs max/mean", "state MB", "alone MB"),
        [
            (
                f"{row['model']}, {row['ranks']}",
                row["sent_mb"],
                row["bound_mb"],
                row["over_bound"],
                row["flops_max_over_mean"],
                row["state_mb_max"],
                row["state_mb_alone"],
            )
            for row in counted
        ],
    )
    measured = measure(options.steps, options.processes)
    print("\nmeasured on this machine, 4 x 256, 4,096 tokens a step")
    print_table(
        ("processes", "tokens/s", "step ms", "optimizer ms", "sent MB", "bound MB", "stall ms"),
        [
            (
                f"{row['processes']} {row['sharding']}, {row['threads_each']} threads",
                f"{row['tokens_per_s']:,}",
                row["step_ms"],
                "/".join(map(str, row["optimizer_ms"])),
                row["sent_mb"],
                row["bound_mb"],
                row["checkpoint_stall_ms"],
            )
            for row in measured
        ],
    )
    modded = get_recipe("modded")
    predicted = [predict(n, specs_of("modded"), modded.train.batch_tokens) for n in LINKS]
    print("\nPREDICTED, not measured: `modded` on H100s (the formula is in bench/distributed.py)")
    print_table(
        ("ranks", "passes ms", "reduce ms", "muon ms", "gather ms", "step ms", "efficiency"),
        [
            (
                row["ranks"],
                row["passes_ms"],
                row["reduce_ms"],
                row["muon_ms"],
                row["gather_ms"],
                row["step_ms"],
                f"{row['efficiency']:.1%}",
            )
            for row in predicted
        ],
    )
    figures = {
        "counted": counted,
        "measured": measured,
        "predicted_not_measured": {
            "assumes": {
                "tokens_per_s_of_one_gpu": PUBLIC_TOKENS_PER_S,
                "newton_schulz_flops": NEWTON_SCHULZ_FLOPS,
            },
            "rows": predicted,
        },
    }
    print(f"written to {write_result('distributed-cpu', figures, torch.device('cpu'))}")


if __name__ == "__main__":
    main()

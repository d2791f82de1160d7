"""How long threads that wait for each other should spin: `laptop-plain` beside busy cores.

PyTorch's operators divide their work among OpenMP threads, which meet after each. A thread that has
come first spins, that is looks again and again, before it sleeps: waking takes longer than a short
wait, and spinning takes the core from whoever would let the others come. `GOMP_SPINCOUNT` is how
often it looks; GNU OpenMP's own number is 300,000. With `train.side_by_side` each thread has
micro-batches of its own and hardly ever waits. Each case is trained in turn, several rounds, in
processes of their own, on a machine that is otherwise quiet and beside one busy loop a core.

    python -m bench.threads            # writes docs/results/threads-cpu-Nthreads.json

What else runs on the machine is measured too: run it alone, or with --beside busy only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.results import print_table, write_result
from quintic.cores import available_cores
from quintic.metrics_file import METRICS, read_records

OWN = 300_000
"""What GNU OpenMP does where it is told nothing (libgomp/env.c)."""
COUNTS = (OWN, 100_000, 30_000, 10_000, 1_000, 0)
LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10_000))"
FIRST = 8
"""Steps left out, in which memory is touched first and caches fill."""


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep this many cores busy."""
    running = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Case:
    """One way to train."""

    environment: dict[str, str]
    side_by_side: bool = False
    fused: bool = False


def step_ms(steps: int, case: Case) -> float:
    """Mean milliseconds of a step of `laptop-plain`, in a process of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = {
            "--out": str(run),
            "--train.steps": str(FIRST + steps),
            "--train.eval-every": "1000000",
            "--train.eval-tokens": "512",
            "--train.device": "cpu",
            "--train.cpu-kernels": "fused" if case.fused else "plain",
        }
        arguments = [text for option in options.items() for text in option]
        arguments.append(f"--train.{'' if case.side_by_side else 'no-'}side-by-side")
        subprocess.run(
            [sys.executable, "-m", "quintic", "train", "laptop-plain", *arguments],
            env={**inherited, **case.environment},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        times = [r["step_ms"] for r in read_records(run / METRICS) if "step_ms" in r]
    return statistics.fmean(times[FIRST:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="steps of a run that count")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--beside", choices=("quiet", "busy"), nargs="+", default=("quiet", "busy"))
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args(arguments)

    cores = available_cores()
    cases = {f"spin {count:,}": Case({"GOMP_SPINCOUNT": str(count)}) for count in options.counts}
    cases["one thread"] = Case({"OMP_NUM_THREADS": "1"})
    cases["one thread, fused"] = Case({"OMP_NUM_THREADS": "1"}, fused=True)
    cases["side by side"] = Case({}, side_by_side=True)
    cases["side by side, fused"] = Case({}, side_by_side=True, fused=True)
    found: dict[str, dict[str, list[float]]] = {
        beside: {case: [] for case in cases} for beside in options.beside
    }
    for _ in range(options.rounds):
        for beside, measured in found.items():
            with busy(cores if beside == "busy" else 0):
                for name, case in cases.items():
                    measured[name].append(round(step_ms(options.steps, case), 2))
                    print(f"{beside}, {name}: {measured[name][-1]:,.1f} ms a step", flush=True)
    medians = {b: {c: statistics.median(ms) for c, ms in m.items()} for b, m in found.items()}
    base = next(iter(cases))
    rows = [
        [
            case,
            *(f"{of[case]:,.1f}" for of in medians.values()),
            *(f"{of[case] / of[base]:.3f}" for of in medians.values()),
        ]
        for case in cases
    ]
    print_table(["", *(f"{b}, ms" for b in medians), *(f"{b}, of {base}" for b in medians)], rows)
    if not options.dry:
        figures = {"steps": options.steps, "cores": cores, "step_ms": found, "median_ms": medians}
        write_result(f"threads-cpu-{cores}threads", figures, torch.device("cpu"))


if __name__ == "__main__":
    main()

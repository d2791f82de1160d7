"""How many threads a run should take on a CPU, and how long they should spin: a recipe of the
embedded corpus on quiet cores and beside one busy loop a core.

PyTorch's operators divide their work among OpenMP threads, which meet after each. A thread that has
come first spins, that is looks again and again, before it sleeps: waking takes longer than a short
wait, and spinning takes the core from whoever would let the others come. `GOMP_SPINCOUNT` is how
often it looks; GNU OpenMP's own number is 300,000. Each case is trained in turn, several rounds, in
processes of their own.

    python -m bench.threads            # writes docs/results/threads-RECIPE-cpu-Nthreads.json
    python -m bench.threads --counts   # what quintic chooses, all cores and one thread

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
from pathlib import Path

import torch

from bench.results import print_table, write_result
from quintic.cores import available_cores
from quintic.metrics_file import METRICS, read_records
from quintic.run_dir import read_environments

CHOSEN = "as quintic chooses"

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


def trained(recipe: str, steps: int, environment: dict[str, str]) -> tuple[float, int]:
    """Mean milliseconds of a step, in a process of its own, and the threads that it took."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = {
            "--out": str(run),
            "--train.steps": str(FIRST + steps),
            "--train.eval-every": "1000000",
            "--train.eval-tokens": "512",
            "--train.device": "cpu",
        }
        arguments = [text for option in options.items() for text in option]
        subprocess.run(
            [sys.executable, "-m", "quintic", "train", recipe, *arguments, "--train.no-report"],
            env={**inherited, **environment},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        times = [r["step_ms"] for r in read_records(run / METRICS) if "step_ms" in r]
        (start,) = read_environments(run)
    return statistics.fmean(times[FIRST:]), start["threads"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="laptop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="steps of a run that count")
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--beside", choices=("quiet", "busy"), nargs="+", default=("quiet", "busy"))
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args(arguments)

    cores = available_cores()
    on_all = {"OMP_NUM_THREADS": str(cores)}
    cases = {CHOSEN: {}, "all cores": on_all, "one thread": {"OMP_NUM_THREADS": "1"}}
    cases |= {f"spin {n:,}": {**on_all, "GOMP_SPINCOUNT": str(n)} for n in options.counts}
    found: dict[str, dict[str, list[float]]] = {
        beside: {case: [] for case in cases} for beside in options.beside
    }
    took: dict[str, list[int]] = {beside: [] for beside in options.beside}
    for _ in range(options.rounds):
        for beside, measured in found.items():
            with busy(cores if beside == "busy" else 0):
                for name, environment in cases.items():
                    ms, threads = trained(options.recipe, options.steps, environment)
                    measured[name].append(round(ms, 2))
                    print(f"{beside}, {name}: {ms:,.1f} ms a step, threads {threads}", flush=True)
                    if name == CHOSEN:
                        took[beside].append(threads)
    medians = {b: {c: statistics.median(ms) for c, ms in m.items()} for b, m in found.items()}
    base = next(iter(medians.values()))[CHOSEN]
    rows = [
        [
            case,
            *(f"{of[case]:,.1f}" for of in medians.values()),
            *(f"{of[case] / base:.2f}" for of in medians.values()),
        ]
        for case in cases
    ]
    first = f"of {CHOSEN}, {next(iter(medians))}"
    print_table(["", *(f"{b}, ms" for b in medians), *(f"{b}, {first}" for b in medians)], rows)
    if not options.dry:
        figures = {
            "recipe": options.recipe,
            "steps": options.steps,
            "cores": cores,
            "threads_chosen": took,
            "step_ms": found,
            "median_ms": medians,
        }
        name = f"threads-{options.recipe}-cpu-{cores}threads"
        write_result(name, figures, torch.device("cpu"))


if __name__ == "__main__":
    main()

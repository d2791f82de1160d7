"""What a tracker costs a run with steps of 300 ms: `python -m bench.trackers`.

A run's `metrics.jsonl` is written, a record every 300 ms as a step of a large model takes, while a
tracker is filled as in training; no model is trained, so that what is measured is the tracker's.
Of the training process: the time that it takes to start the tracker, its processor time per step
beside that of the same steps without one, and how long it waits at the end. Of the tracker's own
processes, which run at a low priority: processor time to open the run, per step, and memory.
Expected: per step nothing in the training process, and at most 3 ms, which is 1%, in the tracker's.

Trackers that are not installed are left out; what they store goes to a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from bench.results import print_table, write_result
from quintic import run_dir
from quintic.config.train import TrackerName
from quintic.console import Console
from quintic.metrics_file import METRICS, MetricsFile, MetricsRecord
from quintic.recipes import get_recipe
from quintic.trackers.processes import Tracking, tracking

STEP_S, STEPS = 0.3, 100
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def record(step: int) -> MetricsRecord:
    """A training record as a GPU's."""
    return {
        **{"step": step, "tokens": 524_288 * step, "train_loss": 11 / (1 + step), "step_ms": 300.1},
        **{"tokens_per_s": 1_746_123.4, "elapsed_s": 0.3 * step, "lr": 0.02, "lr_factor": 1.0},
        **{"optimizer_ms": 12.25, "mfu": 0.41, "memory_gib": 31.125},
    }


def of_family(pid: int) -> tuple[float, float]:
    """Processor seconds and resident MiB of a process and all that it has started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = sum(map(int, fields[11:15])) * TICK_S  # its own and its ended children's
    mib = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            its_seconds, its_mib = of_family(child)
            seconds, mib = seconds + its_seconds, mib + its_mib
    return seconds, mib


def is_open(folder: Path, trackers: Tracking) -> bool:
    """Whether the run has been opened: said by all but TensorBoard, whose file shows it."""
    written = (path.stat().st_size for path in (folder / "tensorboard").glob("*.tfevents.*"))
    return any(tracker.lines for tracker in trackers.trackers) or any(written)


def write_steps(file: MetricsFile, first: int, steps: int) -> float:
    """Write the records of steps as they pass; returns this process's processor seconds."""
    began, cpu_s = time.monotonic(), time.process_time()
    for number in range(1, steps + 1):
        file.append(record(first + number))
        time.sleep(max(0.0, began + number * STEP_S - time.monotonic()))
    return time.process_time() - cpu_s


def measure(name: str | None, steps: int) -> dict[str, Any]:
    """The figures of a tracker, or of none."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary) / "run"
        folder.mkdir()
        run_dir.write_config(folder, get_recipe("laptop"))
        run_dir.record_environment(folder, torch.device("cpu"))
        file = MetricsFile(folder / METRICS)
        file.append(record(0))
        if name is None:
            return {"training_us_per_step": 1e6 * write_steps(file, 0, steps) / steps}
        began = time.perf_counter()
        tracked = tracking(folder, [name], Console(quiet=True))
        trackers = stack.enter_context(tracked)
        start_ms = 1000 * (time.perf_counter() - began)
        waited = 0
        while not is_open(folder, trackers):
            waited += 1
            write_steps(file, waited, 1)
        write_steps(file, waited + 1, 20)  # until what it begins with is done
        pid = trackers.trackers[0].pid
        opened_s, _ = of_family(pid)
        training_s = write_steps(file, waited + 21, steps)
        now_s, memory_mib = of_family(pid)
        trackers.outcome = "finished"
        began = time.perf_counter()
        stack.close()
        return {
            "version": version(name),
            "start_ms": start_ms,
            "training_us_per_step": 1e6 * training_s / steps,
            "open_cpu_s": opened_s,
            "tracker_cpu_ms_per_step": 1000 * (now_s - opened_s) / steps,
            "share_of_a_step": (now_s - opened_s) / steps / STEP_S,
            "memory_mib": memory_mib,
            "wait_at_end_s": time.perf_counter() - began,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    steps = parser.parse_args().steps
    found = {"none": measure(None, steps)}
    for name in get_args(TrackerName):
        if find_spec(name) is None:
            print(f"{name} is not installed")
        else:
            found[name] = measure(name, steps)
    names = ["start_ms", "training_us_per_step", "tracker_cpu_ms_per_step", "share_of_a_step"]
    names += ["open_cpu_s", "memory_mib", "wait_at_end_s"]
    rows = [
        [tracker, *(f"{figures[name]:.4g}" if name in figures else "" for name in names)]
        for tracker, figures in found.items()
    ]
    print_table(["tracker", *names], rows)
    figures = {"step_s": STEP_S, "steps": steps, "trackers": found}
    print(write_result("trackers-cpu", figures, torch.device("cpu")))


if __name__ == "__main__":
    main()

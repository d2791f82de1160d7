"""A recipe trained on real shards for some minutes, the schedule sized to them.

The run is quintic's own (`quintic.setup.start`, `quintic.train.train_run`), with its folder and
metrics.
"""

from __future__ import annotations

import lzma
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.gpu.budget import Budget
from bench.gpu.steps import AS_IS, QuinticStepper, free, measure_way, with_random_shards
from quintic.config import Config
from quintic.console import Console
from quintic.data.dataset import open_dataset
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, read_records
from quintic.run_dir import CHECKPOINTS
from quintic.run_lines import opening_lines
from quintic.setup import start
from quintic.train import train_run

VALIDATIONS = 10
"""Validations of a run, besides the first."""

VALIDATION_SHARE = 0.1
"""Of a run's time at most; a token is validated in a third of the time that it is trained in."""

CLOSING_S = 25.0
"""Kept back from a run's time: set-up, compilation, and the checkpoint at the end."""


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """A folder of `.bin` shards; those that are `.bin.xz` are unpacked into a temporary one."""
    packed = sorted(folder.glob("*.bin.xz"))
    if not packed:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary)

        def unpack(path: Path) -> None:
            with lzma.open(path) as source, (target / path.stem).open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)

        with ThreadPoolExecutor(min(len(packed), os.cpu_count() or 1)) as pool:
            list(pool.map(unpack, packed))
        for path in folder.glob("*.bin"):
            (target / path.name).symlink_to(path.resolve())
        yield target


def sized(config: Config, data: Path, steps: int) -> Config:
    """`config` on `data` for so many steps, validations included in proportion to them."""
    config = config.override(
        {
            "data.path": str(data),
            "data.tokenizer": None,
            "train.steps": steps,
            "train.eval_every": max(1, steps // VALIDATIONS),
            "train.checkpoint_every": steps + 1,
            "train.keep_checkpoints": 1,
            "train.log_to": (),
            "optim.schedule.warmup_steps": min(config.optim.schedule.warmup_steps, steps // 10),
        }
    )
    # A token is validated in a third of the time.
    most = int(3 * config.tokens * VALIDATION_SHARE / (1 - VALIDATION_SHARE) / (VALIDATIONS + 1))
    there = len(open_dataset(data).val) - 1
    context = config.model.context
    sequences = max(1, min(most, there, config.train.eval_tokens) // context)
    return config.override({"train.eval_tokens": sequences * context})


def steps_within(config: Config, seconds: float, step_ms: float) -> int:
    """How many steps of `step_ms` a training of so many seconds has, besides validation.

    Raises `QuinticError` where that is none.
    """
    stages = config.train.batch_stages
    mean_ms = step_ms * (stages + 1) / (2 * stages)  # a batch that grows is measured at its end
    if steps := int(1000 * (1 - VALIDATION_SHARE) * seconds / mean_ms):
        return steps
    raise QuinticError(
        f"{seconds:.0f} s are less than a step of {step_ms:.0f} ms: give more --minutes"
    )


def step_ms_of(config: Config, device: torch.device, budget: Budget) -> float:
    """A short measurement, where the steps of this recipe were not measured before."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_way(
            lambda changed: QuinticStepper(changed, device),
            with_random_shards(config, Path(folder)),
            device,
            3,
            budget,
        )
    free(device)
    return float(figures["step_ms"])


def train_recipe(
    config: Config,
    data: Path,
    folder: Path,
    device: torch.device,
    budget: Budget,
    *,
    minutes: float,
    step_ms: float | None,
    steps: int | None,
) -> dict[str, Any]:
    """Train for some minutes, or for what is left of the budget; the losses and when they came.

    With `steps` it trains for so many, however long they take, as recipes that are to be compared
    at equal tokens must.
    """
    if steps is None:
        if step_ms is None:
            step_ms = step_ms_of(config, device, budget)
        seconds = min(60 * minutes, budget.left_s - CLOSING_S)
        if seconds < 60 * minutes:
            budget.say(f"{config.recipe} trains for {seconds:.0f} s, not {60 * minutes:.0f}")
        steps = steps_within(config, seconds, step_ms)
    config = sized(config, data, steps)
    console = Console()
    run = start(config, folder, console)
    for line in opening_lines(run):
        console.line(line)
    # A step slower than it was measured must not cost the results: quintic stops at a signal.
    stop = threading.Timer(
        max(1.0, budget.left_s - CLOSING_S / 2), os.kill, (os.getpid(), signal.SIGINT)
    )
    stop.daemon = True
    began = time.monotonic()
    stop.start()
    try:
        done = train_run(run, console)
    finally:
        stop.cancel()
    wall_s = time.monotonic() - began
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # 1.5 GB that nobody asked for
    if not done:
        budget.say(f"{config.recipe} was stopped at step {run.state.step} of {config.train.steps}")
    records = read_records(folder / METRICS)
    taken = [record for record in records if "train_loss" in record]
    return {
        "recipe": config.recipe,
        "way": AS_IS,
        "finished": done,
        "steps": run.state.step,
        "of_steps": config.train.steps,
        "batch_tokens": config.train.batch_tokens,
        "epochs": round(config.tokens_before(run.state.step) / len(run.dataset.train), 3),
        "eval_tokens": config.train.eval_tokens,
        "wall_s": round(wall_s, 1),
        "training_s": taken[-1]["elapsed_s"] if taken else 0.0,
        "first_step_s": taken[0]["step_ms"] / 1000 if taken else 0.0,  # compilation, mostly
        "step_ms": statistics.median(t["step_ms"] for t in taken) if taken else None,
        "val_losses": _curve(records),
        "final_val_loss": run.state.val_loss,
    }


def _curve(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Validation losses by step, each with the seconds of training until then."""
    curve, elapsed_s = [], 0.0
    for record in records:
        elapsed_s = record.get("elapsed_s", elapsed_s)
        if "val_loss" in record:
            curve.append(
                {"step": record["step"], "elapsed_s": elapsed_s, "val_loss": record["val_loss"]}
            )
    return curve

"""Runs that were never trained: folders with a config and records, for a page to show."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quintic.config import Config
from quintic.metrics_file import METRICS
from quintic.recipes import get_recipe
from quintic.run_dir import CHECKPOINTS, CONFIG, ENVIRONMENT

STEPS = 100


def train_record(step: int, loss: float | None = None) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": 2048 * step,
        "train_loss": 5.0 - step / 100 if loss is None else loss,
        "step_ms": 500.0,
        "tokens_per_s": 4096.0,
        "elapsed_s": 0.5 * (step + 1),
    }


def validation_record(step: int, loss: float) -> dict[str, Any]:
    place = {"step": step, "tokens": 2048 * step, "elapsed_s": 0.5 * step}
    return {**place, "val_loss": loss, "val_s": 2.0}


def task_record(step: int, acc: float) -> dict[str, Any]:
    """Scores on two tasks: one with an accuracy of guessing, one without."""
    place = {"step": step, "tokens": 2048 * step, "elapsed_s": 0.5 * step, "tasks_s": 3.0}
    blimp = {"blimp/acc": acc, "blimp/acc_stderr": 0.0625, "blimp/chance": 0.5}
    words = {"lambada_openai/acc": 0.25, "lambada_openai/acc_stderr": 0.03125}
    return {**place, **blimp, **words, "lambada_openai/perplexity": 40.0 + step}


def config(**changes: Any) -> Config:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return get_recipe("laptop").override(
        {"train.steps": STEPS, "train.eval_every": 50, "model.vocab_size": 2048, **named}
    )


def text(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def append(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    with (folder / METRICS).open("a") as file:
        file.write(text(records))


def write_run(folder: Path, steps: int, *, saved: int | None = None, **changes: Any) -> Path:
    """A run after so many steps, with a checkpoint of step `saved`."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config(**changes).to_dict()))
    start = {"data": "same", "flops_per_token": 1e6, "command": "quintic train", "device": "cpu"}
    (folder / ENVIRONMENT).write_text(json.dumps([start]))
    seed = changes.get("train__seed", 0)
    for step in range(steps):
        if step % 50 == 0:
            append(folder, [validation_record(step, 5.0 - step / 100 + seed / 10)])
        append(folder, [train_record(step)])
    if steps == STEPS:
        append(folder, [validation_record(STEPS, 4.0 + seed / 10)])
    if saved is not None:
        (folder / CHECKPOINTS / f"step-{saved:08}").mkdir(parents=True)
    return folder

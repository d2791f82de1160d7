"""The memory that `quintic plan` predicts, beside that of trainings: `python -m bench.plan`.

Each setting is trained for a step of two passes on a CPU, as `quintic train` does, in a process of
its own on random tokens. Measured is the most that was resident of it at once, less what was when
everything had been imported: with memory given back to the system as it is freed, which is what the
prediction is of, and as it is by default, where freed memory is kept and lies in pieces. Expected:
within 10% of the first, and the second in the range that `quintic plan` says.
Steps of `modded` on an H200 stand beside their predictions as well, with the peaks that
docs/results/gpu-nvidia-h200*.json has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.results import RESULTS, print_table, write_result
from quintic.config import Config
from quintic.plan.memory import MemoryModel, Setting
from quintic.recipes import get_recipe

VOCABULARY = 4096
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PASSES, STEPS = 2, 1

SETTINGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ladder:4, fused": ("ladder:4", 8, {}),
    "ladder:4, plain": ("ladder:4", 8, {"train.cpu_kernels": "plain"}),
    "ladder:4, plain, checkpointing": (
        "ladder:4",
        24,
        {"train.cpu_kernels": "plain", "train.activation_checkpointing": True},
    ),
    "ladder:5, fused": ("ladder:5", 6, {}),
    "ladder:3, AdamW, plain loss": (
        "ladder:3",
        8,
        {"optim.matrices": "adamw", "train.loss": "plain", "train.cpu_kernels": "plain"},
    ),
    "gpt2, 4 x 256": (
        "gpt2",
        8,
        {"model.layers": 4, "model.width": 256, "model.heads": 4},
    ),
}
"""Each setting's recipe, micro-batch and changes."""


def config_of(recipe: str, micro_batch: int, changes: dict[str, Any], data: str) -> Config:
    """The config of a setting: one step of two passes, and nothing beside it."""
    base = get_recipe(recipe)
    tokens = PASSES * micro_batch * base.model.context
    quiet = {"train.report": False, "train.log_to": (), "train.sample_tokens": 0}
    sizes = {"train.batch_tokens": tokens, "train.eval_tokens": base.model.context}
    sizes["train.steps"] = STEPS
    return base.override(
        {
            "data.path": data,
            "data.tokenizer": None,
            "model.vocab_size": VOCABULARY,
            "train.micro_batch": micro_batch,
            "train.eval_every": STEPS,
            "train.compile": False,
            "train.device": "cpu",
            "optim.schedule.warmup_steps": 0,
            **quiet,
            **sizes,
            **changes,
        }
    )


def predicted(config: Config) -> int:
    """The bytes that `quintic plan` predicts."""
    assert config.train.micro_batch is not None
    again = config.train.activation_checkpointing
    memory = MemoryModel(config, "cpu", 1)
    return memory(Setting(config.train.micro_batch, "zero1", again)).peak


def resident(peak: bool) -> int:
    """Bytes of this process that are resident, or the most that were."""
    key = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_here(name: str) -> dict[str, float]:
    """Train a setting in this process; the bytes beyond what its imports take, and its seconds of
    processor a step."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401 - a run draws its loss

    from quintic.console import Console
    from quintic.data.shards import write_shard
    from quintic.device import check_cache_folder
    from quintic.malloc import keep_freed_memory
    from quintic.setup import start
    from quintic.train import train_run

    check_cache_folder(compiles=False)
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(*SETTINGS[name], folder)
        tokens = STEPS * config.train.batch_tokens + 1
        ids = np.random.default_rng(0).integers(0, VOCABULARY, tokens).astype(np.uint16)
        for split in ("train_000001", "val_000000"):
            write_shard(Path(folder) / f"random_{split}.bin", ids)
        torch.ones(64, 64) @ torch.ones(64, 64)
        before = resident(peak=False)
        console = Console(quiet=True)
        train_run(start(config, Path(folder) / "run", console), console)
        return {"bytes": resident(peak=True) - before}


def measured(name: str, environment: dict[str, str]) -> int:
    """The bytes of a training of a setting in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.plan", "--one", name],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def beside_h200() -> Iterator[dict[str, Any]]:
    """Peaks that PyTorch measured on an H200, and what is predicted of the same settings."""
    modded = get_recipe("modded")
    for file in ("gpu-nvidia-h200.json", "gpu-nvidia-h200-losses.json"):
        for step in json.loads((RESULTS / file).read_text())["steps"]:
            wanted = {"train.loss", "train.compile"}
            ours = step["way"] != "plain loop" and "peak_memory_gib" in step
            if not ours or not step["changes"].keys() <= wanted:
                continue
            # What `auto` chose when these were measured.
            changes = {"train.loss": "chunked", **step["changes"]}
            config = modded.override(changes)
            memory = MemoryModel(config, "cuda", 1)(Setting(step["micro_batch"], "zero1", False))
            yield {
                "changes": changes,
                "micro_batch": step["micro_batch"],
                "predicted_gib": round(memory.peak / 2**30, 2),
                "measured_gib": step["peak_memory_gib"],
                "predicted_over_measured": round(memory.peak / 2**30 / step["peak_memory_gib"], 4),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="measure this setting here and print it as JSON")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure_here(options.one)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name, (recipe, micro_batch, changes) in SETTINGS.items():
        config = config_of(recipe, micro_batch, changes, "data")
        prediction, given_back = predicted(config), measured(name, GIVEN_BACK)
        kept = measured(name, {})
        found[name] = {
            "recipe": recipe,
            "micro_batch": micro_batch,
            "changes": changes,
            "predicted_bytes": prediction,
            "measured_bytes": given_back,
            "predicted_over_measured": round(prediction / given_back, 4),
            "measured_kept_bytes": kept,
            "kept_over_predicted": round(kept / prediction, 4),
        }
        print(f"{name}: {found[name]}", flush=True)
    on_gpu = list(beside_h200())
    for one in on_gpu:
        print(f"H200, {one['changes']}: {one['predicted_gib']} for {one['measured_gib']} GiB")
    print_table(
        ("setting", "predicted MiB", "measured", "ratio", "by default", "over predicted"),
        [
            (
                name,
                f"{one['predicted_bytes'] / 2**20:,.0f}",
                f"{one['measured_bytes'] / 2**20:,.0f}",
                f"{one['predicted_over_measured']:.3f}",
                f"{one['measured_kept_bytes'] / 2**20:,.0f}",
                f"{one['kept_over_predicted']:.2f}",
            )
            for name, one in found.items()
        ],
    )
    result = {"vocabulary": VOCABULARY, "passes": PASSES, "steps": STEPS, "settings": found}
    result["h200"] = on_gpu
    path = write_result("plan-memory", result, torch.device("cpu"), module="bench.plan")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

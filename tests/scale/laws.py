"""Runs that follow a law, as a CSV and as folders, without any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quintic.recipes import get_recipe
from quintic.scale.observations import Observation, Observations

E, A, B, EXPONENT_N, EXPONENT_D = 1.8, 30.0, 60.0, 0.35, 0.37
SIZES = [1e6, 2e6, 4e6, 8e6, 16e6]


def loss_of(n: float, d: float) -> float:
    return float(E + A / n**EXPONENT_N + B / d**EXPONENT_D)


def runs_of(
    pairs: Sequence[tuple[float, float]], *, noise: float = 0.0, seeds: int = 1, draw: int = 0
) -> Observations:
    """Runs of these N and D with C = 6 N D; `noise` is the standard deviation of log L."""
    generator = np.random.default_rng(draw)
    return Observations(
        [
            Observation(
                label=f"{n:g} on {d:g}, seed {seed}",
                parameters={"given": n},
                tokens=d,
                flops=6 * n * d,
                loss=loss_of(n, d) * float(np.exp(noise * generator.standard_normal())),
                group=group,
                seed=seed,
            )
            for group, (n, d) in enumerate(pairs)
            for seed in range(seeds)
        ],
        "the runs",
    )


def grid(ratios: Sequence[float] = (5, 10, 20, 40)) -> list[tuple[float, float]]:
    """Five sizes, each on several numbers of tokens."""
    return [(n, ratio * n) for n in SIZES for ratio in ratios]


def csv_of(
    path: Path, pairs: Sequence[tuple[float, float]], *, noise: float = 0.0, draw: int = 0
) -> Path:
    runs = runs_of(pairs, noise=noise, draw=draw).runs
    lines = [f"{run.parameters['given']},{run.tokens},{run.loss}" for run in runs]
    path.write_text("\n".join(["parameters,tokens,loss", *lines]) + "\n")
    return path


def folder_of(path: Path, *, width: int, steps: int, seed: int = 1, loss: float) -> Path:
    """The folder of a finished run of the recipe `laptop-plain` at a width."""
    config = get_recipe("laptop-plain").override(
        {
            "model.width": width,
            "model.heads": 2,
            "model.layers": 2,
            "model.vocab_size": 256,
            "data.path": "data",
            "train.steps": steps,
            "train.seed": seed,
        }
    )
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    tokens = steps * config.train.batch_tokens
    records = [
        {"step": 0, "val_loss": 5.545, "tokens": 0},
        {"step": steps, "val_loss": loss, "tokens": tokens},
    ]
    lines = [json.dumps(record) + "\n" for record in records]
    (path / "metrics.jsonl").write_text("".join(lines))
    (path / "environment.json").write_text(json.dumps([{"data": "f" * 64}]))
    return path

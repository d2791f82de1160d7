"""A loss foretold: `python -m bench.prophecy fit --data DIR`, then `target`.

`fit` trains small models, 4 blocks at four widths, each on several numbers of tokens, with two
seeds. `quintic scale` foresees from them the loss of one that takes at least four times the FLOPs
of any of them, which `target` then trains. Rates follow from tokens and width by the dial's rules
(quintic/ladder.py), at 1,024 tokens a step: on runs this short, rung by rung as the dial has it, a
step has more tokens the longer the run is, and the law of the loss is not seen through that.

Interrupted, the same command goes on. Config, environment and metrics of each run go to
docs/results/prophecy, which docs/scaling.md tells of.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.results import RESULTS
from bench.trainings import copy_records, ending_in_a_line, train_all
from quintic import ladder
from quintic.config import Config
from quintic.errors import QuinticError
from quintic.recipes import get_recipe
from quintic.sweep.plan import SEED, PlannedRun

DEPTH = 4
BATCH, CONTEXT = 1024, 256
FIT: dict[int, tuple[int, ...]] = {
    32: (2**18, 2**19, 2**20, 2**21),
    64: (2**18, 2**19, 2**20, 2**21),
    96: (2**18, 2**19, 2**20),
    128: (2**18, 2**19, 2**20),
}
"""Tokens by width."""
TARGET: dict[int, tuple[int, ...]] = {256: (5 * 2**18,)}
PARTS = {"fit": FIT, "target": TARGET}
SEEDS = (1, 2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", required=True, help="a dataset with a small vocabulary")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/prophecy"))
    parser.add_argument("--results", type=Path, default=RESULTS / "prophecy")
    options = parser.parse_args(arguments)
    with ending_in_a_line("bench.prophecy"):
        _run(options.part, options.data, options.jobs, options.out, options.results)


def _run(part: str, data: str, jobs: int, out: Path, results: Path) -> None:
    losses = train_all(tuple(_planned(part, data)), out, jobs=jobs)
    for name, loss in losses.items():
        if loss is None:
            raise QuinticError(f"{name} diverged: see {out / name}.log")
        copy_records(out / name, results / name)


def _planned(part: str, data: str) -> Iterator[PlannedRun]:
    for width, lengths in PARTS[part].items():
        for tokens in lengths:
            for seed in SEEDS:
                config = config_of(width, tokens, data).override({SEED: seed})
                yield PlannedRun(f"{part}-{DEPTH}x{width}-{tokens}-seed{seed}", {}, config)


def config_of(width: int, tokens: int, data: str) -> Config:
    """Return the run of a width on so many tokens."""
    factor = (BATCH / ladder.REFERENCE_BATCH) ** ladder.LR_OF_BATCH
    factor *= (tokens / ladder.REFERENCE_TOKENS) ** ladder.LR_OF_TOKENS
    narrower = (width / ladder.REFERENCE_WIDTH) ** ladder.ADAMW_LR_OF_WIDTH
    steps = tokens // BATCH
    return get_recipe(f"ladder:{DEPTH}").override(
        {
            "data.path": data,
            "model.width": width,
            "model.heads": max(1, width // ladder.HEAD_WIDTH),
            "model.context": CONTEXT,
            "optim.muon.lr": float(f"{ladder.REFERENCE_MUON_LR * factor:.3g}"),
            "optim.muon.weight_decay": 0.0,
            "optim.muon.cautious": False,
            "optim.adamw.lr": float(f"{ladder.REFERENCE_ADAMW_LR * factor * narrower:.3g}"),
            "train.batch_tokens": BATCH,
            "train.steps": steps,
            "train.eval_every": steps,
            "train.eval_tokens": 2**17,
            "train.log_every": 10,
            "train.log_to": (),
            "train.sample_tokens": 0,
            "train.report": False,
            "train.keep_checkpoints": 1,
        }
    )


if __name__ == "__main__":
    main()

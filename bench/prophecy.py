"""A loss foretold: `python -m bench.prophecy fit --data DIR`, then `target`.

`fit` trains small models, 4 blocks at several widths, each on several numbers of tokens. `quintic
scale` foresees from them the loss of one that takes at least four times the FLOPs of any of them,
which `target` then trains. Rates follow from tokens and width by the dial's rules
(quintic/ladder.py), at 1,024 tokens a step: on runs this short, rung by rung as the dial has it, a
step has more tokens the longer the run is, and the law of the loss is not seen through that.

The runs of `--design 1` have 256 steps or more, and what it foretold failed: so short, a doubling
of the tokens lowers the loss by more the later it comes, which no power law does. Those of
`--design 2` have 3,072 or more; one seed of each, since for an interval another number of tokens
tells more than another seed.

Interrupted, the same command goes on. Config, environment and metrics of each run go to
docs/results/prophecy, or prophecy-2, which docs/scaling.md tells of.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Design:
    """Holds the tokens by width of each part, and the seeds of every run."""

    fit: dict[int, tuple[int, ...]]
    target: dict[int, tuple[int, ...]]
    seeds: tuple[int, ...]


DESIGNS = {
    1: Design(
        fit={
            32: (2**18, 2**19, 2**20, 2**21),
            64: (2**18, 2**19, 2**20, 2**21),
            96: (2**18, 2**19, 2**20),
            128: (2**18, 2**19, 2**20),
        },
        target={256: (5 * 2**18,)},
        seeds=(1, 2),
    ),
    2: Design(
        fit={
            32: (3 * 2**20, 6 * 2**20, 12 * 2**20),
            48: (3 * 2**20, 6 * 2**20, 12 * 2**20),
            64: (3 * 2**20, 6 * 2**20, 9 * 2**20),
            96: (3 * 2**20, 9 * 2**20 // 2),
            128: (3 * 2**20,),
        },
        target={160: (17 * 2**20 // 2,)},
        seeds=(1,),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("fit", "target"))
    parser.add_argument("--design", type=int, choices=DESIGNS, default=1)
    parser.add_argument("--data", required=True, help="a dataset with a small vocabulary")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="default: runs/prophecy, or prophecy-2")
    parser.add_argument("--results", type=Path, help="default: docs/results/prophecy, or so")
    options = parser.parse_args(arguments)
    name = "prophecy" if options.design == 1 else f"prophecy-{options.design}"
    runs = tuple(_planned(options.part, DESIGNS[options.design], options.data))
    out, results = options.out or Path("runs") / name, options.results or RESULTS / name
    with ending_in_a_line("bench.prophecy"):
        for run, loss in train_all(runs, out, jobs=options.jobs).items():
            if loss is None:
                raise QuinticError(f"{run} diverged: see {out / run}.log")
            copy_records(out / run, results / run)


def _planned(part: str, design: Design, data: str) -> Iterator[PlannedRun]:
    for width, lengths in (design.fit if part == "fit" else design.target).items():
        for tokens in lengths:
            for seed in design.seeds:
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

"""What each technique of the speedrun costs in time: `python -m bench.techniques`.

`modded` at the size of the ladder, and the same with one of its techniques each
(bench/ladder/techniques.py), steps taken in turn in one process on the same batch. A technique that
lowers the loss is worth its time only where the steps it saves take longer than what it adds to
each.

Expected on a CPU, before measuring: a table of V x D costs AdamW's pass over it, which at 2,048
tokens a step is a large part of the step (two more tables where the model has one: up to a fifth);
a mask takes attention's fast path away, a few percent at a context of 256; three targets a token
cost a part of what is done with a chunk's logits a second time, and a head rounded to float8, which
a CPU multiplies in float32, the rounding: each under a tenth; all else under 3%.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch

from bench.ladder.techniques import TECHNIQUES, small_modded
from bench.results import interleaved, median_ratio, print_table, write_result
from bench.step import QuinticStep
from quintic.config import Config
from quintic.model.build import build_model

NOT_TIMED = ("batch-stages", "momentum-warmup")
"""Another batch, whose steps do not compare, and a number that changes nothing of the work."""


def one_step(config: Config) -> QuinticStep:
    """A fresh model and its optimizers, compiled."""
    model = build_model(
        config.model,
        float8_head=config.train.float8_head,
        mtp_tokens=config.train.mtp_tokens,
    )
    return QuinticStep(config, model, torch.device("cpu"), compiled=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 4 * len(TECHNIQUES)  # all models share their code

    base = small_modded()
    assert base.model.vocab_size is not None
    ids_BT = torch.randint(
        base.model.vocab_size,
        (base.batch_sequences, base.model.context + 1),
        generator=torch.Generator().manual_seed(0),
    )
    inputs_BT, targets_BT = ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous()

    def step(way: QuinticStep) -> None:
        way.forward_backward(inputs_BT, targets_BT)
        way.optimizer_step()

    ways = {"modded": one_step(base)}
    for technique in TECHNIQUES:
        if technique.name not in NOT_TIMED:
            config = small_modded(technique.changes)
            if config.model.document_mask:
                config = config.override({"model.eot_id": 0})  # as random tokens have it
            ways[technique.name] = one_step(config)
    seconds = interleaved({n: partial(step, way) for n, way in ways.items()}, rounds=options.rounds)
    figures = {
        name: {
            "step_ms": round(1000 * statistics.median(taken), 2),
            "times_modded": round(median_ratio(taken, seconds["modded"]), 3),
        }
        for name, taken in seconds.items()
    }
    print_table(
        ("with", "ms a step", "times modded"),
        [(name, row["step_ms"], f"{row['times_modded']:.3f}") for name, row in figures.items()],
    )
    name = f"techniques-cpu-{options.threads}thread{'s' * (options.threads > 1)}"
    written = write_result(
        name, {"tokens": base.train.batch_tokens, "ways": figures}, torch.device("cpu")
    )
    print(f"written to {written}")


if __name__ == "__main__":
    main()

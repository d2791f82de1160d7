"""What each technique of the speedrun costs in time: `python -m bench.techniques`.

`modded` at the size of the ladder (docs/speedrun.md), and the same with one technique each, steps
taken in turn in one process on the same batch. A technique that lowers the loss is worth its time
only where the steps it saves take longer than what it adds to each.

Expected on a CPU, before measuring: a table of V x D costs AdamW's pass over it, which at 2,048
tokens a step is a large part of the step (two more tables where the model has one: up to a fifth);
a mask takes attention's fast path away, a few percent at a context of 256; all else under 3%.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch

from bench.results import interleaved, median_ratio, print_table, write_result
from bench.step import QuinticStep
from quintic.config import Config
from quintic.model.build import build_model
from quintic.recipes import get_recipe

SMALL = {
    "model.layers": 4,
    "model.width": 128,
    "model.heads": 2,
    "model.context": 256,
    "model.vocab_size": 4096,
    "train.batch_tokens": 2048,
    "optim.muon.scale": "aspect",
    "optim.muon.lr": 0.016,
    "optim.adamw.lr": 0.02,
}
"""`modded` as the ladder trains it."""

TECHNIQUES: dict[str, dict[str, Any]] = {
    "value_embeddings 2": {"model.value_embeddings": 2},
    "tied_head False": {"model.tied_head": False},
    "logit_softcap 15": {"model.logit_softcap": 15.0},
    "embed_norm": {"model.embed_norm": True},
    "embed_shortcut": {"model.embed_shortcut": True},
    "unet_skips": {"model.unet_skips": True},
    "window 64": {"model.window": 64},
    "document_mask": {"model.document_mask": True, "model.eot_id": 0},
    "polar_express": {"optim.muon.coefficients": "polar_express"},
    "normalize": {"optim.muon.normalize": True},
    "weight_decay 0.1": {"optim.muon.weight_decay": 0.1},
    "cautious decay 0.1": {"optim.muon.weight_decay": 0.1, "optim.muon.cautious": True},
}


def small(changes: dict[str, Any]) -> Config:
    """`modded` at the size of the ladder, with a technique's fields."""
    return get_recipe("modded").override(SMALL | changes)


def one_step(config: Config) -> QuinticStep:
    """A fresh model and its optimizers, compiled."""
    model = build_model(config.model, loss=config.train.loss)
    return QuinticStep(config, model, torch.device("cpu"), compiled=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 4 * len(TECHNIQUES)  # all models share their code

    base = small({})
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

    ways = {
        name: one_step(small(changes)) for name, changes in {"modded": {}, **TECHNIQUES}.items()
    }
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

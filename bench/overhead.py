"""Muon's share of a step, by tokens per step and width: `python -m bench.overhead`.

A step is forward and backward over the tokens, in micro-batches, and the optimizers' steps; the
share is the time of `Muon.step` over that of the whole. It is compared with the share of the
floating-point operations, which `docs/muon.md` derives: at a given width Muon's part is constant
and the rest grows with the tokens. Eager, in float32 on a CPU, so that both parts run the same kind
of product; 4 layers, context 256, vocabulary 2,048. Expected: the measured share lies below that of
the operations, since forward and backward spend time on what has no product (norms, softmax,
activations, loss); least so in wide models, where products are nearly all there is.

It also says how many tokens a step needs for a share under 2%: from the times measured, and from
the operations for `modded`'s own sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

import torch

from bench.results import print_table, write_result
from quintic.config import Config, ModelConfig
from quintic.model.base import LanguageModel
from quintic.model.build import build_model, meta_model
from quintic.optim.newton_schulz import newton_schulz_flops
from quintic.optim.param_groups import assign_parameters, build_optimizers
from quintic.recipes import get_recipe

CPU = torch.device("cpu")
LIMIT = 0.02
WIDTHS, TOKENS, MICRO_BATCH_TOKENS = (128, 256, 512), (1024, 4096, 16_384), 1024


def sized(width: int) -> Config:
    """`laptop-plain` with another width; the heads stay 64 wide."""
    config = get_recipe("laptop-plain")
    model = ModelConfig(layers=4, width=width, heads=width // 64, context=256, vocab_size=2048)
    return replace(config, model=model)


def muon_flops(model: LanguageModel, steps: int) -> float:
    """Operations of one Muon step: Newton-Schulz on every matrix of the blocks."""
    matrices = (p.shape for p in model.layers.parameters() if p.ndim == 2)
    return sum(newton_schulz_flops(rows, columns, steps) for rows, columns in matrices)


def share_of_flops(model: LanguageModel, ns_steps: int, tokens: float) -> float:
    """Newton-Schulz's share of the matrix products of a step of so many tokens."""
    muon = muon_flops(model, ns_steps)
    return muon / (muon + tokens * model.flops_per_token())


def tokens_for(share: float, fixed: float, other: float, per_token: float) -> int:
    """Tokens at which fixed / (fixed + other + tokens per_token) has fallen to a share."""
    return round((fixed / share - fixed - other) / per_token)


class Step:
    """One training step, its parts timed."""

    def __init__(self, config: Config) -> None:
        self.model = build_model(config.model)
        specs = assign_parameters(self.model, config.optim)
        self.muon, self.adamw = build_optimizers(self.model, specs, config.optim, device=CPU)
        assert config.model.vocab_size is not None
        self.ids_BT = torch.randint(
            config.model.vocab_size,
            (MICRO_BATCH_TOKENS // config.model.context, config.model.context + 1),
            generator=torch.Generator().manual_seed(0),
        )

    def seconds(self, tokens: int) -> dict[str, float]:
        """Forward and backward, Muon's step, AdamW's step on the embedding."""
        began = time.perf_counter()
        for _ in range(tokens // MICRO_BATCH_TOKENS):
            self.model.loss(self.ids_BT[:, :-1], self.ids_BT[:, 1:]).backward()
        computed = time.perf_counter()
        self.muon.step()
        muon_done = time.perf_counter()
        self.adamw.step()
        done = time.perf_counter()
        self.model.zero_grad()
        return {
            "forward_backward": computed - began,
            "muon": muon_done - computed,
            "adamw": done - muon_done,
        }


def measure(width: int, rounds: int) -> list[dict[str, float]]:
    """The share of each number of tokens at one width, taken in turn."""
    config = sized(width)
    step, ns_steps = Step(config), config.optim.muon.ns_steps
    step.seconds(MICRO_BATCH_TOKENS)
    taken: dict[int, list[dict[str, float]]] = {tokens: [] for tokens in TOKENS}
    for _ in range(rounds):
        for tokens in TOKENS:
            taken[tokens].append(step.seconds(tokens))
    rows = []
    for tokens, times in taken.items():
        rows.append(
            {
                "width": width,
                "tokens": tokens,
                **{f"{n}_ms": _ms([t[n] for t in times]) for n in times[0]},
                "share_measured": _rounded([t["muon"] / sum(t.values()) for t in times]),
                "share_of_flops": round(share_of_flops(step.model, ns_steps, tokens), 5),
            }
        )
    return rows


def _ms(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 2)


def _rounded(shares: list[float]) -> float:
    return round(statistics.median(shares), 5)


def crossings(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Tokens per step from which the share is under the limit: by time, and by operations."""
    found: list[dict[str, float]] = []
    for width in WIDTHS:
        own = [row for row in rows if row["width"] == width]
        longest = own[-1]
        model = meta_model(sized(width).model)
        ns_steps = sized(width).optim.muon.ns_steps
        found.append(
            {
                "width": width,
                "tokens_measured": tokens_for(
                    LIMIT,
                    statistics.median(row["muon_ms"] for row in own),
                    statistics.median(row["adamw_ms"] for row in own),
                    longest["forward_backward_ms"] / longest["tokens"],
                ),
                "tokens_of_flops": tokens_for(
                    LIMIT, muon_flops(model, ns_steps), 0.0, model.flops_per_token()
                ),
            }
        )
    return found


def modded() -> dict[str, float]:
    """The operations of `modded`, at its own size."""
    config = get_recipe("modded")
    model, ns_steps = meta_model(config.model), config.optim.muon.ns_steps
    tokens = config.train.batch_tokens
    return {
        "tokens": tokens,
        "muon_flops": muon_flops(model, ns_steps),
        "flops_per_token": model.flops_per_token(),
        "share_of_flops": round(share_of_flops(model, ns_steps, tokens), 5),
        "tokens_of_flops": tokens_for(
            LIMIT, muon_flops(model, ns_steps), 0.0, model.flops_per_token()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began, load = time.perf_counter(), os.getloadavg()[0]
    rows = []
    for width in WIDTHS:
        rows += measure(width, options.rounds)
        print(f"width {width} after {time.perf_counter() - began:.0f} s", flush=True)
    print_table(
        ("width", "tokens", "forward, backward ms", "Muon ms", "share", "share of FLOPs"),
        [
            (
                row["width"],
                f"{row['tokens']:,}",
                f"{row['forward_backward_ms']:,.0f}",
                f"{row['muon_ms']:.1f}",
                f"{row['share_measured']:.1%}",
                f"{row['share_of_flops']:.1%}",
            )
            for row in rows
        ],
    )
    under = crossings(rows)
    for row in under:
        print(
            f"width {row['width']}: under {LIMIT:.0%} from {row['tokens_measured']:,} tokens a "
            f"step as measured, {row['tokens_of_flops']:,} by operations"
        )
    own = modded()
    print(
        f"modded: {own['share_of_flops']:.2%} of the operations at its {own['tokens']:,} tokens a "
        f"step, under {LIMIT:.0%} from {own['tokens_of_flops']:,}"
    )
    figures = {
        "rounds": options.rounds,
        "compiled": False,
        "layers": 4,
        "context": 256,
        "vocabulary": 2048,
        "ns_dtype": "float32",
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "load_average_before": round(load, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
        "seconds": round(time.perf_counter() - began),
        "steps": rows,
        "under_2_percent": under,
        "modded": own,
    }
    print(f"written to {write_result('overhead-cpu', figures, CPU)}")


if __name__ == "__main__":
    main()

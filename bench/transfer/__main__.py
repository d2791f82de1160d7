"""Does the best learning rate carry over? `python -m bench.transfer --data DIR`.

For Muon's scales and for AdamW (bench/transfer/plan.py) the best learning rate of the block
matrices is searched at five widths and three depths, everything else alike: factors of two with the
first seed, all seeds at the best and one to either side, and a parabola through these. The slope of
its lowest points over the sizes is how the rate has to follow; `carried` is what it costs the
largest size to train with the best rate of the smallest.

Interrupted, the same command goes on; with --minutes it ends in time, at the next run. It writes
docs/results/transfer.json and transfer.png of what is there, which docs/scaling.md tells of.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.results import RESULTS, print_table, write_result
from bench.trainings import OutOfTimeError, ending_in_a_line, train_all
from bench.transfer.exponent import fit_exponent
from bench.transfer.figure import draw_transfer
from bench.transfer.plan import DEPTHS, RULES, WIDTHS, Rule, Size
from bench.transfer.search import Curve, search
from quintic.sweep.plan import SEED, PlannedRun

SERIES: dict[str, tuple[Size, ...]] = {"width": WIDTHS, "layers": DEPTHS}

Curves = dict[tuple[Rule, Size], Curve]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a dataset with a small vocabulary")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end in time")
    parser.add_argument("--largest", type=int, default=max(size.width for size in WIDTHS))
    options = parser.parse_args(arguments)
    seeds = range(1, options.seeds + 1)
    curves: Curves = {}
    end = time.monotonic() + 60 * options.minutes
    sizes = sorted({*WIDTHS, *DEPTHS}, key=lambda size: (size.layers * size.width**2, size.layers))

    def train(rule: Rule, size: Size, power: int, seed: int) -> float:
        name = f"{rule.name}-{size.layers}x{size.width}-{power:+}-seed{seed}"
        run = PlannedRun(name, {}, size.config(rule, power, options.data).override({SEED: seed}))
        return train_all([run], options.out, end=end)[name] or math.inf

    with ending_in_a_line("bench.transfer"):
        try:
            for size in (size for size in sizes if size.width <= options.largest):
                for rule in RULES:
                    curve = curves[rule, size] = Curve()
                    search(partial(train, rule, size), _begin(curves, rule, size), seeds, curve)
                _write(curves, seeds, options.results)
        except OutOfTimeError:
            print("the time is over; the same command goes on")
    _write(curves, seeds, options.results)


def _begin(curves: Curves, rule: Rule, size: Size) -> int:
    """Return the best power of the nearest size that has been searched."""
    done = [
        (abs(math.log2(other.width / size.width)) + abs(math.log2(other.layers / size.layers)), c)
        for (by, other), c in curves.items()
        if by == rule and c.losses
    ]
    return min(done, key=lambda found: found[0])[1].best(1) if done else 0


def _write(curves: Curves, seeds: Sequence[int], results: Path) -> None:
    """Write and print what is there."""
    found = []
    for (rule, size), curve in curves.items():
        optimum = curve.optimum(seeds)
        found.append(
            {
                "rule": rule.name,
                **asdict(size),
                "best": None if optimum is None else rule.start * 2 ** optimum[0],
                "error_octaves": None if optimum is None else optimum[1],
                "losses": {
                    str(rule.rate(power)): {
                        seed: loss if math.isfinite(loss) else None for seed, loss in by.items()
                    }
                    for power, by in sorted(curve.losses.items())
                },
            }
        )
    laws = [
        law
        for along, sizes in SERIES.items()
        for rule in RULES
        if (law := _law(curves, seeds, rule, along, sizes)) is not None
    ]
    rows = {"seeds": len(seeds), "curves": found, "laws": laws}
    write_result("transfer", rows, torch.device("cpu"), folder=results)
    draw_transfer(curves, seeds, SERIES, results / "transfer.png")
    print_table(
        ("rule", "layers", "width", "best rate", "± octaves"),
        [
            (
                one["rule"],
                one["layers"],
                one["width"],
                "" if one["best"] is None else f"{one['best']:.3g}",
                "" if one["error_octaves"] is None else f"{one['error_octaves']:.2f}",
            )
            for one in found
        ],
    )
    print_table(
        ("rule", "along", "sizes", "exponent", "95% interval", "carried, nats"),
        [
            (
                law["rule"],
                law["along"],
                law["sizes"],
                f"{law['value']:+.2f}",
                f"{law['low']:+.2f} to {law['high']:+.2f}",
                "" if law["carried"] is None else f"{law['carried']:+.4f}",
            )
            for law in laws
        ],
    )


def _law(
    curves: Mapping[tuple[Rule, Size], Curve],
    seeds: Sequence[int],
    rule: Rule,
    along: str,
    sizes: Sequence[Size],
) -> dict[str, Any] | None:
    """Return how the best rate of a rule follows a size; None with fewer than three optima."""
    best = {
        size: optimum[0]
        for size in sizes
        if (curve := curves.get((rule, size))) and (optimum := curve.optimum(seeds))
    }
    if len(best) < 3:
        return None
    exponent = fit_exponent([getattr(size, along) for size in best], list(best.values()))
    smallest, largest = next(iter(best)), list(best)[-1]
    there = curves[rule, largest]
    own, other = (there.at(best[size], seeds) for size in (largest, smallest))
    carried = None if own is None or other is None else other - own
    return {"rule": rule.name, "along": along, **asdict(exponent), "carried": carried}


if __name__ == "__main__":
    main()

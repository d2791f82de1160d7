"""quintic scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from quintic.cli.options import Scale
from quintic.cli.output_file import check_result_file
from quintic.config import Config
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.files import write_json
from quintic.recipes import get_recipe
from quintic.scale.conclusions import conclusions
from quintic.scale.csv_file import (
    COST_LEAST,
    COST_MOST,
    FEWEST,
    MOST,
    check_size,
    read_csv,
)
from quintic.scale.figure import draw_scaling
from quintic.scale.law import FLOPS_PER_PARAMETER
from quintic.scale.observations import Count, Observations
from quintic.scale.page import write_page
from quintic.scale.scaling import Scaling, Target, scale
from quintic.scale.table import tables

FEWEST_DRAWS = 200


def _write_json(scaling: Scaling, path: Path) -> None:
    write_json(path, {**scaling.to_dict(), "evidence": list(conclusions(scaling))})


WRITERS: dict[str, Callable[[Scaling, Path], None]] = {
    ".png": draw_scaling,
    ".html": write_page,
    ".json": _write_json,
}
"""Writer of `--out` by the end of the file's name."""


def run(command: Scale, _arguments: Sequence[str]) -> None:
    """Print tables and conclusions, and write what `--out` asks for."""
    if command.out is not None:
        check_result_file(command.out, "quintic scale", "fit of a law")
    if command.draws < FEWEST_DRAWS:
        raise QuinticError(
            f"--draws is {command.draws}: it must be at least {FEWEST_DRAWS}, since the ends of "
            "the intervals are those of a few draws"
        )
    if command.seed < 0:
        raise QuinticError(f"--seed is {command.seed}: it must be 0 or more")
    budgets, sizes = list(_budgets(command)), list(_sizes(command))
    recipes = [(name, get_recipe(name)) for name in command.predict_config]
    observations, notes = _read(command.runs)
    observations = observations.without_highest(command.drop_highest_loss)
    count: Count | None = None if command.count == "auto" else command.count
    counted_so = count or observations.counts[0]
    targets = [Target(f"N,D = {name}", {counted_so: n}, d, c) for name, n, d, c in sizes]
    targets += _configured(command.runs, recipes, observations)
    scaling = scale(
        observations,
        law=command.law,
        count=count,
        targets=targets,
        budgets=budgets,
        draws=command.draws,
        seed=command.seed,
        notes=notes,
    )
    console = Console()
    for title, table in tables(scaling):
        console.table(table, title)
    for note in scaling.notes:
        console.line(f"note: {note}")
    for conclusion in conclusions(scaling):
        console.line(f"- {conclusion}")
    if command.out is not None:
        WRITERS[command.out.suffix](scaling, command.out)
        console.line(f"written {command.out}")


def _read(paths: Sequence[Path]) -> tuple[Observations, list[str]]:
    """Return the runs of a CSV, or those in folders; raises `QuinticError` for both at once."""
    if not paths:
        raise QuinticError("scale needs runs: name at least one folder of each, or a CSV")
    files = [path for path in paths if path.suffix.lower() == ".csv"]
    if not files:
        from quintic.scale.runs import read_folders  # imports PyTorch, which a CSV does without

        return read_folders(paths)
    if len(paths) > 1:
        raise QuinticError(
            f"{files[0]} is one of {len(paths)} names: a CSV stands alone; put all runs into it"
        )
    return read_csv(files[0]), []


def _sizes(command: Scale) -> Iterator[tuple[str, float, float, float | None]]:
    """Yield what `--predict` gives: the text of N and D, both, and C where it is there; raises
    `QuinticError` where one is no run."""
    for text in command.predict:
        try:
            n, d, *c = (float(part) for part in text.split(","))
        except ValueError:
            n, d, c = math.nan, math.nan, []
        if len(c) > 1 or not all(0 < number < math.inf for number in (n, d, *c)):
            raise QuinticError(
                f"--predict is {text!r}: it must be parameters and tokens, two positive numbers "
                "with a comma between them, such as 124e6,2.5e9, or with FLOPs as a third"
            )
        check_size(f"--predict {text}", n, d, {"parameters": "N", "tokens": "D"}, "number")
        cost = c[0] / (FLOPS_PER_PARAMETER * n * d) if c else 1.0
        # One model may be further from 6 N D than the middle of many.
        if not COST_LEAST / 10 <= cost <= COST_MOST * 10:
            raise QuinticError(
                f"--predict is {text!r}: its FLOPs are {cost:.3g} times 6 N D, which no model "
                "takes: correct them, or leave them out"
            )
        yield ",".join(text.split(",")[:2]), n, d, c[0] if c else None


def _configured(
    runs: Sequence[Path], recipes: Sequence[tuple[str, Config]], observations: Observations
) -> Iterator[Target]:
    """Yield the runs of recipes; raises `QuinticError` where their loss is not that of the runs'
    law."""
    if not recipes:
        return
    from quintic.run_dir import read_config
    from quintic.scale.runs import count_parameters

    if "given" in observations.counts:
        raise QuinticError(
            "--predict-config counts parameters in our ways, and a CSV in its own: give "
            "--predict N,D"
        )
    # The law is that of the runs' text, cut as theirs is and read in contexts as long as theirs.
    trained = read_config(runs[0]).model
    for name, config in recipes:
        if config.model.context != trained.context:
            raise QuinticError(
                f"--predict-config {name} has model.context {config.model.context:,}, and the runs "
                f"{trained.context:,}, with which a loss is another: name a recipe file with that "
                "context, or give --predict N,D"
            )
        config = config.override({"model.vocab_size": trained.vocab_size})
        counts, flops_per_token = count_parameters(config)
        yield Target(name, counts, config.tokens, flops_per_token * config.tokens)


def _budgets(command: Scale) -> Iterator[float]:
    """Yield the budgets in FLOPs; raises `QuinticError` where one is none."""
    for option, values in (("--budget", command.budget), ("--hours", command.hours)):
        for value in values:
            if not 0 < value < math.inf:
                raise QuinticError(f"{option} is {value}: it must be a positive number")
    yield from (_checked(f"--budget {budget:g}", budget) for budget in command.budget)
    speed = command.flop_per_s
    if bool(command.hours) != (speed is not None):
        raise QuinticError(
            "--hours and --flop-per-s make a budget together: give both or neither (an H100 that "
            "trains at 40% of its bfloat16 peak does 4e14 FLOP/s)"
        )
    if speed is not None:
        if not 0 < speed < math.inf:
            raise QuinticError(f"--flop-per-s is {speed}: it must be a positive number")
        for hours in command.hours:
            yield _checked(f"--hours {hours:g} at --flop-per-s {speed:g}", 3600 * hours * speed)


def _checked(option: str, flops: float) -> float:
    """Return a budget; raises `QuinticError` for one that no run has."""
    least, most = (FLOPS_PER_PARAMETER * size**2 for size in (FEWEST, MOST))
    if not least <= flops <= most:
        raise QuinticError(
            f"{option} makes {flops:g} FLOPs, {'less' if flops < least else 'more'} than any run "
            f"takes ({least:g} to {most:g}): is it in another unit? Write 1e18 for 10^18 FLOPs"
        )
    return flops

"""A CSV of runs, whoever trained them: sizes, tokens or FLOPs, and losses."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from quintic.errors import QuinticError, counted, one_line
from quintic.scale.observations import Count, Observation, Observations, check_numbers

FLOPS_PER_PARAMETER = 6.0
"""FLOPs to train one parameter on one token, forward and backward, where a file does not say them
(Kaplan et al., https://arxiv.org/abs/2001.08361, section 2.1)."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "parameters": ("parameters", "params", "n", "model size", "size"),
    "blocks": ("non-embedding parameters", "non-embedding params", "blocks"),
    "tokens": ("tokens", "d", "training tokens"),
    "flops": ("flops", "flop", "c", "training flops", "training flop", "compute"),
    "loss": ("loss", "val loss", "validation loss", "final loss"),
    "seed": ("seed",),
}
"""Names of columns that are known, by what they hold; capitals, spaces, - and _ do not matter."""

LARGEST_BYTES = 1 << 26


def read_csv(path: Path) -> Observations:
    """Return the runs of a file, one a row.

    It needs a column of losses and two of parameters, tokens and FLOPs; the third follows from
    FLOPs = 6 x parameters x tokens. Rows of equal parameters, tokens and FLOPs are seeds of one
    run. Raises `QuinticError`, with the row, where a column is missing, a number is not positive,
    or a row is there twice.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise QuinticError(
                f"{path} has {path.stat().st_size:,} bytes, more than any list of runs: name a CSV "
                "with a row for each run"
            )
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if any(map(str.strip, row))] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise QuinticError(
            f"{path} is no CSV ({one_line(error)}): save it as text with commas between the columns"
        ) from error
    places = _places(path, header)
    runs: list[Observation] = []
    groups: dict[tuple[float, ...], int] = {}
    seen: dict[tuple[object, ...], int] = {}
    for number, row in enumerate(rows, start=2):
        given = {
            name: _number(path, number, header[place], row[place] if place < len(row) else "")
            for name, place in places.items()
        }
        n, d, c = (given.get(name) for name in ("parameters", "tokens", "flops"))
        if n is None:
            assert c is not None and d is not None
            n = c / (FLOPS_PER_PARAMETER * d)
        if d is None:
            assert c is not None
            d = c / (FLOPS_PER_PARAMETER * n)
        c = FLOPS_PER_PARAMETER * n * d if c is None else c
        counts: dict[Count, float] = {"given": n}
        if "blocks" in given:
            if given["blocks"] > n:
                raise QuinticError(
                    f"{path} row {number}: {header[places['blocks']]} is {given['blocks']:g}, more "
                    f"than all parameters, {n:g}: give what is left of these without embeddings"
                )
            counts = {"all": n, "blocks": given["blocks"]}
        seed = int(given["seed"]) if "seed" in given else None
        same = (n, d, c, given["loss"] if seed is None else seed)
        if same in seen:
            raise QuinticError(
                f"{path} row {number} repeats row {seen[same]}, of the same size, tokens and "
                f"{'loss' if seed is None else 'seed'}: leave one out, since a copy is no further "
                "evidence"
            )
        seen[same] = number
        group = groups.setdefault((n, d, c), len(groups))
        label = f"{path} row {number}"
        runs.append(check_numbers(Observation(label, counts, d, c, given["loss"], group, seed)))
    if not runs:
        raise QuinticError(f"{path} has no row below its header: write one for each run")
    return Observations(runs, f"{path}, {counted(len(runs), 'run')}")


def _places(path: Path, header: list[str]) -> dict[str, int]:
    """Return where each known column stands; raises `QuinticError` where too few are there."""

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]+", "", name).lower()

    names = [plain(name) for name in header]
    places: dict[str, int] = {}
    for what, known in COLUMNS.items():
        found = [i for i, name in enumerate(names) if name in {plain(k) for k in known}]
        if len(found) > 1:
            raise QuinticError(
                f"{path} has two columns of {what}, {header[found[0]]!r} and {header[found[1]]!r}: "
                "rename one"
            )
        if found:
            places[what] = found[0]
    sizes = [name for name in ("parameters", "tokens", "flops") if name in places]
    if "loss" not in places or len(sizes) < 2:
        missing = "loss" if "loss" not in places else "two of parameters, tokens and FLOPs"
        wanted = ["loss"] if "loss" not in places else ["parameters", "tokens", "flops"]
        spelled = "; ".join(f"{name}: {', '.join(COLUMNS[name])}" for name in wanted)
        raise QuinticError(
            f"{path} has no column of {missing}, and has {', '.join(header) or 'none'}: name the "
            f"columns so ({spelled})"
        )
    return places


def _number(path: Path, row: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise QuinticError(
            f"{path} row {row}: {column} is {text[:40]!r}, which is no number: repair or remove "
            "the row"
        ) from None

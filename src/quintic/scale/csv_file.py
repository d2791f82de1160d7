"""A CSV of runs, whoever trained them: sizes, tokens or FLOPs, and losses."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quintic.errors import QuinticError, counted, one_line
from quintic.scale.law import FLOPS_PER_PARAMETER, middle_power
from quintic.scale.observations import Count, Observation, Observations, check_numbers

COLUMNS: dict[str, tuple[str, ...]] = {
    "parameters": ("parameters", "params", "n", "model size", "size"),
    "blocks": ("non-embedding parameters", "non-embedding params", "blocks"),
    "tokens": ("tokens", "d", "training tokens"),
    "flops": ("flops", "flop", "c", "training flops", "training flop", "compute"),
    "loss": ("loss", "val loss", "validation loss", "final loss"),
    "seed": ("seed",),
}
"""Names of columns that are known, by what they hold; capitals, spaces, - and _ do not matter."""

SEPARATORS = ",;\t"

FEWEST = 1000.0
"""Parameters, and tokens, under which a number is one of thousands or more."""
MOST = 1e18
"""Parameters, and tokens, beyond all that will be trained: a thousand times what is written."""
FEWEST_RATIO, MOST_RATIO = 0.01, 1e6
"""Tokens a parameter beyond which one of the two is in another unit."""
COST_APART = 3.0
"""Factor between the FLOPs a token of a row and those that the others have at its size, from which
on it is refused."""
COST_LEAST, COST_MOST = 1 / 30, 30.0
"""FLOPs over 6 N D, in the middle of the rows, beyond which they are in another unit: a forward
pass alone has a third, and a small model whose N leaves out a large head twenty times as many."""

LARGEST_BYTES = 1 << 26


def read_csv(path: Path) -> Observations:
    """Return the runs of a file, one a row.

    It needs a column of losses and two of parameters, tokens and FLOPs; the third follows from
    FLOPs = 6 x parameters x tokens. Rows of equal parameters, tokens and FLOPs are seeds of one
    run. Columns are apart by commas, semicolons or tabs. Raises `QuinticError` where a column is
    missing, a number is not positive or seems to be in another unit, or a row is there twice, with
    the row as a spreadsheet counts it, empty ones too.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise QuinticError(
                f"{path} has {path.stat().st_size:,} bytes, more than any list of runs: name a CSV "
                "with a row for each run"
            )
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(file)
        table = enumerate(csv.reader(lines, delimiter=_separator(lines)), start=1)
        filled = [(number, row) for number, row in table if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise QuinticError(
            f"{path} is no CSV ({one_line(error)}): save it as text with commas between the columns"
        ) from error
    if not filled:
        raise QuinticError(
            f"{path} is empty: write a header, such as parameters,tokens,loss, and a row for each "
            "run"
        )
    (_, header), *rows = filled
    places = _places(path, header)
    runs: list[Observation] = []
    groups: dict[tuple[float, ...], int] = {}
    seen: dict[tuple[object, ...], int] = {}
    for number, row in rows:
        if any(map(str.strip, row[len(header) :])):
            raise QuinticError(
                f"{path} row {number} has {len(row)} cells and the first row names "
                f"{len(header)} columns, so which is which is open: write decimals with a point, "
                "thousands without a comma, and text with commas in quotes"
            )
        given = {
            name: _number(path, number, header[place], row[place] if place < len(row) else "")
            for name, place in places.items()
            if name != "seed"
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
        place = places.get("seed", len(row))
        seed = _seed(path, number, header[place], row[place]) if place < len(row) else None
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
    _check_units(runs, {name: header[place] for name, place in places.items()})
    return Observations(runs, f"{path}, {counted(len(runs), 'run')}")


def _check_units(runs: list[Observation], columns: dict[str, str]) -> None:
    """Raise `QuinticError` for the first row with a number that no run has, and for FLOPs that are
    far from those of the other rows at its size; `columns` are the names of those in the file."""
    for run in runs:
        check_size(run.label, next(iter(run.parameters.values())), run.tokens, columns, "column")
    if not columns.keys() >= {"parameters", "tokens", "flops"}:
        return
    way_out = (
        f"correct it, or leave the column {columns['flops']} out, and FLOPs = 6 x parameters x "
        "tokens is taken"
    )
    n_R = np.array([next(iter(run.parameters.values())) for run in runs])
    per_token_R = np.array([run.flops / run.tokens for run in runs])
    middle = float(np.median(per_token_R / (FLOPS_PER_PARAMETER * n_R)))
    if not COST_LEAST <= middle <= COST_MOST:
        raise QuinticError(
            f"{runs[0].label} and others: {columns['flops']} is {middle:.3g} times 6 x parameters "
            f"x tokens in the middle of the rows; is it in another unit? Then {way_out}"
        )
    off_R = per_token_R / middle_power(n_R, per_token_R)
    worst = int(np.abs(np.log(off_R)).argmax())
    if not 1 / COST_APART <= off_R[worst] <= COST_APART:
        raise QuinticError(
            f"{runs[worst].label}: {columns['flops']} is {runs[worst].flops:g}, {off_R[worst]:.3g} "
            f"times what the other rows have for this size and as many tokens: {way_out}"
        )


def check_size(label: str, n: float, d: float, columns: Mapping[str, str], one: str) -> None:
    """Raise `QuinticError` for N parameters on D tokens that no run has, of which one is likely in
    another unit; `columns` are the names of those that were given, and `one` says what each is."""
    way_out = f"is a {one} in thousands, millions or billions? Write 124e6 for 124 million"
    for name, value in (("parameters", n), ("tokens", d)):
        given = columns.get(name, "what FLOPs = 6 N D leaves")
        if not FEWEST <= value <= MOST:
            than = "fewer" if value < FEWEST else "more"
            raise QuinticError(
                f"{label}: {value:g} {name} ({given}) are {than} than any run has: {way_out}"
            )
    if not FEWEST_RATIO <= d / n <= MOST_RATIO:
        raise QuinticError(
            f"{label}: {d:g} tokens for {n:g} parameters are {d / n:.2g} a parameter, which no run "
            f"has ({FEWEST_RATIO:g} to {MOST_RATIO:,.0f}): {way_out}"
        )


def _plain(name: str) -> str:
    """Return a column's name without what does not matter in it."""
    return re.sub(r"[\s_-]+", "", name).lower()


def _separator(lines: list[str]) -> str:
    """Return what stands between the columns: that which shows most known names in the header."""
    header = next((line for line in lines if line.strip()), "")
    known = {_plain(name) for names in COLUMNS.values() for name in names}

    def names_shown(separator: str) -> int:
        return sum(_plain(cell.strip('"')) in known for cell in header.strip().split(separator))

    return max(SEPARATORS, key=names_shown)


def _places(path: Path, header: list[str]) -> dict[str, int]:
    """Return where each known column stands; raises `QuinticError` where too few are there."""
    names = [_plain(name) for name in header]
    places: dict[str, int] = {}
    for what, known in COLUMNS.items():
        found = [i for i, name in enumerate(names) if name in {_plain(k) for k in known}]
        if len(found) > 1:
            raise QuinticError(
                f"{path} has two columns of {what}, {header[found[0]]!r} and {header[found[1]]!r}: "
                "rename one"
            )
        if found:
            places[what] = found[0]
    sizes = [name for name in ("parameters", "tokens", "flops") if name in places]
    if "loss" not in places or len(sizes) < 2:
        if "loss" not in places:
            missing, wanted = "no column of loss", ["loss"]
        else:
            known_sizes = f"{sizes[0]} alone" if sizes else "none"
            missing = f"{known_sizes} of parameters, tokens and FLOPs, of which a law needs two"
            wanted = ["parameters", "tokens", "flops"]
        spelled = "; ".join(f"{name}: {', '.join(COLUMNS[name])}" for name in wanted)
        raise QuinticError(
            f"{path} has {missing} (its columns are {', '.join(header)}): name the columns so "
            f"({spelled})"
        )
    return places


def _number(path: Path, row: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pointed = text.replace(",", ".")
        way_out = f"write {pointed}" if _is_number(pointed) else "repair or remove the row"
        raise QuinticError(
            f"{path} row {row}: {column} is {text[:40]!r}, which is no number: {way_out}"
        ) from None


def _seed(path: Path, row: int, column: str, text: str) -> int | None:
    """Return a seed, which pandas writes as 1.0 where others are missing; None where it is."""
    if not text.strip():
        return None
    if found := re.fullmatch(r"\s*(-?[0-9]{1,18})(?:\.0*)?\s*", text):
        return int(found[1])
    raise QuinticError(
        f"{path} row {row}: {column} is {text[:40]!r}, which is no seed: write a whole number, or "
        "nothing where it is not known"
    )


def _is_number(text: str) -> bool:
    """Return whether a text is a number with digits, as of a decimal comma that was replaced."""
    return re.fullmatch(r"\s*[0-9]+\.[0-9]+\s*", text) is not None

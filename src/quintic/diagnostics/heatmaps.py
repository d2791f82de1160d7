"""A run's diagnostics as heat maps over matrices, layers or heads and steps, for pages/heatmap.js.

Needs no PyTorch: `quintic watch` shows them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintic.diagnostics.record import DIAGNOSTICS, DiagnosticsRecord
from quintic.errors import QuinticError
from quintic.metrics_file import read_records

COLUMNS = 200
"""Of a map, at most; of a longer run each stands for several records and shows the newest."""
HeatMaps = dict[str, Any]
"""`steps`, one for each column, and `maps`: of each quantity its texts, names of rows and values by
row and column, null where nothing was measured."""


def read_heat_maps(folder: Path) -> HeatMaps:
    """Return the heat maps of the run in a folder; no steps where it has no diagnostics.

    Raises `QuinticError` where a line is not a record of them.
    """
    return heat_maps(read_records(folder / DIAGNOSTICS))


def heat_maps(records: Sequence[DiagnosticsRecord]) -> HeatMaps:
    """Return a heat map of every quantity that has a value.

    Raises `QuinticError` where a record has another form.
    """
    each = max(1, -(-len(records) // COLUMNS))
    # Counted from the end, so that the newest column is as full as the others.
    chosen = [*records[::-1][::each]][::-1]
    try:
        maps = [found for quantity in QUANTITIES if (found := quantity.over(chosen))]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise QuinticError(
            f"{DIAGNOSTICS} has records that this version of quintic does not know: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {"steps": [record["step"] for record in chosen], "maps": maps}


@dataclass(frozen=True)
class Quantity:
    """A quantity that is drawn, and where a record has it."""

    label: str
    about: str
    """What it says, in a sentence; `{low}` and `{high}` stand for the band."""
    values: Callable[[DiagnosticsRecord], dict[str, float | None]]
    """The values of a record by the names of the rows."""
    unit: str = ""
    logarithmic: bool = False
    """True where ratios are what one wants to see."""

    def over(self, records: Sequence[DiagnosticsRecord]) -> dict[str, Any] | None:
        """Return its map; None where nothing of it was measured."""
        columns = [self.values(record) for record in records]
        rows = list(dict.fromkeys(row for column in columns for row in column))
        factor = 100 if self.unit == "%" else 1
        values = [[_rounded(column.get(row), factor) for column in columns] for row in rows]
        if all(value is None for row in values for value in row):
            return None
        low, high = records[-1]["band"] or (math.nan, math.nan)
        return {
            "label": self.label,
            "about": self.about.format(low=f"{low:.2f}", high=f"{high:.2f}"),
            "unit": self.unit,
            "logarithmic": self.logarithmic,
            "rows": rows,
            "values": values,
        }


def _rounded(value: float | None, factor: int) -> float | None:
    """Return a value to five digits, None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{factor * value:.5g}")


def _of_matrices(value: Callable[[dict[str, Any]], Any]) -> Callable[[DiagnosticsRecord], Any]:
    """Return what gives a value of each matrix; a row is named layer.role."""
    return lambda record: {
        name.removeprefix("layers.").removesuffix(".weight"): value(facts)
        for name, facts in record["matrices"].items()
    }


def _of_layers(name: str) -> Callable[[DiagnosticsRecord], Any]:
    return lambda record: {
        f"layer {number}": facts[name] for number, facts in enumerate(record["layers"])
    }


def _of_heads(record: DiagnosticsRecord) -> dict[str, float | None]:
    return {
        f"layer {number}, head {head}": logit
        for number, facts in enumerate(record["layers"])
        for head, logit in enumerate(facts["attention_logit_max"])
    }


def _median_of_greatest(facts: dict[str, Any]) -> float | None:
    _, _, median, _, greatest = facts["momentum"]
    return None if median is None or not greatest else median / greatest


QUANTITIES = (
    Quantity(
        "momentum: median singular value / greatest",
        "Of what Newton-Schulz gets, with AdamW of its first moment: 1 where all directions are "
        "alike, near 0 where few hold most of it.",
        _of_matrices(_median_of_greatest),
        logarithmic=True,
    ),
    Quantity(
        "update: median singular value",
        "Of what Newton-Schulz, or another optimizer, made of the momentum, before its scale and "
        "the learning rate.",
        _of_matrices(lambda facts: facts["update"][2]),
    ),
    Quantity(
        "update: singular values below the band",
        "Directions with so little gradient that Newton-Schulz has not lifted them into its band, "
        "{low} to {high}.",
        _of_matrices(lambda facts: facts["below_band"]),
        unit="%",
    ),
    Quantity(
        "update-to-weight ratio",
        "Norm of the change of a step, learning rate and weight decay included, over that of the "
        "weight.",
        _of_matrices(lambda facts: facts["update_to_weight"]),
        logarithmic=True,
    ),
    Quantity(
        "weight: stable rank",
        "How many directions the weight has that count: |A|_F^2 / |A|_2^2.",
        _of_matrices(lambda facts: facts["weight_stable_rank"]),
        unit="directions",
    ),
    Quantity(
        "gradient: stable rank",
        "How many directions the gradient has that count: |A|_F^2 / |A|_2^2.",
        _of_matrices(lambda facts: facts["gradient_stable_rank"]),
        unit="directions",
    ),
    Quantity(
        "attention: largest logit of a head",
        "Of about 1,024 tokens, the largest q k / sqrt(K) among the positions that one attends to.",
        _of_heads,
        unit="nats",
    ),
    Quantity(
        "residual stream: root mean square",
        "Of what leaves each layer.",
        _of_layers("residual_rms"),
        logarithmic=True,
    ),
    Quantity(
        "MLP: dead units",
        "Units of the squared ReLU that are zero for all of about 1,024 tokens.",
        _of_layers("dead_units"),
        unit="%",
    ),
)
"""In the order in which they are offered; the first is shown."""

"""Records as heat maps: which value stands where, what is missing, and how many columns."""

from typing import Any

import pytest

from quintic.diagnostics.heatmaps import heat_maps
from quintic.errors import QuinticError
from tests.diagnostics.records import diagnostics_record


def maps(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {found["label"]: found for found in heat_maps(records)["maps"]}


def test_every_quantity_stands_by_row_and_step() -> None:
    records = [diagnostics_record(step) for step in (0, 10, 20)]
    assert heat_maps(records)["steps"] == [0, 10, 20]
    found = {label: (each["rows"], each["values"]) for label, each in maps(records).items()}
    matrices, layers = ["0.up", "1.up"], ["layer 0", "layer 1"]
    heads = [f"layer {layer}, head {head}" for layer in range(2) for head in range(2)]
    assert found == {
        "momentum: median singular value / greatest": (
            matrices,
            [[None, 0.5, 0.25], [None, 0.25, 0.125]],
        ),
        "update: median singular value": (matrices, [[0.8, 0.81, 0.82]] * 2),
        "update: singular values below the band": (matrices, [[0.0] * 3, [12.5] * 3]),
        "update-to-weight ratio": (matrices, [[0.01, 0.00090909, 0.00047619]] * 2),
        "weight: stable rank": (matrices, [[30.0] * 3] * 2),
        "gradient: stable rank": (matrices, [[None, 2.5, 2.5]] * 2),
        "attention: largest logit of a head": (
            heads,
            [[1.0] * 3, [2.0, 12.0, 22.0], [2.0] * 3, [2.0, 12.0, 22.0]],
        ),
        "residual stream: root mean square": (layers, [[0.5] * 3] * 2),
        "MLP: dead units": (layers, [[0.0] * 3, [25.0] * 3]),
    }
    below = maps(records)["update: singular values below the band"]
    assert below["unit"] == "%"
    assert below["about"].endswith("its band, 0.68 to 1.20.")


def test_what_was_never_measured_has_no_map() -> None:
    record = diagnostics_record(10) | {"band": None}
    for facts in record["matrices"].values():
        facts |= {"momentum": [None] * 5, "below_band": None, "update_to_weight": float("inf")}
    for facts in record["layers"]:
        facts["dead_units"] = None
    assert set(maps([diagnostics_record(10)])) - set(maps([record])) == {
        "momentum: median singular value / greatest",
        "update: singular values below the band",
        "update-to-weight ratio",
        "MLP: dead units",
    }
    assert heat_maps([]) == {"steps": [], "maps": []}


def test_a_long_run_has_at_most_two_hundred_columns_each_the_newest_of_its_records() -> None:
    few = heat_maps([diagnostics_record(step) for step in range(200)])
    assert few["steps"] == [*range(200)]
    many = heat_maps([diagnostics_record(step) for step in range(402)])
    assert many["steps"] == [*range(2, 402, 3)]
    ratios = next(m for m in many["maps"] if m["label"] == "update-to-weight ratio")["values"]
    assert ratios[0][-1] == 2.4876e-05  # of step 401, the last
    assert [len(row) for row in ratios] == [134, 134]


@pytest.mark.parametrize(
    "changes", [{"matrices": None}, {"layers": [{}]}, {"matrices": {"a": {"momentum": "x"}}}]
)
def test_records_of_another_form_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(QuinticError, match="records that this version of quintic does not know"):
        heat_maps([diagnostics_record(0) | changes])

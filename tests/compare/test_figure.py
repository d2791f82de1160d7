"""The picture: every line in it, told apart by more than its colour, and nothing cut off."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from quintic.compare.comparison import compare
from quintic.compare.figure import draw_comparison, legend_text, loss_range
from quintic.compare.record import AXES, Axis
from quintic.figure import COLOURS, style
from tests.compare.records import group_of, record

MUON = group_of("muon", [3.20, 3.21, 3.19], settings={"optim.matrices": "muon"})
ADAMW = group_of("adamw", [3.40, 3.42, 3.41], settings={"optim.matrices": "adamw"})


def picture(path: Path) -> np.ndarray:
    pixels: np.ndarray = matplotlib.image.imread(path)
    return pixels[..., :3]


def share_of(pixels: np.ndarray, colour: str) -> float:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float((np.abs(pixels - rgb).max(-1) < 0.02).mean())


def test_both_groups_and_the_target_are_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    draw_comparison(compare([*ADAMW, *MUON], target=3.5), path)
    both = picture(path)
    assert both.shape == (690, 1080, 3)
    assert share_of(both, COLOURS[0]) > 0.001
    assert share_of(both, COLOURS[1]) > 0.001
    assert share_of(both, "#444444") > 0.0001
    draw_comparison(compare(ADAMW), path)
    one = picture(path)
    assert share_of(one, COLOURS[1]) == 0
    assert share_of(one, "#444444") < share_of(both, "#444444")
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_nothing_touches_the_edge_of_the_picture(tmp_path: Path) -> None:
    long = [
        record(f"a-run-with-quite-a-long-name-that-somebody-chose-{i}", [8, 4, 3 + i], settings=s)
        for i, s in enumerate({"x": x} for x in range(9))
    ]
    draw_comparison(compare(long, target=3.5), tmp_path / "figure.png")
    pixels = picture(tmp_path / "figure.png")
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert edge.min() == 1


def test_lines_differ_in_grey_and_to_colour_blind_eyes() -> None:
    looks = [style(i) for i in range(210)]
    assert len(set(looks)) == 210
    for one, other in pairwise(looks):
        # No two neighbours share a colour, a line style or a marker.
        assert one.colour != other.colour
        assert one.dashes != other.dashes
        assert one.marker != other.marker
    # The first five differ in line style and marker alone, without any colour.
    assert len({look.dashes for look in looks[:5]}) == 5
    assert len({look.marker for look in looks[:5]}) == 5


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_can_be_drawn(tmp_path: Path, axis: Axis) -> None:
    comparison = compare(group_of("muon", [3.20, 3.21], flops_per_token=1e6), axis=axis)
    draw_comparison(comparison, tmp_path / "figure.png")
    assert share_of(picture(tmp_path / "figure.png"), COLOURS[0]) > 0.001


def test_runs_without_a_loss_are_named_and_do_not_hinder_the_others(tmp_path: Path) -> None:
    lost = replace(MUON[0], diverged_at=0, validations=())
    comparison = compare([lost, *ADAMW, replace(record("begun", [8, 4]), steps_planned=999)])
    draw_comparison(comparison, tmp_path / "figure.png")
    assert share_of(picture(tmp_path / "figure.png"), COLOURS[1]) > 0.001
    assert [legend_text(result) for result in comparison.results] == [
        "muon-seed1: diverged",
        "adamw, 3 runs: 3.4100 ± 0.0058",
        "begun: unfinished",
    ]


@pytest.mark.parametrize("losses", [[8.0], [3.0, 3.0], [8.0, 7.9]])
def test_few_or_equal_losses_are_enough(tmp_path: Path, losses: list[float]) -> None:
    draw_comparison(compare([record("run", losses)]), tmp_path / "figure.png")
    assert picture(tmp_path / "figure.png").size > 0


@pytest.mark.parametrize("name", ["_hidden", "hid$_den", "hi$d$den", r"$\oops{$b", "hi\udcffden"])
def test_a_name_is_drawn_as_it_is(tmp_path: Path, name: str) -> None:
    # Between dollar signs matplotlib looks for a formula, and it leaves out what begins with _.
    def ink(label: str) -> float:
        draw_comparison(compare([record(label, [8, 3])]), tmp_path / "figure.png")
        legend = picture(tmp_path / "figure.png")[-45:]
        return float((legend < 0.5).sum())

    assert ink(name) > 0.9 * ink("hidden") > 100


def test_the_first_steps_do_not_flatten_what_follows() -> None:
    losses = [11.0, 6.0, *(4.0 - 0.02 * i for i in range(30))]
    comparison = compare([record("run", losses)], target=3.3)
    low, high = loss_range([comparison.results[0].curve], "tokens", 3.3)
    assert 3.2 < low < 3.3
    assert 3.9 < high < 4.5
    # The target is in sight although no loss comes near it.
    assert loss_range([comparison.results[0].curve], "tokens", 1.0)[0] < 1.0


def test_a_failed_drawing_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.png"
    draw_comparison(compare(MUON), path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="no space"):
        draw_comparison(compare(ADAMW), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]

"""sweep.png: a whole picture of any sweep, in which what matters can be seen."""

import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from quintic.cli.grid import parse_vary
from quintic.figure import style
from quintic.recipes import get_recipe
from quintic.sweep.figure import BEST_COLOUR, _axis, draw_sweep, loss_limits, smallest_gap
from quintic.sweep.plan import PlannedRun, make_plan
from quintic.sweep.record import Outcome
from quintic.sweep.summary import SweepSummary, summarize_sweep

LRS = "optim.muon.lr=0.001,0.004,0.016,0.064"
SCALES = "optim.muon.scale=aspect,rms,max_dim"


def outcome(run: PlannedRun) -> Outcome:
    lr = run.values.get("optim.muon.lr", 0.01)
    if lr > 0.06:
        return Outcome("diverged")
    return Outcome("finished", 3.4 + abs(np.log(lr / 0.004)) / 10 + 0.01 * (run.seed - 1337))


def sweep(*varied: str, draws: int | None = None, seeds: int = 2) -> SweepSummary:
    plan = make_plan(
        get_recipe("laptop-plain"), [parse_vary(text) for text in varied], seeds=seeds, draws=draws
    )
    return summarize_sweep(plan, {run.name: outcome(run) for run in plan.runs})


def drawn(found: SweepSummary, folder: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where labels do not fit
        draw_sweep(found, folder / "sweep.png")
    assert [path.name for path in folder.iterdir()] == ["sweep.png"]
    pixels: np.ndarray = matplotlib.image.imread(folder / "sweep.png")
    return pixels


def has(pixels: np.ndarray, colour: str) -> bool:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(pixels[..., :3] - rgb).max(-1) < 0.02).any())


def test_each_line_has_a_colour_of_its_own_and_the_best_is_ringed(tmp_path: Path) -> None:
    pixels = drawn(sweep(LRS, SCALES), tmp_path)
    for index in range(3):
        assert has(pixels, style(index).colour)
    assert has(pixels, BEST_COLOUR)


@pytest.mark.parametrize("high", ["0.003,1", "0.003,1e4", "0.003,1e12"])
def test_an_axis_of_many_decades_has_ticks(high: str) -> None:
    axes = Figure().add_subplot()
    found = sweep(f"optim.muon.lr=0.002,{high}", seeds=1)
    place = _axis(axes, "optim.muon.lr", [c.values["optim.muon.lr"] for c in found.ranked])
    axes.plot([place(c.values["optim.muon.lr"]) for c in found.ranked], [3, 3, 3])
    low, high_end = axes.get_xlim()
    assert 3 <= sum(low <= tick <= high_end for tick in axes.get_xticks()) <= 12


def test_a_panel_for_each_field(tmp_path: Path) -> None:
    one, two = drawn(sweep(LRS), tmp_path), drawn(sweep(LRS, SCALES), tmp_path)
    four = drawn(sweep(LRS, "optim.clip_norm=None,1", "model.layers=2", "model.heads=2"), tmp_path)
    assert two.shape[1] > one.shape[1]
    assert four.shape[0] > 1.7 * two.shape[0]


@pytest.mark.parametrize(
    ("varied", "draws", "seeds"),
    [
        ([LRS], None, 1),
        (["optim.muon.lr=0.064"], None, 2),  # all diverged: no loss, and no axis of losses
        (["model.layers=3"], None, 1),  # one value
        (["optim.muon.lr=0.001..0.1", "model.layers=2..12", SCALES], 20, 2),
        (["optim.muon.lr=0.0010,0.0011,0.0012,0.002,0.01"], None, 1),  # labels side by side
        ([LRS, "model.layers=1,2,3,4,5,6,7,8"], None, 1),  # more lines than styles
        (["optim.adamw.betas=0.9 0.95,0.8 0.95", "train.compile=true,false"], None, 2),
    ],
)
def test_any_sweep_can_be_drawn(
    varied: list[str], draws: int | None, seeds: int, tmp_path: Path
) -> None:
    assert drawn(sweep(*varied, draws=draws, seeds=seeds), tmp_path).size > 0


def test_a_loss_far_above_the_others_does_not_flatten_them() -> None:
    low, high = loss_limits([3.40, 3.42, 3.45, 3.50, 11.0]) or (0.0, 0.0)
    assert low < 3.40
    assert 3.5 < high < 4.5
    low, high = loss_limits([3.40, 3.42, 3.45]) or (0.0, 0.0)
    assert high > 3.45, "all of them where they are close"
    assert loss_limits([]) is None
    low, high = loss_limits([3.4]) or (0.0, 0.0)
    assert low < 3.4 < high


def test_labels_are_those_of_the_values_where_these_stand_apart() -> None:
    assert smallest_gap([0.0, 1.0, 10.0]) == pytest.approx(0.1)
    assert smallest_gap([5.0]) == 1.0

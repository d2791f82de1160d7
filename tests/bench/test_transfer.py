"""The search for a learning rate and the law over sizes, on losses that a formula gives."""

import math
from pathlib import Path

import pytest
from bench.transfer.exponent import fit_exponent
from bench.transfer.figure import draw_transfer
from bench.transfer.plan import RULES, Size
from bench.transfer.search import Curve, search

from quintic.optim.muon import update_scale

SEEDS = (1, 2, 3)


def _valley(lowest: float) -> Curve:
    """The curve that the search finds where the loss is a parabola, each seed a little aside."""
    curve, trained = Curve(), []

    def train(power: int, seed: int) -> float:
        trained.append((power, seed))
        return 3 + 0.1 * (power - lowest - 0.1 * (seed - 2)) ** 2

    search(train, 0, SEEDS, curve)
    assert len(trained) == len(set(trained))
    return curve


def test_search_walks_to_the_lowest_point_from_afar() -> None:
    curve = _valley(-3.3)
    assert curve.best(1) == -3
    assert {power: sorted(by) for power, by in curve.losses.items() if power <= -1} == {
        -1: [1],
        -2: [1, 2, 3],
        -3: [1, 2, 3],
        -4: [1, 2, 3],
        -5: [1],
    }
    optimum = curve.optimum(SEEDS)
    assert optimum is not None
    assert optimum[0] == pytest.approx(-3.3)
    assert optimum[1] == pytest.approx(0.1 / math.sqrt(3))


def test_each_seed_is_searched_down_to_its_own_lowest_point() -> None:
    curve, lowest = Curve(), {1: 0.2, 2: 1.9, 3: -0.7}
    search(lambda power, seed: 3 + (power - lowest[seed]) ** 2, 0, SEEDS, curve)
    assert {power for power, by in curve.losses.items() if 2 in by} == {-1, 0, 1, 2, 3}
    assert {power for power, by in curve.losses.items() if 3 in by} == {-2, -1, 0}
    optimum = curve.optimum(SEEDS)
    assert optimum is not None
    assert optimum[0] == pytest.approx(sum(lowest.values()) / 3)


def test_a_rate_that_diverges_is_the_worst() -> None:
    curve = Curve()
    search(lambda power, seed: math.inf if power > 1 else 3 - power / 10, 0, SEEDS, curve)
    assert curve.best(1) == 1
    assert curve.optimum(SEEDS) is None  # the parabola has no right side


def test_a_search_that_is_stopped_leaves_only_what_was_trained() -> None:
    curve = Curve()

    def train(power: int, seed: int) -> float:
        if power == 1:
            raise KeyboardInterrupt
        return 3.0 + power**2

    with pytest.raises(KeyboardInterrupt):
        search(train, 0, SEEDS, curve)
    assert curve.losses == {0: {1: 3.0}, -1: {1: 4.0}}


def test_loss_between_two_points_is_on_the_line() -> None:
    curve = Curve({0: {1: 3.0, 2: 3.2}, 1: {1: 4.0, 2: 4.2, 3: 9.0}})
    assert curve.at(0.25, SEEDS) == pytest.approx(3.35)
    assert curve.at(1, SEEDS) == pytest.approx((4.0 + 4.2 + 9.0) / 3)
    assert curve.at(1.5, SEEDS) is None


def test_exponent_is_that_of_the_law() -> None:
    sizes = [64, 128, 256, 512]
    exact = fit_exponent(sizes, [-0.5 * math.log2(size) + 2 for size in sizes])
    assert (exact.value, exact.low, exact.high) == pytest.approx((-0.5, -0.5, -0.5))
    # By hand: slopes and interval of (6, 0), (7, 1), (8, 0): slope 0, left over 2/3, t 12.706.
    bent = fit_exponent([64, 128, 256], [0, 1, 0])
    assert bent.value == pytest.approx(0)
    assert bent.high == pytest.approx(12.7062 * math.sqrt((2 / 3) / 2), rel=1e-4)


def test_rms_is_max_dim_with_another_rate() -> None:
    """So the bench does not train it."""
    for shape in ((64, 64), (256, 64), (64, 256), (1536, 384)):
        assert update_scale("rms", *shape) == pytest.approx(0.2 * update_scale("max_dim", *shape))


def test_figure_has_a_panel_for_each_rule(tmp_path: Path) -> None:
    size = Size(4, 64)
    curves = {(rule, size): _valley(0.4) for rule in RULES[:2]}
    curves[RULES[2], size] = Curve()  # nothing is trained yet
    draw_transfer(curves, SEEDS, {"width": [size], "layers": []}, tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").read_bytes().startswith(b"\x89PNG")

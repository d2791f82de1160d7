"""Curves of few points that still show what all of them would."""

import numpy as np
import pytest

from quintic.watch.curves import band_of, reduce_curve, rounded, within


def test_a_short_curve_is_as_it_is() -> None:
    curve = reduce_curve(np.arange(3.0), np.array([5.0, 4.0, 3.0], "f4"), 3)
    assert (curve.x.tolist(), curve.y.tolist()) == ([0, 1, 2], [5, 4, 3])


def test_a_long_curve_is_means_with_the_lowest_and_highest() -> None:
    x, y = np.arange(1000.0), np.ones(1000)
    y[501], y[999] = 9.0, np.nan
    curve = reduce_curve(x, y, 300)
    assert len(curve.x) == 250  # 4 each
    assert curve.x[:2].tolist() == [1.5, 5.5]
    assert curve.y[125] == 3.0  # of 500 to 503
    assert (curve.low[125], curve.high[125]) == (1.0, 9.0)
    assert curve.y[249] == 1.0  # without what is no number
    longer = reduce_curve(np.arange(1100.0), np.append(y, np.ones(100)), 300)
    assert longer.y[:249].tolist() == curve.y[:249].tolist()


def test_a_part_of_a_curve_has_its_neighbours() -> None:
    x, y = within(np.arange(10.0), np.arange(10.0), (3.5, 5.5))
    assert x.tolist() == [3, 4, 5, 6]
    assert within(x, y, None)[0] is x


def test_the_band_of_runs_is_where_they_have_come_to() -> None:
    one = reduce_curve(np.array([0.0, 10, 20]), np.array([4.0, 3, 2]), 10)
    other = reduce_curve(np.array([0.0, 5, 10, 15, 20, 25]), np.array([6.0, 6, 5, 5, 4, 4]), 10)
    band = band_of([one, other])
    assert band.x.tolist() == [0, 5, 10, 15, 20, 25]
    assert band.y.tolist() == [5, 4.75, 4, 3.75, 3, 4]
    assert band.low.tolist() == [4, 3.5, 3, 2.5, 2, 4]
    assert band.high.tolist() == [6, 6, 5, 5, 4, 4]


def test_numbers_are_sent_short() -> None:
    values = np.array([3.14159265, 0.000123456789, 123456789.0, -2.0, 0.0, np.nan, np.inf])
    assert rounded(values) == [3.1416, 0.00012346, 123460000, -2, 0, None, None]
    assert isinstance(rounded(np.array([4.0]))[0], int)
    assert rounded(np.array([3.1415926]), 3)[0] == pytest.approx(3.14, abs=0)

"""Learning rate and momentum at their corners, and what holds for every schedule."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintic.config import Config, OptimConfig, ScheduleConfig, TrainConfig
from quintic.optim.schedule import (
    cosine,
    lr_factor,
    momentum_at,
    scheduled,
    trapezoid,
    window_at,
)
from quintic.recipes import get_recipe


def test_modded_is_constant_and_then_falls_over_its_last_1450_steps() -> None:
    config = get_recipe("modded")
    assert lr_factor(config, 0) == 1
    assert lr_factor(config, 3649) == 1
    assert lr_factor(config, 3650) == 1  # (5100 - 3650) / 1450
    assert lr_factor(config, 3651) == 1449 / 1450
    assert lr_factor(config, 4375) == 0.5
    assert lr_factor(config, 5099) == 1 / 1450


def test_gpt2_warms_up_over_700_steps_and_follows_half_a_cosine_to_zero() -> None:
    config = get_recipe("gpt2")
    assert lr_factor(config, 0) == 1 / 700
    assert lr_factor(config, 349) == 0.5
    assert lr_factor(config, 699) == lr_factor(config, 700) == 1
    for step in (1_000, 9_000, 18_864):
        progress = (step - 700) / (18_865 - 700)
        expected = 0.5 * (1 + math.cos(math.pi * progress))
        assert lr_factor(config, step) == pytest.approx(expected, rel=1e-12)
    assert 0 < lr_factor(config, 18_864) < 1e-7


def test_trapezoid_written_out() -> None:
    factors = [trapezoid(step, steps=10, warmup=4, cooldown=3) for step in range(10)]
    assert factors == [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    for warmup, cooldown, expected in (
        (0, 0, [1, 1, 1]),
        (3, 0, [1 / 3, 2 / 3, 1]),
        (0, 3, [1, 2 / 3, 1 / 3]),
    ):
        factors = [trapezoid(step, steps=3, warmup=warmup, cooldown=cooldown) for step in range(3)]
        assert factors == expected


def test_the_cooldown_of_a_config_is_its_share_of_the_steps() -> None:
    schedule = ScheduleConfig(warmup_steps=2, cooldown_fraction=0.3)
    config = Config(optim=OptimConfig(schedule=schedule), train=TrainConfig(steps=10))
    assert config.cooldown_steps == 3
    assert [lr_factor(config, step) for step in range(10)] == [
        trapezoid(step, steps=10, warmup=2, cooldown=3) for step in range(10)
    ]
    cosine_config = replace(
        config, optim=OptimConfig(schedule=ScheduleConfig(kind="cosine", warmup_steps=9))
    )
    assert cosine_config.cooldown_steps == 0  # so a long warm-up fits
    assert lr_factor(cosine_config, 8) == 1


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, int, int]:
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    return steps, warmup, draw(st.integers(0, steps - warmup))


@given(schedules())
@settings(deadline=None)
def test_every_trapezoid_rises_stays_and_falls_within_0_and_1(
    schedule: tuple[int, int, int],
) -> None:
    steps, warmup, cooldown = schedule
    factors = [
        trapezoid(step, steps=steps, warmup=warmup, cooldown=cooldown) for step in range(steps)
    ]
    assert all(0 < factor <= 1 for factor in factors)
    rise, flat = factors[:warmup], factors[warmup : steps - cooldown]
    fall = factors[steps - cooldown :]
    assert rise == sorted(set(rise))
    assert rise[-1:] in ([], [1])
    assert all(factor == 1 for factor in flat)
    assert fall == sorted(set(fall), reverse=True)
    assert fall[:1] in ([], [1])
    # Linear: one step is worth the same everywhere.
    for piece, size in ((rise, warmup), (fall, cooldown)):
        for a, b in pairwise(piece):
            assert abs(b - a) == pytest.approx(1 / size)
    if cooldown:
        assert trapezoid(steps, steps=steps, warmup=warmup, cooldown=cooldown) == 0


@given(schedules())
@settings(deadline=None)
def test_every_cosine_rises_and_then_falls_within_0_and_1(schedule: tuple[int, int, int]) -> None:
    steps, warmup, _ = schedule
    factors = [cosine(step, steps=steps, warmup=warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    rise, fall = factors[:warmup], factors[warmup:]
    assert rise == sorted(set(rise))
    assert fall == sorted(fall, reverse=True)
    assert fall[:1] in ([], [1])
    if warmup < steps:
        assert cosine(steps, steps=steps, warmup=warmup) == pytest.approx(0, abs=1e-12)


def test_momentum_warms_up_linearly_from_0_85() -> None:
    found = [momentum_at(step, momentum=0.95, warmup=4) for step in range(6)]
    assert found == pytest.approx([0.85, 0.875, 0.9, 0.925, 0.95, 0.95])
    assert momentum_at(0, momentum=0.95, warmup=0) == 0.95


@given(st.floats(0.85, 0.999), st.integers(1, 300))
@settings(deadline=None)
def test_momentum_never_falls_and_ends_at_its_value(momentum: float, warmup: int) -> None:
    found = [momentum_at(step, momentum=momentum, warmup=warmup) for step in range(warmup + 2)]
    assert found[0] == 0.85
    assert found[-2:] == [momentum, momentum]
    assert all(b >= a - 1e-12 for a, b in pairwise(found))


def test_learning_rates_follow_a_batch_that_grows() -> None:
    config = get_recipe("modded").override({"train.batch_stages": 2})
    assert lr_factor(config, 2549) == pytest.approx(0.5**0.6)
    assert lr_factor(config, 2550) == 1
    assert lr_factor(config, 4375) == 0.5
    assert [scheduled(config, step).batch_sequences for step in (2549, 2550)] == [256, 512]


def test_a_window_grows_evenly_and_is_whole_after_the_last_step() -> None:
    found = [window_at(step, steps=4, start=3, window=13) for step in range(6)]
    assert found == [3, 5, 8, 10, 13, 13]
    assert window_at(2, steps=4, start=None, window=13) == 13
    assert window_at(2, steps=4, start=None, window=None) is None
    config = get_recipe("modded").override({"model.window": 900, "model.window_start": 100})
    assert scheduled(config, 0).window == 100
    assert scheduled(config, 2550).window == 500
    assert scheduled(config, 5100).window == 900


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 90))
@settings(deadline=None)
def test_a_window_never_shrinks_nor_leaves_its_bounds(start: int, more: int, steps: int) -> None:
    window = start + more
    found = [
        window_at(step, steps=steps, start=start, window=window) or 0 for step in range(steps + 1)
    ]
    assert found[0] == start
    assert found[-1] == window
    assert all(a <= b for a, b in pairwise(found))

"""The search for the best learning rate of one model, and the point between the points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Train = Callable[[int, int], float]
"""Gives the final loss of a power of two and a seed; infinite where it diverged."""


@dataclass
class Curve:
    """Final losses of one model by the power of two of its learning rate, then by seed."""

    losses: dict[int, dict[int, float]] = field(default_factory=dict)

    def best(self, seed: int) -> int:
        """Return the power with the lowest loss of a seed."""
        return min(self.losses, key=lambda power: self.losses[power].get(seed, math.inf))

    def vertex(self, seed: int) -> float | None:
        """Return the power, a real number, at which the parabola through the lowest loss of a seed
        and one to either side is lowest; None where one of them is missing or infinite."""
        centre = self.best(seed)
        found = [self.losses.get(centre + step, {}).get(seed, math.inf) for step in (-1, 0, 1)]
        low, middle, high = found
        curvature = low - 2 * middle + high
        if not math.isfinite(sum(found)) or curvature <= 0:
            return None
        return centre + (low - high) / (2 * curvature)

    def optimum(self, seeds: Sequence[int]) -> tuple[float, float] | None:
        """Return the mean over seeds of the power that is best, and its standard error."""
        found = [v for seed in seeds if (v := self.vertex(seed)) is not None]
        if len(found) < max(2, len(seeds)):
            return None
        return statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found))

    def at(self, power: float, seeds: Sequence[int]) -> float | None:
        """Return the mean loss at a power, straight between the points of the grid around it, over
        the seeds that both have; None beyond the grid."""
        low, high = math.floor(power), math.ceil(power)
        sides = [self.losses.get(end, {}) for end in (low, high)]
        both = [seed for seed in seeds if all(seed in side for side in sides)]
        if not both:
            return None
        ends = [statistics.fmean(side[seed] for seed in both) for side in sides]
        return ends[0] + (power - low) * (ends[1] - ends[0])


def search(train: Train, begin: int, seeds: Sequence[int], curve: Curve) -> None:
    """Fill a curve: with the first seed from `begin` downhill until the lowest point has two points
    on either side, then with every other seed from there until its own lowest has one.
    """

    def walk(seed: int, begin: int, sides: int) -> None:
        power: int | None = begin
        while power is not None:
            if seed not in curve.losses.get(power, {}):
                found = train(power, seed)  # may be stopped, and then leaves no trace
                curve.losses.setdefault(power, {})[seed] = found
            best = curve.best(seed)
            near = (best + sign * far for far in range(1, sides + 1) for sign in (-1, 1))
            power = next((p for p in near if seed not in curve.losses.get(p, {})), None)

    walk(seeds[0], begin, 2)
    for seed in seeds[1:]:
        walk(seed, curve.best(seeds[0]), 1)

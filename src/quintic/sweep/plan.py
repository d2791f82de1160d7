"""The runs of a sweep: all combinations of the values, or random draws, with several seeds."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quintic.config import Config, field_facts
from quintic.errors import QuinticError, counted

SEED = "train.seed"
MOST_RUNS = 2000
LONGEST_NAME = 180
"""Characters; a file name may have 255."""

Values = Mapping[str, Any]
"""Field to value."""


@dataclass(frozen=True)
class Choices:
    """A field and the values it takes."""

    field: str
    values: tuple[Any, ...]

    def draw(self, share: float) -> Any:
        """Return the value at a share, from 0 to less than 1, of the way through all of them."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True)
class Range:
    """A field and the bounds between which its values are drawn, uniform in their logarithm:
    a learning rate matters by its factor (Bergstra and Bengio 2012,
    https://jmlr.org/papers/v13/bergstra12a.html, draw it so)."""

    field: str
    low: float
    high: float

    def draw(self, share: float) -> float | int:
        """Return the value at a share of the way: a whole number where the bounds are, else four
        digits, so that names and tables can be read."""
        value = self.low * math.exp(share * math.log(self.high / self.low))
        if isinstance(self.low, int):
            return round(value)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """Name of its folder."""
    values: Values
    config: Config

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return self.config.train.seed


@dataclass(frozen=True)
class Plan:
    """A whole sweep."""

    base: Config
    varied: tuple[Choices | Range, ...]
    draws: int | None
    """Combinations of a random search; None: the grid."""
    seeds: int
    runs: tuple[PlannedRun, ...]
    """First all combinations with the first seed, so that a sweep cut short has seen them all."""

    @property
    def fields(self) -> list[str]:
        """Return the varied fields, in the order given."""
        return [varied.field for varied in self.varied]


def make_plan(
    base: Config,
    varied: Sequence[Choices | Range],
    *,
    seeds: int = 1,
    draws: int | None = None,
) -> Plan:
    """Return the runs, with every config checked; raises `QuinticError` where one cannot be.

    `base` is the recipe with everything that holds for all runs. Its seed is the first; it also
    seeds the draws, of which more continue the same sequence.
    """
    for option, count in (("--seeds", seeds), ("--random", draws)):
        if count is not None and count < 1:
            raise QuinticError(f"{option} is {count}: it must be at least 1")
    if base.train.target_loss is not None:
        raise QuinticError(
            f"train.target_loss is {base.train.target_loss}, at which each run would end, and a "
            "sweep ranks the runs by where they end: leave it out; quintic compare --target finds "
            "the steps to a loss"
        )
    if not varied:
        raise QuinticError("sweep needs something to vary: --vary optim.muon.lr=1e-3,2e-3")
    for one in varied:
        _check_varied(one, draws)
    fields = [one.field for one in varied]
    if twice := next((name for name in fields if fields.count(name) > 1), None):
        raise QuinticError(f"--vary names {twice} twice: give all its values in one")
    lists = [one.values for one in varied if isinstance(one, Choices)]
    if (count := (math.prod(map(len, lists)) if draws is None else draws) * seeds) > MOST_RUNS:
        raise QuinticError(
            f"these are {count:,} runs, and a sweep has at most {MOST_RUNS:,}: vary less, or draw "
            "some of them with --random K"
        )
    if draws is None:
        combinations = [
            dict(zip(fields, values, strict=True)) for values in itertools.product(*lists)
        ]
    else:
        combinations = list(itertools.islice(_draw(varied, base.train.seed), draws))
        if len(combinations) < draws:
            raise QuinticError(
                f"--random is {draws} and there {'is' if len(combinations) == 1 else 'are'} only "
                f"{counted(len(combinations), 'combination')}: draw fewer, or leave it out for all "
                "of them"
            )
    runs = [
        _planned(base, values, base.train.seed + number)
        for number in range(seeds)
        for values in combinations
    ]
    return Plan(base, tuple(varied), draws, seeds, tuple(runs))


def _check_varied(varied: Choices | Range, draws: int | None) -> None:
    field = varied.field
    if reason := field_facts(Config)[field].not_swept:
        raise QuinticError(f"--vary cannot vary {field}: {reason}")
    if isinstance(varied, Choices):
        for value in varied.values:
            if varied.values.count(value) > 1:
                raise QuinticError(f"--vary {field} has the value {value_text(value)} twice")
        return
    if draws is None:
        raise QuinticError(
            f"--vary {field} is the range {varied.low}..{varied.high}, from which values are "
            "drawn: say how many with --random K, or list the values"
        )
    if not (0 < varied.low < varied.high and math.isfinite(varied.high)):
        raise QuinticError(
            f"--vary {field} is the range {varied.low}..{varied.high}: it must go from a number "
            "above 0 up to a larger one, since it is drawn uniform in the logarithm"
        )


def _draw(varied: Sequence[Choices | Range], seed: int) -> Iterator[dict[str, Any]]:
    """Yield combinations, none twice; ends where a thousand draws bring nothing new."""
    generator = random.Random(seed)
    seen: set[tuple[Any, ...]] = set()
    since = 0
    while since < 1000:
        # Only random() is promised to give the same numbers in every version of Python.
        values = {one.field: one.draw(generator.random()) for one in varied}
        since += 1
        if (key := tuple(values.values())) not in seen:
            seen.add(key)
            since = 0
            yield values


def _planned(base: Config, values: Values, seed: int) -> PlannedRun:
    name = f"{combination_name(values)},seed={seed}"
    try:
        config = base.override({**values, SEED: seed})
    except QuinticError as error:
        raise QuinticError(f"--vary asks for {name}, but {error}") from error
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - 40]}...{digest},seed={seed}"
    return PlannedRun(name, values, config)


def combination_name(values: Values) -> str:
    """Return a name such as muon.lr=0.02,model.width=128."""
    return ",".join(f"{short_name(field)}={value_text(v)}" for field, v in values.items())


def short_name(field: str) -> str:
    """Return the end of a field's name that no other field has: muon.lr, model.width."""
    return ".".join(field.split(".")[-2:])


def value_text(value: Any) -> str:
    """Return a value as --vary takes it, without the space."""
    return "_".join(map(str, value)) if isinstance(value, tuple | list) else str(value)

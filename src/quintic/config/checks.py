"""What the values of several sections must be: each check raises `QuinticError` with one line."""

from __future__ import annotations

import math
import typing
from typing import Any

from quintic.errors import QuinticError


def require(condition: bool, message: str) -> None:
    if not condition:
        raise QuinticError(message)


def positive(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None:
            require(math.isfinite(value), f"{section}.{name} is {value}: it must be finite")
            require(value > 0, f"{section}.{name} is {value}: it must be positive")
            require(
                isinstance(value, float) or value < 2**63,
                f"{section}.{name} is {value}: it must be less than 2**63",
            )


def not_negative(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(math.isfinite(value), f"{section}.{name} is {value}: it must be finite")
        require(value >= 0, f"{section}.{name} is {value}: it must be zero or positive")


def fraction(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(
            0 <= value < 1, f"{section}.{name} is {value}: it must be at least 0 and less than 1"
        )


def betas(section: str, values: tuple[float, float]) -> None:
    require(
        all(0 <= beta < 1 for beta in values),
        f"{section}.betas is {values}: both must be at least 0 and less than 1",
    )


def one_of(section: str, config: Any, *names: str) -> None:
    hints = typing.get_type_hints(type(config))
    for name in names:
        choices, value = typing.get_args(hints[name]), getattr(config, name)
        require(
            value in choices,
            f"{section}.{name} is {value!r}: it must be one of {', '.join(map(str, choices))}",
        )

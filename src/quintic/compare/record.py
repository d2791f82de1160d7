"""What is known of one run, whether quintic trained it or another trainer's log tells of it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Axis = Literal["tokens", "steps", "seconds"]
AXES: tuple[Axis, ...] = typing.get_args(Axis)

SEED = "train.seed"


@dataclass(frozen=True)
class Point:
    """A validation: the loss after so many steps, tokens and seconds of training."""

    steps: int
    loss: float
    tokens: float | None
    seconds: float | None
    """Validation and checkpoints excluded."""

    def at(self, axis: Axis) -> float | None:
        """The place on an axis; None where the run does not say."""
        value: float | None = getattr(self, axis)
        return value


@dataclass(frozen=True)
class Data:
    """On what a run was trained and validated, as far as it is known."""

    fingerprint: str | None = None
    """Of the dataset (`quintic.data.dataset.Dataset.fingerprint`)."""
    described: tuple[Any, ...] | None = None
    """What stands for it where no fingerprint was recorded; None: nothing is known."""
    eval_tokens: int | None = None
    """Tokens of one validation, from the start of the validation stream."""

    def __str__(self) -> str:
        if self.fingerprint is not None:
            return f"the data with fingerprint {self.fingerprint[:12]}"
        return " ".join(str(part) for part in self.described or ("unknown data",))


@dataclass(frozen=True)
class RunRecord:
    """One run: its settings, its validation losses, what it cost."""

    path: Path
    source: Literal["quintic", "modded-nanogpt", "llm.c"]
    points: tuple[Point, ...]
    """Finite validation losses, in the order of their steps; at least one unless it diverged."""
    data: Data = field(default_factory=Data)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The config by dotted names; empty for a log."""
    program: str | None = None
    """SHA-256 of the source code with which a log opens; it is the config of such a run."""
    steps_planned: int | None = None
    diverged_at: int | None = None
    """Step of the first loss that is not finite, where no finite one follows."""
    tokens_per_s: float | None = None
    memory_gib: float | None = None
    """Peak."""
    optimizer_share: float | None = None
    """Of the time of a step, 0 to 1."""
    device: str | None = None
    commit: str | None = None

    @property
    def seed(self) -> int | None:
        """None where the run does not say."""
        return self.settings.get(SEED)

    @property
    def steps_done(self) -> int:
        """Steps before the last validation."""
        return self.points[-1].steps if self.points else 0

    @property
    def finished(self) -> bool:
        """Whether the last validation stands at the end of what was planned."""
        return self.steps_planned is None or self.steps_done >= self.steps_planned

    @property
    def final_loss(self) -> float | None:
        """Validation loss at the end; None for a run that diverged or has not come to its end."""
        if self.diverged_at is not None or not self.finished:
            return None
        return self.points[-1].loss

    def has(self, axis: Axis) -> bool:
        """Whether every validation has a place on the axis."""
        return all(point.at(axis) is not None for point in self.points)

    def reached(self, target: float, axis: Axis) -> float | None:
        """Where the loss first is the target or less, on a straight line between validations.

        None where it never is, or where the run does not know the axis.
        """
        before: tuple[float, float] | None = None
        for point in self.points:
            x = point.at(axis)
            if x is None:
                return None
            if point.loss <= target:
                if before is None:
                    return x
                x0, loss0 = before
                return x0 + (x - x0) * (loss0 - target) / (loss0 - point.loss)
            before = x, point.loss
        return None

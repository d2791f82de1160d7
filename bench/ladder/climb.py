"""Climbing: each technique is trained on top of what is kept, and kept where that ends lower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ladder.techniques import Technique
from bench.trainings import train_all
from quintic.compare.statistics import Difference, difference
from quintic.config import Config
from quintic.sweep.plan import SEED, PlannedRun

LEVEL = 0.05
"""Of significance, for a rung to be kept. Of 14 rungs without any effect a third of one is kept."""


@dataclass(frozen=True)
class Rung:
    """One technique, tried."""

    name: str
    technique: Technique | None
    """None at the foot, which is named as its recipe."""
    upon: tuple[str, ...]
    """Names of what was kept before it."""
    losses: dict[int, float | None]
    """Final validation loss by seed, in the ladder's unit; None where it diverged."""
    difference: Difference | None
    """To the highest rung kept before it; None at the foot, and where a run diverged."""

    @property
    def kept(self) -> bool:
        """Whether it ends lower, by more than the noise between seeds."""
        if self.technique is None:
            return True
        found = self.difference
        return found is not None and found.value < 0 and found.p is not None and found.p < LEVEL


def climb(
    foot: Config,
    techniques: Sequence[Technique],
    folder: Path,
    *,
    seeds: Sequence[int],
    jobs: int,
    say: Callable[[str], None],
    scale: Callable[[Config], float] = lambda config: 1.0,
) -> Iterator[Rung]:
    """Train one rung after another in `folder`, each when its outcome is asked for.

    `scale` is what a loss in nats per token is multiplied by. A run that is done already is not
    trained again, and one that was stopped goes on. Raises `QuinticError` where a run fails for
    another reason than divergence, and `KeyboardInterrupt` where a signal stopped it; what was
    trained is saved.
    """
    below: dict[int, float | None] = {}
    upon: tuple[str, ...] = ()
    kept: dict[str, Any] = {}
    tried: list[Technique | None] = [None, *techniques]
    for number, technique in enumerate(tried):
        name = technique.name if technique else foot.recipe
        changes = technique.changes if technique else {}
        config = foot.override(kept | changes)
        nats = _train(f"{number:02}-{name}", config, changes, folder, seeds, jobs, say)
        unit = scale(config)
        losses = {seed: None if x is None else x * unit for seed, x in nats.items()}
        rung = Rung(name, technique, upon, losses, _difference(losses, below))
        if rung.kept:
            below = losses
            kept |= changes
            upon = (*upon, name) if technique else upon
        yield rung


def _difference(
    losses: dict[int, float | None], below: dict[int, float | None]
) -> Difference | None:
    found = [[v for v in side.values() if v is not None] for side in (losses, below)]
    whole = len(found[0]) == len(losses) and len(found[1]) == len(below) > 0
    return difference(*found) if whole else None


def _train(
    name: str,
    config: Config,
    changes: dict[str, Any],
    folder: Path,
    seeds: Sequence[int],
    jobs: int,
    say: Callable[[str], None],
) -> dict[int, float | None]:
    """Final losses by seed, in nats per token."""
    runs = tuple(
        PlannedRun(f"{name}-seed{seed}", changes, config.override({SEED: seed})) for seed in seeds
    )
    losses = train_all(runs, folder, jobs=jobs, say=say)
    return {run.seed: losses[run.name] for run in runs}

"""The record of one run, whether quintic trained it or another trainer's log tells of it."""

from __future__ import annotations

import itertools
import statistics
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from quintic.config import EMBEDDED, Config

Axis = Literal["tokens", "steps", "seconds", "flops"]
AXES: tuple[Axis, ...] = typing.get_args(Axis)
AXIS_NAMES: dict[Axis, str] = {axis: axis for axis in AXES} | {"flops": "FLOPs"}
"""What sentences and tables call them."""

SEED = "train.seed"


@dataclass(frozen=True)
class Place:
    """A place on the way of a run; None where the run does not say."""

    steps: int
    tokens: float | None
    seconds: float | None
    """Seconds of training: validation and checkpoints excluded."""
    flops: float | None = field(default=None, kw_only=True)
    """Floating-point operations of training, as `LanguageModel.flops_per_token` counts them."""

    def at(self, axis: Axis) -> float | None:
        """Return the place on an axis."""
        value: float | None = getattr(self, axis)
        return value


@dataclass(frozen=True)
class Validation(Place):
    """A validation loss, in nats per token, and where it was measured."""

    loss: float


@dataclass(frozen=True)
class DatasetIdentity:
    """The identity of the data of a run, as far as it is known."""

    fingerprint: str | None = None
    """The dataset's (`quintic.data.dataset.Dataset.fingerprint`)."""
    described: tuple[Any, ...] | None = None
    """Description that stands for it where no fingerprint was recorded; None: nothing is known."""
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
    validations: tuple[Validation, ...]
    """Finite losses, in the order of their steps; at least one unless the run diverged or was read
    for its scores on tasks."""
    data: DatasetIdentity = field(default_factory=DatasetIdentity)
    datasets: int = 1
    """Datasets that it was trained on in one folder, which quintic 0.1 let --force-data do."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The config by dotted names; empty for a log."""
    program_sha256: str | None = None
    """SHA-256 of the source code with which a log opens; it is the config of such a run."""
    steps_planned: int | None = None
    confirmed: bool = False
    """True where a checkpoint was trained with this config."""
    trained: bool = False
    """True where the weights of the last planned step are there, whatever is left of the losses."""
    stopped_at: int | None = None
    """Step before the planned end that is the end, since the run stopped early, or since all logs
    of the group stop at it."""
    stopped_early: str | None = None
    """Why, in words, where it is a rule of the run."""
    diverged_at: int | None = None
    """Step of the first loss that is not finite, where no finite one follows."""
    gaps: tuple[int, ...] = ()
    """Steps of losses that are not finite, where finite ones follow."""
    batch_given: bool = False
    """True where a log does not say the tokens of a step, and `--batch-tokens` does."""
    tokens_per_s: float | None = None
    memory_gib: float | None = None
    """The peak."""
    optimizer_share: float | None = None
    """The optimizer's share of the time of a step, 0 to 1."""
    device: str | None = None
    commit: str | None = None
    environment_damaged: bool = False
    """True where the file that says data, device and commit cannot be read."""

    @property
    def seed(self) -> int | None:
        """Return the seed; None where the run does not say."""
        return self.settings.get(SEED)

    @property
    def imported_from(self) -> str | None:
        """Return where the model is from, of another tool: it has scores on tasks and no losses."""
        return self.settings.get("imported.source")

    @property
    def steps_done(self) -> int:
        """Return the steps before the last validation."""
        return self.validations[-1].steps if self.validations else 0

    @property
    def finished(self) -> bool:
        """Return whether the last validation stands at the end of what was planned."""
        end = self.steps_planned if self.stopped_at is None else self.stopped_at
        return end is None or self.steps_done >= end

    @property
    def final_loss(self) -> float | None:
        """Return the validation loss at the end; None for a run that diverged or has not come to
        its end."""
        if self.diverged_at is not None or not self.finished or not self.validations:
            return None
        return self.validations[-1].loss

    def has(self, axis: Axis) -> bool:
        """Return whether every validation has a place on the axis."""
        return all(v.at(axis) is not None for v in self.validations)

    @property
    def flops_per_step(self) -> float | None:
        """Return the operations of a step, in the mean over the run; None where they are not
        known."""
        last = next(reversed(self.validations), None)
        return last.flops / last.steps if last and last.flops and last.steps else None

    def reached(self, target: float, axis: Axis) -> float | None:
        """Return where the loss comes down to the target, on straight lines between validations;
        None where no validation is that low, or where the run does not know the axis.

        Losses are noisy, and a run that validates more often has more chances of an early low one.
        So the lines are drawn through the falling curve that is nearest to the validations up to
        the lowest: a loss that rises is averaged with those before it, as is its place, until the
        curve falls (isotonic regression, by pooling adjacent violators: Barlow et al., Statistical
        Inference under Order Restrictions, 1972). A curve that falls throughout is left as it is.
        """
        if not self.has(axis) or all(v.loss > target for v in self.validations):
            return None
        lowest = min(self.validations, key=lambda validation: validation.loss)
        pools: list[list[tuple[float, float]]] = []
        for validation in self.validations[: self.validations.index(lowest) + 1]:
            pool = [(float(validation.at(axis) or 0), validation.loss)]
            while pools and _mean(pools[-1])[1] <= _mean(pool)[1]:
                pool = pools.pop() + pool
            pools.append(pool)
        curve = [_mean(pool) for pool in pools]
        if curve[0][1] <= target:
            return curve[0][0]
        (x0, loss0), (x, loss) = next(p for p in itertools.pairwise(curve) if p[1][1] <= target)
        return x0 + (x - x0) * (loss0 - target) / (loss0 - loss)

    def interval_at(self, target: float) -> int | None:
        """Return the steps between the first validation at or below the target and the one before;
        None where there are no two such."""
        for before, after in itertools.pairwise(self.validations):
            if after.loss <= target:
                return after.steps - before.steps if before.loss > target else None
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        own = {"path": str(self.path), "seed": self.seed, "final_loss": self.final_loss}
        return asdict(self) | own


def dataset_identity(config: Config, environment: Mapping[str, Any]) -> DatasetIdentity:
    """Return the identity of a run's data; `environment` is what its last start recorded."""
    tokenizer = config.data.tokenizer or "its own tokenizer"
    vocabulary = f"vocabulary {config.model.vocab_size}"
    if config.data.path == EMBEDDED:
        # Its text is that of the interpreter.
        python = f"Python {environment.get('python', 'unknown')}"
        described = (EMBEDDED, python, f"vocabulary {config.data.embedded_vocab}")
    else:
        described = (str(Path(config.data.path).absolute()), tokenizer, vocabulary)
    return DatasetIdentity(environment.get("data"), described, config.train.eval_tokens)


def _mean(pool: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean place and the mean loss of some validations."""
    places, losses = zip(*pool, strict=True)
    return statistics.fmean(places), statistics.fmean(losses)

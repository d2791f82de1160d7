"""A model's scores on a task, each with its standard error, and the same by item in a run's folder.

A choice is right where its log-likelihood is the largest (`acc`), or the largest for each of its
characters (`acc_norm`); of equal ones the first counts. A last word is right where every token of
it is the model's likeliest; its perplexity is that of the word. A task of subtasks is their
unweighted mean. All as lm-evaluation-harness 0.4.13 has it (lm_eval/api/task.py). What that itself
has computed is kept in the same form (lm_eval_results.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.tokenizer import Tokenizer
from quintic.distributed.world import ALONE, World
from quintic.errors import QuinticError, one_line
from quintic.files import parse_json, write_json
from quintic.model.base import LanguageModel
from quintic.tasks.data import Item, TaskData
from quintic.tasks.loglikelihood import (
    LogLikelihood,
    Scored,
    joined,
    log_likelihoods,
    scored_pieces,
)

SCORES = "scores"
"""The folder in a run's, with a folder for each checkpoint that was scored."""

BOOTSTRAP_DRAWS = 1000

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A metric of a task, or of a part of it."""

    value: float
    stderr: float | None
    """Standard deviation over resamples of the items, those of each subtask among themselves; None
    where a subtask has one item, which has no spread."""

    def __str__(self) -> str:
        form = format_of(self.value)
        error = "" if self.stderr is None else f" ± {self.stderr:{form}}"
        return f"{self.value:{form}}{error}"


def format_of(value: float) -> str:
    """Return the format specification of a score: a perplexity may have many digits."""
    return ".4f" if value < 10 else ".2f" if value < 1e6 else ".2e"


@dataclass(frozen=True)
class TaskScores:
    """The scores of a model on a task."""

    task: str
    source: str
    """Where the items are from."""
    fingerprint: str
    """Of the items: scores on the same ones compare pair by pair."""
    subtasks: Sequence[str]
    """The subtask of each item, n of them."""
    groups: Mapping[str, str]
    """The group of each subtask."""
    items: Mapping[str, Values]
    """By metric a number for each item, [n]: 1 where it is right, nats for perplexity."""
    chance: float
    """The accuracy of guessing; 0 where there is none, or it is not known."""
    step: int | None = None
    """Of the checkpoint, where the scores are kept."""
    in_pieces: int = 0
    """Items with a continuation that does not fit into the model's context, and was scored in
    pieces."""
    totals: Mapping[str, Score] = field(default_factory=dict)
    """Metrics of the whole task that are no mean over items."""
    by_size: bool = False
    """True where the task is the mean of its subtasks weighted by their items."""

    @cached_property  # BLiMP's resamples take most of a second
    def metrics(self) -> Mapping[str, Score]:
        """Return the scores of the whole task."""
        return {**self._scores(set(self.subtasks)), **self.totals}

    def by_subtask(self) -> Mapping[str, Mapping[str, Score]]:
        """Return the scores of each subtask."""
        return {name: self._scores({name}) for name in dict.fromkeys(self.subtasks)}

    def by_group(self) -> Mapping[str, Mapping[str, Score]]:
        """Return the scores of each group of subtasks, their unweighted mean."""
        return {group: self.part(group).metrics for group in sorted({*self.groups.values()})}

    def part(self, group: str) -> TaskScores:
        """Return the scores of a group of subtasks alone."""
        groups = {subtask: g for subtask, g in self.groups.items() if g == group}
        chosen = np.array([subtask in groups for subtask in self.subtasks])
        return replace(
            self,
            subtasks=[subtask for subtask in self.subtasks if subtask in groups],
            groups=groups,
            items={metric: values[chosen] for metric, values in self.items.items()},
            totals={},
        )

    def count(self, part: str | None = None) -> int:
        """Return the number of items, of all, or of the subtask or the group of a name."""
        return sum(1 for s in self.subtasks if part in (None, s, self.groups[s]))

    def _scores(self, chosen: set[str]) -> dict[str, Score]:
        subtasks = np.array(self.subtasks)
        found = {}
        for metric, values in self.items.items():
            parts = [values[subtasks == name] for name in sorted(chosen)]
            weights = [len(part) for part in parts] if self.by_size else None
            average = partial(np.average, weights=weights, axis=0)
            finish = perplexity if metric == "perplexity" else float
            value, stderr = finish(float(average([part.mean() for part in parts]))), None
            if min(map(len, parts)) > 1:
                random = np.random.default_rng(0)
                drawn = average([resampled_means(part, random) for part in parts])
                stderr = float(np.std([finish(mean) for mean in drawn], ddof=1))
            found[metric] = Score(value, stderr)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it; `from_dict` takes it back."""
        return {
            "task": self.task,
            "step": self.step,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "chance": self.chance,
            "in_pieces": self.in_pieces,
            "metrics": {name: asdict(score) for name, score in self.metrics.items()},
            "subtasks": {
                subtask: {name: asdict(score) for name, score in scores.items()}
                for subtask, scores in self.by_subtask().items()
            },
            "groups": dict(self.groups),
            "items": {
                "subtask": list(self.subtasks),
                **{metric: [round(float(v), 6) for v in vs] for metric, vs in self.items.items()},
            },
            "totals": {name: asdict(score) for name, score in self.totals.items()},
            "by_size": self.by_size,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TaskScores:
        """Read what `to_dict` returned; raises KeyError, TypeError or ValueError for others."""
        items = dict(content["items"])
        subtasks = [str(name) for name in items.pop("subtask")]
        values = {name: np.array(vs, dtype=np.float64) for name, vs in items.items()}
        totals = {name: Score(**score) for name, score in content.get("totals", {}).items()}
        if not values | totals or any(v.shape != (len(subtasks),) for v in values.values()):
            raise ValueError("items of unequal number")
        return cls(
            str(content["task"]),
            str(content["source"]),
            str(content["fingerprint"]),
            subtasks,
            dict(content["groups"]),
            values,
            float(content["chance"]),
            content.get("step"),
            content.get("in_pieces", 0),
            totals,
            content.get("by_size", False),
        )


def perplexity(nats: float) -> float:
    """Return exp of minus a mean log-likelihood; infinite where that overflows."""
    return math.exp(-nats) if nats > -700 else math.inf


def resampled_means(
    values: Values, random: np.random.Generator, draws: int = BOOTSTRAP_DRAWS
) -> Values:
    """Return the means of bootstrap resamples of some values, [draws], a multiple of 50."""
    n, at_once = len(values), 50  # index arrays of all draws would be large
    return np.concatenate(
        [values[random.integers(0, n, (at_once, n))].mean(axis=1) for _ in range(draws // at_once)]
    )


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str, longest: int
) -> list[Scored]:
    """Return a context and a continuation as tokens, at most `longest`, the context cut at its
    beginning; in pieces where the continuation alone is longer (`scored_pieces`).

    White space at the end of the context belongs to the continuation, and the continuation is what
    the two together have behind as many tokens as the context alone. Nothing stands before a
    context; before a continuation without one stands end of text. Raises ValueError where nothing
    is left to score.
    """
    stripped = context.rstrip()
    if not stripped:
        context_ids, ids = [tokenizer.eot_id], tokenizer.encode(context + continuation)
    else:
        context_ids = tokenizer.encode(stripped)
        whole = tokenizer.encode(context + continuation)
        ids = whole[len(context_ids) :]
    if not ids:
        raise ValueError(f"its continuation {continuation[:40]!r} has no tokens of its own")
    return scored_pieces(context_ids + ids, len(ids), longest)


def score_task(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: TaskData,
    on_progress: Callable[[float], None] | None = None,
    world: World = ALONE,
) -> TaskScores:
    """Return the scores of a model on a task; every process of a run calls it, and gets them all.

    Raises `QuinticError` where a continuation has no tokens of its own, and where the model's
    numbers are none.
    """
    longest, encoded = model.config.context + 1, []
    for number, item in enumerate(data.items, 1):
        try:
            encoded.append([encode_pair(tokenizer, *pair, longest) for pair in item.question.pairs])
        except ValueError as error:
            raise QuinticError(
                f"item {number} of {data.task.name} cannot be scored ({error}): leave the task out"
            ) from error
    sequences = [piece for pairs in encoded for pieces in pairs for piece in pieces]
    results = iter(log_likelihoods(model, sequences, tokenizer.vocab_size, on_progress, world))
    found = [
        _item_scores(item, [joined([next(results) for _ in pieces]) for pieces in pairs])
        for item, pairs in zip(data.items, encoded, strict=True)
    ]
    return TaskScores(
        data.task.name,
        data.source,
        data.fingerprint,
        [item.subtask for item in data.items],
        {item.subtask: item.group for item in data.items},
        {metric: np.array([f[metric] for f in found]) for metric in data.task.metrics},
        data.chance,
        in_pieces=sum(any(len(pieces) > 1 for pieces in pairs) for pairs in encoded),
    )


def _item_scores(item: Item, found: Sequence[LogLikelihood]) -> dict[str, float]:
    question = item.question
    if any(math.isnan(f.nats) for f in found):
        raise QuinticError(
            "the model's log-likelihoods are not numbers (NaN): its training has diverged, and no "
            "score says anything of it"
        )
    if len(found) == 1:
        return {"acc": float(found[0].greedy), "perplexity": found[0].nats}
    nats = np.array([f.nats for f in found])
    by_character = nats / np.array(question.characters)
    return {
        "acc": float(nats.argmax() == question.answer),
        "acc_norm": float(by_character.argmax() == question.answer),
    }


def save_scores(run: Path, step: int, scores: TaskScores) -> Path:
    """Write scores of a run's checkpoint into its folder and return where; raises OSError."""
    folder = run / SCORES / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{scores.task}.json", replace(scores, step=step).to_dict())
    return folder


def has_scores(run: Path) -> bool:
    """Return whether a run's folder has scores of a checkpoint."""
    return any((run / SCORES).glob("step-*/*.json"))


def read_scores(run: Path) -> dict[str, TaskScores]:
    """Return the scores in a run's folder by task, of each those of the last step scored.

    Raises `QuinticError` where a file is damaged.
    """
    found: dict[str, TaskScores] = {}
    for path in sorted((run / SCORES).glob("step-*/*.json")):
        try:
            scores = TaskScores.from_dict(parse_json(path.read_bytes()))
        except (OSError, QuinticError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise QuinticError(
                f"{path} cannot be read as scores ({one_line(error)}): remove it, and score the "
                "run again with quintic evaluate"
            ) from error
        found[scores.task] = scores
    return found

"""Groups of runs that belong together, what tells them apart, and which losses compare at all."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quintic.compare.record import SEED, DatasetIdentity, RunRecord
from quintic.config import Config, field_facts
from quintic.errors import QuinticError

BOOKKEEPING = frozenset(
    name for name, facts in field_facts(Config).items() if facts.compare == "ignored"
)
"""Fields that change neither a loss nor the time that is counted."""

DATA_PATH = "data.path"
ORIGINS = ("continued_from", "init_from")
"""Sections that say with which run's checkpoint a run began."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    label: str
    runs: tuple[RunRecord, ...]

    @functools.cached_property
    def counted(self) -> tuple[RunRecord, ...]:
        """Return the first run of each seed: a repetition is no further sample of the noise, and no
        more is a copy, which has the losses of another run under whatever seed."""
        first: dict[Any, RunRecord] = {}
        for run in self.runs:
            if self.original(run) is run:
                first.setdefault(run.path if run.seed is None else run.seed, run)
        return tuple(first.values())

    def original(self, run: RunRecord) -> RunRecord:
        """Return the one of the runs with every loss and time of this one that is believed: the
        first whose config a checkpoint confirms, or else the first."""
        alike = [r for r in self.runs if r.validations and r.validations == run.validations]
        return next((r for r in alike if r.confirmed), alike[0] if alike else run)

    @property
    def imported(self) -> bool:
        """Return whether it is a model of another tool, which has scores on tasks alone."""
        return self.runs[0].imported_from is not None

    @property
    def final_losses(self) -> dict[int, float]:
        """Return those of the counted runs that came to their end, by seed."""
        return {
            run.seed: run.final_loss
            for run in self.counted
            if run.seed is not None and run.final_loss is not None
        }

    @property
    def diverged(self) -> tuple[RunRecord, ...]:
        """Return the counted runs that diverged."""
        return tuple(run for run in self.counted if run.diverged_at is not None)

    @property
    def repeated(self) -> tuple[RunRecord, ...]:
        """Return the runs that are not counted."""
        return tuple(run for run in self.runs if run not in self.counted)


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Return the runs in groups, in the order in which the first of each was named.

    Runs of quintic belong together where their configs are equal but for the seed and for
    bookkeeping, and so is their data; logs of modded-nanogpt where the source code in them is
    equal. Any other log stands alone, and so does an imported model. Where all logs of a group stop
    at one step before the planned end, as some programs do by design, that is their end.
    """
    found: dict[Any, list[RunRecord]] = {}
    datasets: list[DatasetIdentity] = []
    for run in runs:
        key: Any = run.program_sha256 or run.path
        if run.settings and run.imported_from is None:
            dataset = next((d for d in datasets if same_data(d, run.data)), None)
            if dataset is None:
                datasets.append(dataset := run.data)
            key = (dataset, settings_without(run))
        found.setdefault(key, []).append(run)
    return [
        Group(label, tuple(_stopped_together(members)))
        for label, members in zip(_labels(list(found.values())), found.values(), strict=True)
    ]


def _stopped_together(runs: list[RunRecord]) -> list[RunRecord]:
    ends = {run.steps_done for run in runs}
    if len(runs) < 2 or len(ends) > 1 or any(run.finished or run.settings for run in runs):
        return runs
    return [replace(run, stopped_at=run.steps_done) for run in runs]


def settings_without(run: RunRecord, *fields: str) -> tuple[tuple[str, Any], ...]:
    """Return the settings of a run that tell it apart, but for these fields; empty for a log."""
    left_out = {SEED, DATA_PATH, *BOOKKEEPING, *fields}
    return tuple((name, value) for name, value in run.settings.items() if name not in left_out)


def differing_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return what differs between the configs: for each such field a value for each group.

    Seeds and bookkeeping are no differences, and the folder of the data only where the data is
    another. A field that has no effect in some groups is one where the others differ; those groups
    have None there, and so has everywhere a log, of which no config is known.
    """
    known = [group.runs[0] for group in groups if group.runs[0].settings]
    same = {SEED, *BOOKKEEPING}
    if all(same_data(run.data, known[0].data) for run in known):
        same.add(DATA_PATH)
    differing: dict[str, list[Any]] = {}
    for name in dict.fromkeys(n for run in known for n in run.settings if n not in same):
        values = [run.settings[name] for run in known if name in run.settings]
        if values != values[:1] * len(values):
            differing[name] = [group.runs[0].settings.get(name) for group in groups]
    return differing


def same_data(one: DatasetIdentity, other: DatasetIdentity) -> bool:
    """Return whether two runs were trained on the same tokens, as far as that is known."""
    if one.fingerprint is not None and other.fingerprint is not None:
        return one.fingerprint == other.fingerprint
    return one.described is None or other.described is None or one.described == other.described


def check_once(runs: Sequence[RunRecord]) -> None:
    """Raise `QuinticError` where a run is named twice, be it by other paths of its folder."""
    seen: dict[Path, Path] = {}
    for run in runs:
        resolved = run.path.resolve()
        if resolved in seen:
            raise QuinticError(
                f"{run.path} and {seen[resolved]} are the same run: name each once, since a copy "
                "is no further evidence"
            )
        seen[resolved] = run.path


def check_same_data(runs: Sequence[RunRecord], *, forcible: bool = True) -> None:
    """Raise `QuinticError` where losses do not compare: other data, or another part of it; where
    that is `forcible`, with the option that forces it."""
    force = ", or give --force to lay them side by side all the same" if forcible else ""
    for one, other in itertools.combinations(runs, 2):
        if not same_data(one.data, other.data):
            raise QuinticError(
                f"{one.path} was trained on {one.data} and {other.path} on {other.data}: losses on "
                "different data or of different tokenizers do not compare; name runs on the "
                f"same{force}"
            )
        tokens = one.data.eval_tokens, other.data.eval_tokens
        if None not in tokens and tokens[0] != tokens[1]:
            raise QuinticError(
                f"{one.path} validates on {tokens[0]:,} tokens and {other.path} on {tokens[1]:,}: "
                "losses on different text do not compare; train with the same "
                f"train.eval_tokens{force}"
            )


def _labels(groups: list[list[RunRecord]]) -> list[str]:
    """Return a name for each group, by the first way of naming that tells them all apart."""
    settings = differing_settings([Group("", tuple(group)) for group in groups])

    def differences(group: list[RunRecord]) -> str:
        values = group[0].settings
        parts = {}
        for name in settings:
            section, _, last = name.rpartition(".")
            if section in ORIGINS:  # the run says more than its step and its checkpoint
                if origin := values.get(f"{section}.run"):
                    parts[section] = origin
            elif name in values:
                parts[last] = values[name]
        return " ".join(itertools.islice((f"{n}={value}" for n, value in parts.items()), 3))

    ways: tuple[Callable[[list[RunRecord]], str], ...] = (
        _stem,
        lambda group: str(group[0].settings.get("recipe", _stem(group))),
        lambda group: differences(group) or _stem(group),
        lambda group: "/".join(group[0].path.parts[-2:]),
    )
    for way in ways:
        labels = [way(group) for group in groups]
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    return [str(group[0].path) for group in groups]


def _stem(group: list[RunRecord]) -> str:
    """Return what the names of a group have in common: muon of muon-seed1 and muon-seed2."""
    names = [run.path.absolute().name for run in group]
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    stem = "".join(letters[0] for letters in alike)
    if any(name[len(stem) : len(stem) + 1].isdigit() for name in names):
        stem = stem.rstrip("0123456789")  # of run10 and run11, the 1 is part of no name
    # As a sweep names its runs, muon.lr=0.02,seed=1, too.
    return re.sub(r"(?<![^-_.,])(seed|s)$", "", stem.rstrip("-_.#=")).rstrip("-_.#,")

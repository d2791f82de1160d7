"""What an attempt shows, by the rules of docs/track.md: statistics, and a verdict in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quintic.compare.statistics import ALPHA, CONFIDENCE, below_target
from quintic.errors import counted
from quintic.track.reference import Target

Side = Literal["reference", "candidate"]
SIDES: tuple[Side, Side] = ("reference", "candidate")

SEEDS, PAIRS = 5, 5
"""Seeds and agreeing pairs that a record has, at least."""
AGREE = 0.1
"""Distance of a pair's ratio from the median of all, over that, up to which it agrees: two pairs
that do differ by 20% at most."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run of the track."""

    side: Side
    seed: int
    """Number of its pair too."""
    train_s: float | None = None
    """Seconds of training, as `clock.training_seconds` counts them."""
    process_s: float | None = None
    """Seconds of the whole process, imports, data and sample included."""
    bits_per_byte: tuple[float, ...] | None = None
    """Scores for each target; None where it has none yet."""
    diverged: str | None = None
    """Why there is no score and never will be, in one line."""

    @property
    def finished(self) -> bool:
        """Return whether running it again would bring nothing new."""
        return self.bits_per_byte is not None or self.diverged is not None


@dataclass(frozen=True)
class Standing:
    """The statistics of the runs of an attempt that have finished."""

    seeds: int
    """Runs of the candidate, diverged ones included."""
    diverged: int
    bits_per_byte: tuple[float, ...] | None
    """Mean over seeds for each target; None where a seed diverged or none has finished."""
    p: tuple[float | None, ...] | None
    """For each target, of the one-sided t-test that the mean is not below it."""
    runs_needed: int | None
    """Seeds that would probably suffice, where they do not; None where nobody can say."""
    pairs: int
    agreeing: int
    ratio: float | None
    """Median seconds of the candidate over that of the reference, of all pairs."""
    low: float | None
    high: float | None
    """Ends of its 95% interval, from a bootstrap of the pairs; None of a single pair."""
    median_s: float | None
    reference_median_s: float | None


def stand(results: Sequence[RunResult], targets: Sequence[Target]) -> Standing:
    """Return the statistics of finished runs; times of a pair count where both are there."""
    own = [r for r in results if r.side == "candidate" and r.finished]
    scores = [r.bits_per_byte for r in own if r.bits_per_byte is not None]
    means = tests = None
    if own and len(scores) == len(own):
        by_target = list(zip(*scores, strict=True))
        means = tuple(statistics.fmean(values) for values in by_target)
        tests = [
            below_target(values, target.bits_per_byte)
            for values, target in zip(by_target, targets, strict=True)
        ]
    needed = [test.runs_needed for test in tests or []]
    times: dict[Side, Mapping[int, float]] = {
        side: {
            r.seed: r.train_s
            for r in results
            if r.side == side and r.bits_per_byte is not None and r.train_s is not None
        }
        for side in SIDES
    }
    paired = sorted(times["reference"].keys() & times["candidate"].keys())
    reference_s = [times["reference"][seed] for seed in paired]
    candidate_s = [times["candidate"][seed] for seed in paired]
    ratios = [one / other for one, other in zip(candidate_s, reference_s, strict=True)]
    middle = statistics.median(ratios) if ratios else math.nan
    low, high = _interval(candidate_s, reference_s)
    return Standing(
        seeds=len(own),
        diverged=len(own) - len(scores),
        bits_per_byte=means,
        p=None if tests is None else tuple(test.p for test in tests),
        runs_needed=max(n for n in needed if n is not None) if needed and all(needed) else None,
        pairs=len(paired),
        agreeing=sum(abs(ratio / middle - 1) <= AGREE for ratio in ratios),
        ratio=statistics.median(candidate_s) / statistics.median(reference_s) if paired else None,
        low=low,
        high=high,
        median_s=statistics.median(candidate_s) if paired else None,
        reference_median_s=statistics.median(reference_s) if paired else None,
    )


def _interval(
    candidate_s: Sequence[float], reference_s: Sequence[float]
) -> tuple[float, float] | tuple[None, None]:
    """Return the percentile interval of the ratio of medians over bootstrap samples of the pairs
    (Efron 1979, https://doi.org/10.1214/aos/1176344552)."""
    pairs = len(candidate_s)
    if pairs < 2:
        return None, None
    drawn = np.random.default_rng(0).integers(pairs, size=(RESAMPLES, pairs))
    medians = [
        np.median(np.array(seconds)[drawn], axis=1) for seconds in (candidate_s, reference_s)
    ]
    low, high = np.quantile(medians[0] / medians[1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Verdict:
    """Whether an attempt is a record, and what it lacks."""

    kind: Literal["record", "no record", "not decided"]
    """not decided: more seeds or pairs, or a commit, may make it a record."""
    reasons: tuple[str, ...]
    """What stands in the way, in words; nothing where it is a record."""

    @property
    def text(self) -> str:
        """Return the verdict in one line."""
        return f"{self.kind}: {'; '.join(self.reasons)}" if self.reasons else self.kind


def judge(
    standing: Standing, targets: Sequence[Target], *, best: float | None, commit: str | None
) -> Verdict:
    """Return the verdict; `best` is the ratio of the record that stands, and `commit` that of the
    candidate's sources, with + where they have changes."""
    against, lacks = list(_against(standing, targets, best)), list(_lacks(standing, targets))
    if commit is not None and commit.endswith("+"):
        lacks.append("the sources have changes that no commit holds: commit them and run it anew")
    if against:
        return Verdict("no record", tuple(against))
    return Verdict("not decided", tuple(lacks)) if lacks else Verdict("record", ())


def _against(s: Standing, targets: Sequence[Target], best: float | None) -> list[str]:
    """Return what no further run of the same attempt is likely to change."""
    found = []
    if s.diverged:
        found.append(f"{s.diverged} of {counted(s.seeds, 'seed')} diverged")
    found += [
        f"the mean of {mean:.4f} bits per byte on {target.place} is not below "
        f"{target.bits_per_byte}"
        for mean, target in zip(s.bits_per_byte or (), targets, strict=bool(s.bits_per_byte))
        if s.seeds > 1 and mean >= target.bits_per_byte
    ]
    high = s.ratio if s.high is None else s.high
    if best is not None and high is not None and s.pairs >= PAIRS and high >= best:
        found.append(f"its ratio may be as high as {high:.3f}, and the record stands at {best:.3f}")
    return found


def _lacks(s: Standing, targets: Sequence[Target]) -> list[str]:
    """Return what more runs may bring, with the options that ask for them."""
    found = []
    if s.seeds < SEEDS:
        found.append(
            f"a record has {SEEDS} seeds and these are {s.seeds}: run it with --seeds {SEEDS}"
        )
    for p, target in zip(s.p or (), targets, strict=s.p is not None):
        if s.seeds >= SEEDS and (p is None or p >= ALPHA):
            more = max(s.seeds + 1, s.runs_needed or 0)
            found.append(
                f"p is {p_text(p)} on {target.place} and must be below {ALPHA:g}: run it "
                f"with --seeds {more}"
            )
    if s.pairs and s.agreeing < max(PAIRS, s.pairs // 2 + 1):
        more = s.pairs + max(PAIRS, s.pairs // 2 + 1) - s.agreeing
        apart = s.pairs - s.agreeing
        disagree = (
            f"{apart} of {counted(s.pairs, 'pair')} lie more than {AGREE:.0%} from the median "
            "ratio, as on a machine that does other work: quieten it"
            if apart
            else f"a record has {PAIRS} pairs and these are {s.pairs}"
        )
        found.append(f"{disagree}{' and' if apart else ':'} run it with --pairs {more}")
    elif not s.pairs:
        found.append("no pair has finished")
    return found


def p_text(p: float | None) -> str:
    """Return a p in words."""
    return "unknown" if p is None else f"{p:.1e}" if p < 1e-4 else f"{p:.4f}"

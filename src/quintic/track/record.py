"""The records of the track: one JSON file each, in the package, and their folder in docs/track.

A record holds every run, so that what it says can be computed again from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quintic.errors import QuinticError
from quintic.files import new_folder, write_json
from quintic.metrics_file import METRICS
from quintic.run_dir import CONFIG, ENVIRONMENT
from quintic.track.attempt import RESULT, Attempt, TimedRun, extents
from quintic.track.reference import PACKAGE, Target
from quintic.track.verdict import RunResult, Standing, Verdict, stand

RECORDS = PACKAGE / "track" / "records"
FORMAT = 1
REFERENCE = "reference"
"""Recipe of the record that all ratios are to."""
KEPT = (CONFIG, ENVIRONMENT, METRICS, RESULT)
"""Files of a run that go into the folder of a record."""


@dataclass(frozen=True)
class Record:
    """A run of the list: the reference, with ratio 1, or what beat all before it."""

    name: str
    date: str
    recipe: str
    changed: str
    """What it does otherwise, in words."""
    commit: str | None
    """Commit of its quintic; None: that of a release."""
    reference: dict[str, Any]
    """The commit of the reference, and that of the quintic which trained it here."""
    corpus: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    """Versions, processor and cores."""
    threads: int
    processes: int
    targets: tuple[Target, ...]
    extents: list[list[int]]
    """Seeds and pairs that were asked for, in the order in which they were."""
    seeds: int
    bits_per_byte: tuple[float, ...]
    p: tuple[float | None, ...] | None
    ratio: float
    low: float | None
    high: float | None
    median_s: float
    reference_median_s: float
    verdict: str
    config: dict[str, Any]
    runs: tuple[RunResult, ...]
    format: int = FORMAT

    @property
    def worst_p(self) -> float | None:
        """Return the largest p over the targets; None where one is not known."""
        if self.p is None or None in self.p:
            return None
        return max(p for p in self.p if p is not None)

    @property
    def interval(self) -> str:
        """Return the ratio with its interval, in words."""
        if self.low is None or self.high is None:
            return f"{self.ratio:.3f}"
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


def read_records(folder: Path = RECORDS) -> list[Record]:
    """Return the records, oldest first; raises `QuinticError` where a file is none."""
    found = [_read(path) for path in folder.glob("*.json")]
    return sorted(found, key=lambda r: (r.date, r.recipe != REFERENCE, -r.ratio))


def _read(path: Path) -> Record:
    try:
        found = json.loads(path.read_text())
        if found.get("format") != FORMAT:
            raise QuinticError(
                f"{path} has format {found.get('format')} and this quintic reads {FORMAT}: use the "
                "quintic that wrote it"
            )
        targets = tuple(Target(**target) for target in found.pop("targets"))
        runs = tuple(
            RunResult(**{**run, "bits_per_byte": run["bits_per_byte"] and (*run["bits_per_byte"],)})
            for run in found.pop("runs")
        )
        scores, p = tuple(found.pop("bits_per_byte")), found.pop("p")
        p = None if p is None else tuple(p)
        return Record(**found, targets=targets, runs=runs, bits_per_byte=scores, p=p)
    except QuinticError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise QuinticError(f"{path} is not a record of the track: restore it") from error


def standing_ratio(records: Sequence[Record]) -> float | None:
    """Return the ratio that a new record must be below; None where there is none yet."""
    return min((record.ratio for record in records), default=None)


def write_folder(
    folder: Path,
    attempt: Attempt,
    place: Path,
    results: Sequence[RunResult],
    verdict: Verdict,
    *,
    changed: str,
    first: bool,
) -> list[Record]:
    """Write the folder for a pull request, to be copied over a checkout, and return its records:
    that of the candidate, and where it would be the `first` that of the reference before it.

    Nothing is written, and nothing returned, where no pair has finished or a seed has diverged.
    """
    standing = stand(results, attempt.reference.targets)
    records = []
    if first and (found := _of_reference(attempt, place, results)) is not None:
        records.append(found)
    if standing.ratio is not None and standing.bits_per_byte is not None:
        verdict_text = verdict.text
        records.append(_record(attempt, place, results, standing, verdict_text, changed))
    shutil.rmtree(folder, ignore_errors=True)
    if not records:
        return []
    with new_folder(folder) as aside:
        for record in records:
            shipped = aside / "src" / "quintic" / "track" / "records"
            shipped.mkdir(parents=True, exist_ok=True)
            write_json(shipped / f"{record.name}.json", asdict(record))
        docs = aside / "docs" / "track" / records[-1].name
        for result in results:
            run = TimedRun(result.side, result.seed).name
            (docs / run).mkdir(parents=True)
            for name in KEPT:
                if (file := place / run / name).is_file():
                    shutil.copyfile(file, docs / run / name)
        write_json(docs / "config.json", attempt.config.to_dict())
    return records


def _record(
    attempt: Attempt,
    place: Path,
    results: Sequence[RunResult],
    standing: Standing,
    verdict: str,
    changed: str,
) -> Record:
    environment = _environment(place, "candidate", results)
    assert standing.bits_per_byte is not None
    assert standing.ratio is not None
    assert standing.median_s is not None and standing.reference_median_s is not None
    date = environment["date"][:10]
    return Record(
        name=f"{date}-{attempt.config.recipe}",
        date=date,
        recipe=attempt.config.recipe,
        changed=changed,
        commit=environment.pop("commit"),
        **_asked(attempt, place),
        environment=environment,
        processes=attempt.processes,
        seeds=standing.seeds,
        bits_per_byte=standing.bits_per_byte,
        p=standing.p,
        ratio=standing.ratio,
        low=standing.low,
        high=standing.high,
        median_s=standing.median_s,
        reference_median_s=standing.reference_median_s,
        verdict=verdict,
        config=attempt.config.to_dict(),
        runs=tuple(results),
    )


def _asked(attempt: Attempt, place: Path) -> dict[str, Any]:
    identity = attempt.identity()
    return {
        "reference": identity["reference"],
        "corpus": identity["corpus"],
        "threads": attempt.threads,
        "targets": attempt.reference.targets,
        "extents": extents(place),
    }


def _of_reference(attempt: Attempt, place: Path, results: Sequence[RunResult]) -> Record | None:
    """Return the record of the reference itself, whose time all others are counted in."""
    runs = [result for result in results if result.side == "reference"]
    # As if it were its own candidate, which gives its statistics.
    standing = stand(
        [*runs, *(RunResult(**{**vars(run), "side": "candidate"}) for run in runs)],
        attempt.reference.targets,
    )
    if standing.bits_per_byte is None or standing.median_s is None:
        return None
    environment = _environment(place, "reference", results)
    environment.pop("commit")
    date = environment["date"][:10]
    return Record(
        name=f"{date}-{REFERENCE}",
        date=date,
        recipe=REFERENCE,
        changed="the reference: laptop as it was when the track began",
        commit=attempt.sources.commit,
        **_asked(attempt, place),
        environment=environment,
        processes=1,
        seeds=standing.seeds,
        bits_per_byte=standing.bits_per_byte,
        p=standing.p,
        ratio=1.0,
        low=None,
        high=None,
        median_s=standing.median_s,
        reference_median_s=standing.median_s,
        verdict=REFERENCE,
        config=dict(attempt.reference.config),
        runs=tuple(runs),
    )


def _environment(place: Path, side: str, results: Sequence[RunResult]) -> dict[str, Any]:
    """Return what the first run of a side has recorded of where it ran."""
    run = next(result for result in results if result.side == side)
    path = place / TimedRun(run.side, run.seed).name / "environment.json"
    found: dict[str, Any] = json.loads(path.read_text())[0]
    kept = ("date", "commit", "quintic", "python", "torch", "platform", "device", "cores")
    return {name: found.get(name) for name in kept}

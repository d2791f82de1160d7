"""An attempt: what is asked, which runs that takes, and the folder that holds them.

attempt.json        what was asked; the same command continues
NN-SIDE/            the folder of a run, with its outcome in track.json
NN-SIDE.json, .log  the config it was started with, and what it printed
reference-COMMIT/   the sources of the reference
record/             what a pull request adds to the project (quintic.track.record)
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quintic.config import EMBEDDED, Config, flatten
from quintic.config.schema import dotted
from quintic.errors import QuinticError
from quintic.files import check_name, write_json
from quintic.run_dir import LOCK
from quintic.track.reference import PACKAGE, Reference, Sources
from quintic.track.verdict import SIDES, RunResult, Side

ATTEMPT, RESULT, RECORD = "attempt.json", "track.json", "record"


@dataclass(frozen=True)
class TimedRun:
    """One run of an attempt."""

    side: Side
    seed: int
    """Number of its pair too."""

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.seed:02}-{self.side}"


@dataclass(frozen=True)
class Attempt:
    """Everything that is asked of an attempt."""

    config: Config
    """The candidate's."""
    seeds: int
    pairs: int
    threads: int
    """Of a run, over all of its processes."""
    processes: int
    """Of a run of the candidate."""
    reference: Reference
    sources: Sources
    """The quintic of the reference."""
    hardware: str

    @property
    def runs(self) -> list[TimedRun]:
        """Return all runs in their order: pairs, of which every other begins with the candidate,
        so that a machine that grows slower or faster favours no side; then further seeds."""
        found = []
        for seed in range(1, max(self.seeds, self.pairs) + 1):
            sides = SIDES if seed % 2 else SIDES[::-1]
            found += [
                TimedRun(side, seed) for side in sides if side == "candidate" or seed <= self.pairs
            ]
        return found

    def steps(self, run: TimedRun) -> int:
        """Return the steps of a run."""
        if run.side == "candidate":
            return self.config.train.steps
        return int(self.reference.config["train"]["steps"])

    def config_of(self, run: TimedRun) -> dict[str, Any]:
        """Return the config that a run is started with, for the quintic that trains it."""
        if run.side == "candidate":
            return self.config.override(_own(self.config, run.seed)).to_dict()
        if self.sources.path is None:
            config = Config.from_dict(self.reference.config)
            return config.override(_own(config, run.seed)).to_dict()
        values: dict[str, Any] = copy.deepcopy(dict(self.reference.config))
        train, model = values["train"], values["model"]
        measured = _measured(train["steps"], model["context"], run.seed)
        for name, value in {**measured, "train.tensorboard": False}.items():
            section, field = name.split(".")
            values[section][field] = value
        return values

    def identity(self) -> dict[str, Any]:
        """Return all that must not change while the attempt goes on; seeds and pairs may grow."""
        return {
            "config": self.config.override(_own(self.config, 1)).to_dict(),
            "reference": {"commit": self.reference.commit, "trained_with": self.sources.commit},
            "corpus": {split: asdict(text) for split, text in self.reference.corpus.items()},
            "targets": [asdict(target) for target in self.reference.targets],
            "threads": self.threads,
            "processes": self.processes,
            "hardware": self.hardware,
            "sources": sources_digest(PACKAGE),
            "reference_sources": self.sources.path and sources_digest(self.sources.path),
        }


def check_no_attempt(run: Path) -> None:
    """Raise `QuinticError` where the folder of a run is that of an attempt, which drops what was
    not trained at one go, maybe while that is still trained."""
    folder, name = run.resolve().parent, run.resolve().name
    if (folder / ATTEMPT).exists() and re.fullmatch(rf"\d+-({'|'.join(SIDES)})", name):
        raise QuinticError(
            f"{run} is a run of the track's attempt in {folder}, which trains it at one go, since "
            f"its time counts: continue that with quintic track run and --out {folder}, or begin a "
            "run of your own with another --out"
        )


def _measured(steps: int, context: int, seed: int) -> dict[str, Any]:
    """Return the fields that each run of the track has, whatever its recipe says: they change
    nothing of what is trained. Validations are those that the clock knows."""
    return {
        "train.seed": seed,
        "train.device": "cpu",
        "train.eval_every": steps,
        "train.eval_tokens": context,
        "train.checkpoint_every": steps,
        "train.keep_checkpoints": 1,
        "train.log_every": 1,
    }


def _own(config: Config, seed: int) -> dict[str, Any]:
    """Return the same for a config of this quintic, which has fields besides."""
    return {
        **_measured(config.train.steps, config.model.context, seed),
        "train.keep_before_cooldown": False,
        "train.log_to": (),
        "train.sample_tokens": 0,
        "train.report": False,
        "train.diagnostics_every": None,
        "train.eval_tasks": None,
        "train.export_at_end": "none",
    }


def check_recipe(config: Config) -> None:
    """Raise `QuinticError` where a recipe is none of the track."""
    for field, value in (
        ("data.path", config.data.path),
        ("data.tokenizer", config.data.tokenizer),
    ):
        if value not in (EMBEDDED, None):
            raise QuinticError(
                f"{field} is {value}, and the track is of the embedded corpus with a vocabulary of "
                "data.embedded_vocab: leave it out"
            )
    if config.train.device not in ("auto", "cpu"):
        raise QuinticError(
            f"train.device is {config.train.device}, and the track is of CPUs: leave it out"
        )
    for field in ("target_loss", "patience"):
        if (value := getattr(config.train, field)) is not None:
            raise QuinticError(
                f"train.{field} is {value}, which looks at the held-out files to end the run, and "
                "the clock does not see it: use None"
            )


def sources_digest(folder: Path) -> str:
    """Return a digest of the Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


CHANGED = {
    "corpus": "of another corpus",
    "targets": "with other targets",
    "threads": "with another --threads",
    "processes": "with another --processes",
    "hardware": "on another machine",
    "sources": "by other sources of quintic",
    "reference": "with another --reference-checkout",
    "reference_sources": "with other sources of the reference",
}
"""In words, another value of what `Attempt.identity` has besides the config."""


def check_folder(folder: Path) -> None:
    """Raise `QuinticError` where a folder holds something and no attempt; looks only."""
    check_name(folder)
    if (folder / ATTEMPT).exists() or not folder.exists():
        return
    # What a start that was killed left is in nobody's way.
    if not folder.is_dir() or any(
        path.name != LOCK and "reference-" not in path.name for path in folder.iterdir()
    ):
        raise QuinticError(
            f"{folder} exists and is not the folder of an attempt: choose another --out"
        )


def begin(folder: Path, attempt: Attempt) -> None:
    """Write down what is asked, or find that the folder holds the same attempt.

    Raises `QuinticError` where it holds another.
    """
    # As the file gives it back, where a tuple is a list.
    path, asked = folder / ATTEMPT, json.loads(json.dumps(attempt.identity()))
    choose = "its times do not belong to these; choose another --out"
    if path.exists():
        try:
            found = json.loads(path.read_text())
            configs = [_fields(values.pop("config")) for values in (found, dict(asked))]
            extents = found.pop("extents")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise QuinticError(f"{path} is not the record of an attempt: {choose}") from error
        fields = sorted(n for n in {**configs[0], **configs[1]} if _differs(configs, n))
        other = [words for name, words in CHANGED.items() if found.get(name) != asked[name]]
        if fields:
            other.insert(0, f"with another {', '.join(fields)}")
        if other:
            raise QuinticError(f"{folder} holds an attempt {', '.join(other)}: {choose}")
    else:
        extents = []
    if (extent := [attempt.seeds, attempt.pairs]) not in extents:
        write_json(path, {**asked, "extents": [*extents, extent]})


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return dotted({name: value for name, value in config.items() if name != "recipe"})


def _differs(configs: list[dict[str, Any]], name: str) -> bool:
    missing = object()
    left, right = (config.get(name, missing) for config in configs)
    return bool(left != right)


def extents(folder: Path) -> list[list[int]]:
    """Return the seeds and pairs that were asked for, in the order in which they were."""
    found: list[list[int]] = json.loads((folder / ATTEMPT).read_text())["extents"]
    return found


def read_result(folder: Path, run: TimedRun) -> RunResult:
    """Return what became of a run; one that never came to its end is as if it had not begun."""
    try:
        found = json.loads((folder / run.name / RESULT).read_text())
        scores = found.pop("bits_per_byte")
        return RunResult(**found, bits_per_byte=None if scores is None else tuple(scores))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return RunResult(run.side, run.seed)


def write_result(folder: Path, run: TimedRun, result: RunResult) -> None:
    """Replace what is on record of a run."""
    write_json(folder / run.name / RESULT, asdict(result))


def changes(config: Config, reference: Reference) -> str:
    """Return in words the fields in which a config differs from the reference's."""
    before, after = (flatten(c) for c in (Config.from_dict(reference.config), config))
    skip = ("recipe", "train.seed", *_own(config, 1))
    return ", ".join(
        f"{name} {value}"
        for name, value in after.items()
        if name not in skip and before[name] != value
    )

"""The folder of a run: what it is made of, how it is created, found and locked.

config.json       the whole resolved config
environment.json  versions, device, commit, command line; one entry for each start
param_groups.txt  which parameter went to which optimizer
tokenizer.json    a copy of the dataset's; GPT-2's is only named, in environment.json
metrics.jsonl     one object a line (quintic.metrics)
diagnostics.jsonl the same, where train.diagnostics_every is set (quintic.diagnostics)
tensorboard/      the same as TensorBoard events; wandb/, trackio/ and mlflow/ where asked for
trackers/         the run's id, and each tracker's output (quintic.trackers)
samples.jsonl     what the model wrote after each validation (quintic.samples)
loss.png          redrawn at each validation
report.html       written at the end (quintic.report)
checkpoints/      step-00000100, ... (quintic.checkpoint)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import quintic
from quintic.config import Config
from quintic.errors import QuinticError
from quintic.files import check_name, write_json
from quintic.recipes import read_recipe

if TYPE_CHECKING:  # who only looks at a run does without, and all of them take time to import
    import torch
    from filelock import FileLock

CONFIG, ENVIRONMENT, PARAM_GROUPS = "config.json", "environment.json", "param_groups.txt"
FIGURE, REPORT, SAMPLES = "loss.png", "report.html", "samples.jsonl"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
LOCK = ".lock"


@contextlib.contextmanager
def default_folder(stem: str) -> Iterator[Path]:
    """Take runs/STEM-N with the first free N: an empty folder, so that no other process takes it,
    which is gone at the end where nothing was written into it."""
    for number in itertools.count(1):
        folder = Path("runs") / f"{stem}-{number}"
        found_runs = folder.parent.exists()
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            if not os.path.lexists(folder):  # it is the parent that is something else
                raise
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
            if not found_runs:
                folder.parent.rmdir()


def holds_run(folder: Path) -> bool:
    """Return whether this is the folder of a run, however far that has come."""
    return (folder / CONFIG).exists()


def check_free(folder: Path) -> None:
    """Raise `QuinticError` where a new run would write over something, or could not be read."""
    check_name(folder)
    if not folder.exists():
        return
    if holds_run(folder):
        # Where nothing was saved yet, as of a run that diverged, there is nothing to keep.
        saved = any(folder.glob(f"{CHECKPOINTS}/step-*"))
        or_else = "or choose another --out"
        if not saved:
            or_else = "choose another --out, or remove it, since it has no checkpoint"
        raise QuinticError(
            f"{folder} already holds a run: continue it with --resume {folder}, {or_else}"
        )
    # What a start that was killed left, before it was a run, is in nobody's way.
    left_over = {folder / PARAM_GROUPS, folder / LOCK, *folder.glob(f".{CONFIG}.*.tmp")}
    if not folder.is_dir() or set(folder.iterdir()) - left_over:
        raise QuinticError(f"{folder} exists and is not an empty folder: choose another --out")


def create(folder: Path, config: Config, param_groups: str) -> None:
    """Make the folder of a new run and write what it is; raises `OSError` and leaves nothing."""
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / PARAM_GROUPS).write_text(param_groups)
        # Last, since its presence is what makes the folder a run.
        write_config(folder, config)
    except OSError as error:
        error.filename = error.filename or str(folder)  # a write names no file
        (folder / PARAM_GROUPS).unlink(missing_ok=True)
        folder.rmdir()
        raise


def write_config(folder: Path, config: Config) -> None:
    """Write `config.json`; a resumed run keeps what was changed, such as its number of steps."""
    write_json(folder / CONFIG, config.to_dict())


def read_config(folder: Path) -> Config:
    """Read the config of a run; raises `QuinticError` where the folder is none."""
    path = folder / CONFIG
    if not path.exists():
        what = "holds no run" if folder.is_dir() else "does not exist"
        what = f"{what} ({CONFIG} is missing)" if not folder.is_file() else "is a file"
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        hints = [
            *(f", which is {outer}" for outer in folder.parents if holds_run(outer)),
            *(f", such as {inner}" for inner in inside if holds_run(inner)),
            "",
        ]
        raise QuinticError(f"{folder} {what}: name the folder that quintic train wrote{hints[0]}")
    if _is_of_transformers(path):
        raise QuinticError(
            f"{folder} is a model of transformers and no run: quintic import {folder} --out RUN "
            "makes the folder of a run of it"
        )
    return read_recipe(path)


def _is_of_transformers(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return isinstance(found, dict) and "architectures" in found
    return False


def keep_tokenizer(folder: Path, spec: str | None) -> dict[str, str | None]:
    """Keep a dataset's tokenizer in a run's folder, so that the model speaks wherever it goes.

    Returns what `record_environment` is to record of it, for `kept_tokenizer`.
    """
    from quintic.data.bpe_tokenizer import TOKENIZER_FILE, BpeTokenizer
    from quintic.data.gpt2_tokenizer import GPT2
    from quintic.data.load_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(spec) if spec not in (None, GPT2.name) else None
    if isinstance(tokenizer, BpeTokenizer):
        tokenizer.save(folder)
        return {"tokenizer": TOKENIZER_FILE, "tokenizer_fingerprint": tokenizer.fingerprint}
    (folder / TOKENIZER_FILE).unlink(missing_ok=True)
    return {"tokenizer": spec}


def kept_tokenizer(folder: Path) -> str | None:
    """Return the tokenizer that the folder keeps, as `load_tokenizer` takes it; None where that of
    the dataset is not known, or quintic 0.1 trained.

    Raises `QuinticError` where the file is not the one that the run has kept.
    """
    from quintic.data.bpe_tokenizer import TOKENIZER_FILE
    from quintic.data.gpt2_tokenizer import GPT2
    from quintic.data.load_tokenizer import tokenizer_info

    starts = read_environments(folder)
    path = folder / TOKENIZER_FILE
    if not path.exists():
        return GPT2.name if starts and starts[-1].get("tokenizer") == GPT2.name else None
    recorded = starts[-1].get("tokenizer_fingerprint") if starts else None
    if isinstance(recorded, str) and (found := tokenizer_info(str(path)).fingerprint) != recorded:
        raise QuinticError(
            f"{path} is not the tokenizer of the run (fingerprint {found[:12]}, not "
            f"{recorded[:12]}): bring that back, which is in the dataset's folder too"
        )
    return str(path)


def lock(folder: Path) -> FileLock:
    """Hold the folder for this process; raises `QuinticError` where another one trains in it."""
    from filelock import FileLock, Timeout

    held = FileLock(folder / LOCK, timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise QuinticError(
            f"{folder} is in use by another process that trains in it: wait for it, or stop it"
        ) from error
    for left_over in folder.glob(".*.tmp"):  # of a process that was killed
        left_over.unlink(missing_ok=True)
    return held


def record_environment(folder: Path, device: torch.device, **facts: Any) -> None:
    """Append this start to `environment.json`, with what else is to be known of it."""
    start = {**describe_environment(device), **facts}
    write_json(folder / ENVIRONMENT, [*read_environments(folder), start])


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of `environment.json`; what is damaged of it is merely not known."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / ENVIRONMENT).read_text())
        if isinstance(found, list):
            return [start for start in found if isinstance(start, dict)]
    return []


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device, commit, command line and date: what a result depends on."""
    import numpy
    import torch

    from quintic.device import device_name

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quintic": quintic.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": " ".join(["quintic", *sys.argv[1:]]),
    }


def _commit() -> str | None:
    """Return the commit of the sources, with + where they have changes; None outside a checkout."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None

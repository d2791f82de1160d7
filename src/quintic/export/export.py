"""An export: a folder that a target writes and verifies, and that has its name only then."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quintic.errors import QuinticError
from quintic.export.card import CARD_FILE
from quintic.export.gguf_file import write_gguf
from quintic.export.hf_folder import write_hf
from quintic.export.onnx import write_onnx
from quintic.export.source import Source
from quintic.files import check_name, new_folder

Log = Callable[[str], None]

TARGETS: dict[str, Callable[..., None]] = {
    "hf": write_hf,
    "gguf": write_gguf,
    "onnx": write_onnx,
}
"""The values of `--to`. Each takes a `Source`, an empty folder and a `Log`, and options of its own.
It writes into the folder, loads what it has written with the tool that it is for, where that is
installed, and says what it found; it raises `QuinticError` where the model cannot be expressed, or
does not compute what quintic's does."""


def default_out(run: Path, target: str) -> Path:
    """Return the folder of a run's export where no other is named."""
    return run / "export" / target


def check_out(out: Path) -> None:
    """Raise `QuinticError` where an export would write over something."""
    check_name(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise QuinticError(
            f"{out} exists and is not an empty folder: choose another --out, or remove it"
        )


def check_same(source: Source, target: str, out: Path, log: Log, **options: Any) -> None:
    """Raise `QuinticError` unless a folder holds what the run's export is now, but for its card;
    the model is exported aside, and verified, to see."""
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
        TARGETS[target](source, Path(aside), log, **options)
        names = {path.name for folder in (out, Path(aside)) for path in folder.iterdir()}
        same, *_ = filecmp.cmpfiles(out, aside, names, shallow=False)
    if differing := sorted(names - {*same, CARD_FILE}):
        raise QuinticError(
            f"{out} is not what {source.trained.folder} is exported as now ({differing[0]} "
            "differs): choose another --out, or remove it"
        )


def export(source: Source, target: str, out: Path, log: Log, **options: Any) -> None:
    """Write the model for a target, with its options, into the folder `out`, which appears when it
    is verified.

    Raises `QuinticError` as `check_out` and the target do, and `OSError` where the disk does not
    take it, and leaves nothing behind.
    """
    check_out(out)
    with new_folder(out) as folder:
        TARGETS[target](source, folder, log, **options)

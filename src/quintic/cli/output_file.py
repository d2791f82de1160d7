"""The file that an option names, looked at before the work is done that goes into it."""

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from quintic.errors import QuinticError, reason, way_out
from quintic.run_dir import CONFIG

PROBE_BYTES = 1 << 16
"""Bytes for which there must be room: as many as the figure of a few runs has."""


def check_writable(path: Path, option: str = "--out") -> None:
    """Raise `QuinticError` where no file can be written there."""
    if not path.parent.is_dir():
        raise QuinticError(f"{option} {path}: there is no folder {path.parent}; create it first")
    try:
        with TemporaryFile(dir=path.parent) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise QuinticError(
            f"{option} {path} cannot be written: {reason(error)}; {way_out(error)}"
        ) from error
    if path.is_dir():
        raise QuinticError(f"{option} {path} is a folder: name a file")


def check_result_file(path: Path, command: str, kind: str) -> None:
    """Raise `QuinticError` where `--out` cannot be written as a figure, a page or numbers of a
    command, or holds something else already; `kind` is what its numbers are."""
    if path.suffix not in (".png", ".html", ".json"):
        raise QuinticError(
            f"--out {path} ends in {path.suffix or 'nothing'!r}: it must end in .png for a figure, "
            ".html for a page or .json for the numbers"
        )
    check_writable(path)
    if not path.exists():
        return
    if (path.parent / CONFIG).exists():
        raise QuinticError(
            f"--out {path} would replace a file of the run in {path.parent}: choose another name"
        )
    if path.suffix == ".json":
        with suppress(ValueError, TypeError):
            if command in json.loads(path.read_text()):
                return
        raise QuinticError(
            f"--out {path} exists and is no {kind}: choose another name, or remove it"
        )

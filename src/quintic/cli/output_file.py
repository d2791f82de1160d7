"""The file that an option names, looked at before the work is done that goes into it."""

from pathlib import Path
from tempfile import TemporaryFile

from quintic.errors import QuinticError, reason, way_out

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

"""The folder that an import or an export of tokens makes."""

from pathlib import Path

from quintic.errors import QuinticError


def check_out(out: Path) -> None:
    """Raise `QuinticError` where it would be written over something."""
    if out.exists() and not out.is_dir():
        raise QuinticError(f"--out {out} is a file: name a folder")
    if out.exists() and any(out.iterdir()):
        raise QuinticError(f"--out {out} holds other files: name a new or an empty folder")

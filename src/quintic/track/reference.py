"""The reference of the track: a frozen config, the commit that it belongs to, and the target."""

from __future__ import annotations

import compileall
import functools
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintic.errors import QuinticError
from quintic.files import new_folder
from quintic.track.texts import Corpus, SplitText

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Target:
    """Bits per byte that the mean over seeds must be below, on the first bytes of the held-out
    files."""

    first_bytes: int | None
    """None: all of them."""
    bits_per_byte: float

    @property
    def place(self) -> str:
        """Return in words which bytes they are."""
        return (
            f"the first {self.first_bytes:,} held-out bytes"
            if self.first_bytes
            else ("all held-out bytes")
        )


@dataclass(frozen=True)
class Reference:
    """The run that all others are timed against."""

    commit: str
    """Commit whose quintic trains it, where that is at hand."""
    python: str
    """Version of Python whose standard library is the corpus."""
    corpus: Corpus
    targets: tuple[Target, ...]
    config: Mapping[str, Any]
    """Config as that commit reads it, which may be an earlier format than today's."""

    @property
    def first_bytes(self) -> list[int | None]:
        """Return the bytes of each target."""
        return [target.first_bytes for target in self.targets]


@functools.cache
def read_reference() -> Reference:
    """Return the reference that this quintic comes with."""
    found = json.loads(Path(__file__).with_name("reference.json").read_text())
    return Reference(
        commit=found["commit"],
        python=found["python"],
        corpus={split: SplitText(**text) for split, text in found["corpus"].items()},
        targets=tuple(Target(**target) for target in found["targets"]),
        config=found["config"],
    )


def check_corpus(found: Corpus, reference: Reference, python: str) -> None:
    """Raise `QuinticError` where the corpus of this Python is not that of the reference."""
    if found != reference.corpus:
        raise QuinticError(
            f"the standard library of this Python {python} is another corpus (held-out digest "
            f"{found['val'].sha256[:12]}) than the track's (Python {reference.python}, "
            f"{reference.corpus['val'].sha256[:12]}), so that bits per byte do not compare: run "
            f"quintic with Python {reference.python} as python.org releases it"
        )


@dataclass(frozen=True)
class Sources:
    """The quintic that trains the reference."""

    commit: str | None
    """Its commit; None: it is the quintic of the candidate, or a checkout without one."""
    path: Path | None
    """Folder that holds its package; None: it is the quintic of the candidate."""


def reference_sources(asked: str | None, reference: Reference, folder: Path) -> Sources:
    """Return the quintic for the reference: that of a checkout's folder or of a revision of the
    repository that this quintic lies in, unpacked into `folder`; by default the reference's own
    commit, or this quintic where no repository has it.

    Raises `QuinticError` where what is asked for is neither.
    """
    if asked is not None and Path(asked).is_dir():
        path = Path(asked).resolve() / "src"
        if not (path / "quintic" / "__init__.py").is_file():
            raise QuinticError(
                f"--reference-checkout {asked} has no src/quintic: name a checkout of quintic, or "
                "a revision"
            )
        return Sources(_git(path, "rev-parse", "HEAD"), path)
    commit = _git(PACKAGE, "rev-parse", "--verify", f"{asked or reference.commit}^{{commit}}")
    if commit is None and asked is None:
        return Sources(None, None)
    unpacked = folder / f"reference-{(commit or '')[:12]}"
    if commit is None or not (unpacked.is_dir() or _unpack(commit, unpacked)):
        raise QuinticError(
            f"--reference-checkout {asked or reference.commit} is neither a folder nor a revision "
            f"of quintic that a repository around {PACKAGE} has: name a checkout of it"
        )
    return Sources(commit, unpacked / "src")


def _unpack(commit: str, folder: Path) -> bool:
    """Unpack the sources of a commit, compiled as those of the candidate are; return whether the
    commit has any."""
    root = _git(PACKAGE, "rev-parse", "--show-toplevel")
    command = ["git", "-C", str(root), "archive", "--format=tar", commit, "src/quintic"]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        return False
    with new_folder(folder) as aside, tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(aside, filter="data")
        compileall.compile_dir(aside, quiet=2)
    return True


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says; None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

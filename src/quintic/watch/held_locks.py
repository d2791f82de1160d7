"""Which files a process of this machine holds a lock on, without asking for the lock, which would
keep a training from starting in that moment."""

from __future__ import annotations

import os
import re
from pathlib import Path

LOCKS = Path("/proc/locks")
"""Where Linux says so; elsewhere nothing is known."""

FileId = tuple[int, int, int]


def held_locks() -> frozenset[FileId]:
    """Return the files that are locked with flock, which is what filelock does: the major and the
    minor number of the device, and the inode."""
    try:
        text = LOCKS.read_text()
    except OSError:
        return frozenset()
    found = re.findall(r"FLOCK .* ([0-9a-f]+):([0-9a-f]+):(\d+) ", text)
    return frozenset((int(major, 16), int(minor, 16), int(inode)) for major, minor, inode in found)


def is_held(path: Path, held: frozenset[FileId]) -> bool:
    """Return whether a file is among the locked ones."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return (os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino) in held

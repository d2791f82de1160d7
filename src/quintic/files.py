"""Files that are whole or absent, and what tells two files apart."""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from quintic.errors import QuinticError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends without an exception.

    The bytes go to a hidden neighbour first, so a reader sees the old file or the new one, never
    a part of either, and a crash or a full disk leaves the old one as it was. Raises `OSError`
    with the name of `path` where the folder cannot be written, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            # Without this a power cut after the rename can leave the new name on empty blocks.
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        # A write names no file, and nobody knows the hidden one.
        if error.errno is not None and error.filename in (None, str(aside)):
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that takes its name when the block ends without an exception, and is gone where
    it ends with one; there must be none of that name, or an empty one.

    Yields the hidden neighbour that it is until then. An `OSError` about that gets its later name.
    Neighbours that processes of this host left which were killed are removed.
    """
    made = [outer for outer in folder.parents if not outer.exists()]
    begin = f".{folder.name}.{socket.gethostname()}."
    aside = folder.with_name(f"{begin}{os.getpid()}.tmp")
    try:
        _remove_left_over(folder.parent, begin)
        aside.mkdir(parents=True)
        yield aside
        for path in aside.rglob("*"):
            fsync_path(path)
        aside.replace(folder)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None:
            # A write names no file, and nobody knows the hidden one.
            error.filename = str(error.filename or folder).replace(str(aside), str(folder))
        shutil.rmtree(aside, ignore_errors=True)
        for outer in made:
            if outer.is_dir() and not any(outer.iterdir()):
                outer.rmdir()
        raise
    fsync_path(folder.parent)


def _remove_left_over(parent: Path, begin: str) -> None:
    """Remove what `new_folder` made under names that begin so in processes that are no more. One
    with our own number is such a process: in a container each may have the same."""
    name = re.compile(re.escape(begin) + r"(\d+)\.tmp")
    for path in parent.glob(".*.tmp"):
        found = name.fullmatch(path.name)
        if found and path.is_dir() and not _runs_elsewhere(int(found[1])):
            shutil.rmtree(path)


def _runs_elsewhere(pid: int) -> bool:
    """Whether a process that is not this one has a number, or may have it."""
    if pid == os.getpid():
        return False
    if os.name == "nt":
        return True  # where signal 0 is a Ctrl-C
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON; raises as `replacing` does."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def parse_json(text: bytes) -> Any:
    """Return what a JSON text says.

    Raises `QuinticError` where an object has a key twice, of which Python takes the last without a
    word, and `ValueError` where it is no JSON, or no UTF-8.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise QuinticError(f"it has {twice!r} twice in one object: keep one")
        return found

    return json.loads(text.decode(), object_pairs_hook=once)


def fsync_path(path: Path) -> None:
    """Put a file's content or a folder's names on disk: they survive a power cut after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_name(folder: Path) -> None:
    """Raise `QuinticError` where a folder's name is not UTF-8, which safetensors cannot read from,
    and TensorBoard not write to."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise QuinticError(
            f"{str(folder)!r} is not UTF-8, and no run can be read from a folder of such a name: "
            "name another folder, or rename this one"
        ) from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

import os
import socket
from pathlib import Path

import pytest

from quintic.files import new_folder, replacing

HOST = socket.gethostname()


def test_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), replacing(path) as file:
        file.write(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_names_the_file_and_not_its_hidden_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "file"
    with pytest.raises(OSError, match="absent/file") as opening, replacing(path):
        pass
    assert opening.value.filename == str(path)
    with pytest.raises(OSError, match="No space") as writing, replacing(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert writing.value.filename == str(tmp_path / "file")


def test_what_killed_processes_left_of_a_new_folder_is_removed(tmp_path: Path) -> None:
    ended = 2**22 + 1  # beyond the numbers that Linux and macOS give to processes
    for name in (ended, os.getpid(), "9" * 30):  # in a container the next has the same number
        left_over = tmp_path / f".out.{HOST}.{name}.tmp"
        left_over.mkdir()
        (left_over / "model").write_text("half")
    kept = {
        f".out.{HOST}.{os.getppid()}.tmp",
        f".out.{HOST}-2.{ended}.tmp",  # where a folder is shared, another host has other processes
        f".other.{HOST}.{ended}.tmp",
        "out.tmp",
    }
    for name in kept:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "model").write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", *kept}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]

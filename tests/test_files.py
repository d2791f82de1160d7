from pathlib import Path

import pytest

from quintic.files import replacing


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

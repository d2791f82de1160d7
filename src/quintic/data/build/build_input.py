"""The input of a build, told by its content: a build goes on only with what it has read so far."""

import hashlib
from collections.abc import Sequence
from typing import Any

from quintic.data.build.chunks import Position
from quintic.data.build.text_files import TextFile, unreadable


class BuildInput:
    """The files of a build with a hash of what each holds.

    With `needed_whole` nothing of them may change while a build is interrupted: a vocabulary is
    trained on them all. Raises `QuinticError` for a file that cannot be read.
    """

    def __init__(self, files: Sequence[TextFile], needed_whole: bool) -> None:
        self._files, self._needed_whole = files, needed_whole
        self.listed = [[file.name, file.size, _content(file, file.size)] for file in files]
        """Name, size and content of each file, as JSON has them."""

    def plan(self) -> dict[str, Any]:
        """Return what must be the same for a finished build to be that of this input."""
        names, contents = hashlib.sha256(), hashlib.sha256()
        for name, size, content in self.listed:
            names.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
            contents.update(f"{content}\n".encode())
        return {
            "input_files": len(self.listed),
            "input_bytes": sum(file.size for file in self._files),
            "input_sha256": names.hexdigest(),
            "input_content": contents.hexdigest(),
        }

    def changed(self, listed: Sequence[list[Any]], position: Position) -> str | None:
        """Return a file that was read before a position and is another now, None if all are as an
        earlier process listed them.

        A packed file within which the position is may have been cut short: it may go on behind the
        size that it had.
        """
        read = len(listed) if self._needed_whole else position.file + (position.offset > 0)
        for index, (was, now) in enumerate(zip(listed[:read], self.listed, strict=False)):
            file, (name, size, content) = self._files[index], was
            longer = file.packing and index == position.file and now[0] == name and now[1] > size
            if now != was and not (longer and _content(file, size) == content):
                return str(name)
        if len(self.listed) < read or (self._needed_whole and len(self.listed) != read):
            return f"one of {len(listed):,} files"
        return None


def _content(file: TextFile, size: int) -> str:
    try:
        return file.content(size)
    except OSError as error:
        raise unreadable(file.name, error) from error

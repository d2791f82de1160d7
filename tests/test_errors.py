"""What errors of the system and of PyTorch become in words."""

import errno
import os
from pathlib import Path

import pytest
import torch

from quintic.errors import counted, memory_reason, one_line, reason, system_error, way_out


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/some/file")


def test_room_is_the_way_out_where_room_is_missing_and_nowhere_else() -> None:
    """Fails where every refusal of the system is answered alike."""
    roomy = {n for n in errno.errorcode if "make room" in way_out(os_error(n))}
    assert roomy == {errno.ENOSPC, errno.EDQUOT}
    assert way_out(os_error(errno.EACCES)) == "check its permissions, or choose another place"
    assert way_out(os_error(errno.EMFILE)) == "raise the limit on open files (ulimit -n)"
    assert way_out(os_error(errno.EIO)) == "check the path and the disk"


def test_the_systems_words_are_found_at_any_depth(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            (tmp_path / "absent").read_text()
        except OSError as error:
            raise RuntimeError("a wrapper's own words") from error
    assert reason(caught.value) == "No such file or directory"
    assert way_out(caught.value) == "check the path"
    assert one_line(os_error(errno.EACCES)) == "Permission denied"
    assert system_error(RuntimeError("no system")) is None
    assert reason(RuntimeError("first\nlast\n")) == "last"


def test_memory_is_asked_for_in_gib_and_not_in_the_words_of_an_allocator() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert "alloc" in str(caught.value)
    assert memory_reason(caught.value) == "1048576.00 GiB more were asked for"
    assert memory_reason(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."))
    assert memory_reason(MemoryError()) == "more was asked for than there is"
    assert memory_reason(RuntimeError("shape mismatch")) is None


def test_a_number_has_its_noun() -> None:
    assert [counted(n, "step") for n in (0, 1, 2, 1100)] == [
        *("0 steps", "1 step", "2 steps", "1,100 steps")
    ]
    assert [counted(n, "matrix", "matrices") for n in (1, 2)] == ["1 matrix", "2 matrices"]

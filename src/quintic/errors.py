"""The exceptions for what a user can cause, and what their messages are made of."""

import errno
import importlib.util
import re
import shlex
from collections.abc import Iterable
from itertools import islice
from pathlib import Path


class QuinticError(ValueError):
    """Input that cannot be used: the message names the value, the rule it breaks and the way out.

    The command line prints the message as one line and exits with code 2.
    """

    exit_code = 2


class LostRankError(QuinticError):
    """Another process of the run is gone: nobody's mistake, so starting again may help."""

    exit_code = 1


def one_line(error: BaseException) -> str:
    """Return an exception's name and the first line of its text; of the operating system's, its
    words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


WAYS_OUT = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or use another file system",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "choose another place",
    errno.EISDIR: "name a file",
    errno.EEXIST: "choose another place, or remove what is there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the symbolic link",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close what has files open",
    errno.ENOMEM: "free memory",
    errno.EAGAIN: "raise the limit on processes (ulimit -u)",
    errno.ESTALE: "mount the file system again",
}
"""What to do about an error of the operating system, by its number."""


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an exception is or comes from, at whatever
    depth it lies; None where there is none."""
    seen: BaseException | None = error
    while seen is not None and not (isinstance(seen, OSError) and seen.strerror):
        seen = seen.__cause__ or seen.__context__
    return seen


def reason(error: BaseException) -> str:
    """Return in one line why something failed: the operating system's own words where there are
    any, ours where memory did not suffice, else the last line of the error's text."""
    if (found := system_error(error)) is not None:
        return str(found.strerror)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return memory_reason(error) or (lines[-1] if lines else type(error).__name__)


def way_out(error: BaseException) -> str:
    """Return what to do about an error: for the operating system's by its number."""
    found = system_error(error)
    unknown = "check the path and the disk" if found else "see to that"
    return WAYS_OUT.get(found.errno or 0, unknown) if found else unknown


def start_lower(lr_options: str, folder: Path) -> str:
    """Return what to do about a run in a folder that has diverged, in words."""
    return (
        f"start again with a lower {lr_options}, in another --out, or in this one once {folder} is "
        "removed"
    )


def memory_reason(error: BaseException) -> str | None:
    """Return in words that memory did not suffice; None for an error of another kind.

    PyTorch's allocator of a CPU raises a plain RuntimeError, whose text names a line of its source.
    """
    text = str(error)
    if isinstance(error, RuntimeError) and (
        asked := re.search(r"[Tt]ried to allocate (?:(\d+) bytes|([\d.]+ .iB))", text)
    ):
        return f"{asked[2] or f'{int(asked[1]) / 2**30:.2f} GiB'} more were asked for"
    if isinstance(error, MemoryError) or "out of memory" in text:
        return "more was asked for than there is"
    return None


def in_command(path: object) -> str:
    """Return a path as a shell takes it, for a command that a reader may copy."""
    return shlex.quote(str(path))


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 step, 1,100 steps."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def all_of(number: int, noun: str) -> str:
    """Return words for every one of so many: the one run, both runs, all 3 runs."""
    return {1: f"the one {noun}", 2: f"both {noun}s"}.get(number, f"all {number:,} {noun}s")


def names_in_line(names: Iterable[str]) -> str:
    """Return names as a message shows them: the first ten, shortened, and those that would not
    print in a line as Python writes them."""
    first = [name if len(name) <= 60 else f"{name[:57]}..." for name in islice(names, 11)]
    shown = [
        name if name.isprintable() and name.strip() == name != "" else repr(name)
        for name in first[:10]
    ]
    return ", ".join(shown) + (", ..." if len(first) > 10 else "")


def require_package(module: str, extra: str, what: str) -> None:
    """Raise `QuinticError` where a module that one of quintic's extras installs is missing.

    `what` begins the message: the command or the option that needs the module.
    """
    found = importlib.util.find_spec(module)
    # A folder of that name where Python is started, as wandb leaves one, is no package.
    if found is None or found.origin is None:
        raise QuinticError(f"{what} needs the package {module}: pip install 'quintic[{extra}]'")

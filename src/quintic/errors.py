"""The exceptions for what a user can cause, and what their messages are made of."""

import importlib.util


class QuinticError(ValueError):
    """Input that cannot be used: the message names the value, the rule it breaks and the way out.

    The command line prints the message as one line and exits with code 2.
    """

    exit_code = 2


class LostRankError(QuinticError):
    """Another process of the run is gone: nobody's mistake, so starting again may help."""

    exit_code = 1


def one_line(error: BaseException) -> str:
    """Return an exception's name and the first line of its text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def require_package(module: str, extra: str, what: str) -> None:
    """Raise `QuinticError` where a module that one of quintic's extras installs is missing.

    `what` begins the message: the command or the option that needs the module.
    """
    if importlib.util.find_spec(module) is None:
        raise QuinticError(f"{what} needs the package {module}: pip install 'quintic[{extra}]'")

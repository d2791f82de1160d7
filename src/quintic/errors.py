"""The exceptions for what a user can cause, and the check for a package that is not installed."""

import importlib.util


class QuinticError(ValueError):
    """Input that cannot be used: the message names the value, the rule it breaks and the way out.

    The command line prints the message as one line and exits with code 2.
    """

    exit_code = 2


class LostRankError(QuinticError):
    """Another process of the run is gone: nobody's mistake, so starting again may help."""

    exit_code = 1


def require_package(module: str, extra: str, what: str) -> None:
    """Raise `QuinticError` where a module that one of quintic's extras installs is missing.

    `what` begins the message: the command or the option that needs the module.
    """
    if importlib.util.find_spec(module) is None:
        raise QuinticError(f"{what} needs the package {module}: pip install 'quintic[{extra}]'")

"""The one exception for what a user can cause."""


class QuinticError(ValueError):
    """Input that cannot be used: the message names the value, the rule it breaks and the way out.

    The command line prints the message as one line and exits with code 2.
    """

    exit_code = 2


class LostRankError(QuinticError):
    """Another process of the run is gone: nobody's mistake, so starting again may help."""

    exit_code = 1

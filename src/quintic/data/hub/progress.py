"""How far a fetch or a push has come."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Transfer:
    """Bytes and files, what was there before included."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


Progress = Callable[[Transfer], None]
"""Called from any thread, one at a time."""

"""Gradients to updates: orthogonalisation, Muon, parameter groups and schedule.

`from quintic.optim import Muon` imports it then; importing the package imports nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintic.optim.muon import Muon
else:  # a type checker knows the name above, and no others

    def __getattr__(name: str) -> Any:
        if name != "Muon":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from quintic.optim.muon import Muon

        return Muon


__all__ = ["Muon"]

"""quintic pretrains GPT-2-class language models with the Muon optimizer.

Importing the package imports nothing else: `import quintic` is instant and touches neither the
network nor a device. A name of `__all__` is imported when it is first used. Start reading at
`quintic.train`; `docs/dataflow.md` is the map.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintic.config import Config
    from quintic.continuation import continue_run, start_from
    from quintic.diagnostics.record import read_diagnostics
    from quintic.errors import QuinticError
    from quintic.metrics_file import read_metrics
    from quintic.optim.module_groups import param_groups
    from quintic.optim.muon import Muon
    from quintic.optim.muon_with_adamw import MuonWithAdamW
    from quintic.recipes import get_recipe
    from quintic.resuming import resume
    from quintic.setup import start
    from quintic.train import train_run
    from quintic.trained import load_trained
else:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


__version__ = "0.2.0"
__all__ = [
    "Config",
    "Muon",
    "MuonWithAdamW",
    "QuinticError",
    "continue_run",
    "get_recipe",
    "load_trained",
    "param_groups",
    "read_diagnostics",
    "read_metrics",
    "resume",
    "start",
    "start_from",
    "train_run",
]

_MODULES = {
    "Config": "quintic.config",
    "Muon": "quintic.optim.muon",
    "MuonWithAdamW": "quintic.optim.muon_with_adamw",
    "QuinticError": "quintic.errors",
    "continue_run": "quintic.continuation",
    "get_recipe": "quintic.recipes",
    "load_trained": "quintic.trained",
    "param_groups": "quintic.optim.module_groups",
    "read_diagnostics": "quintic.diagnostics.record",
    "read_metrics": "quintic.metrics_file",
    "resume": "quintic.resuming",
    "start": "quintic.setup",
    "start_from": "quintic.continuation",
    "train_run": "quintic.train",
}


def __dir__() -> list[str]:
    return ["__version__", *__all__]

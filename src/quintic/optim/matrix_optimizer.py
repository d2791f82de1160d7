"""The optimizer of the block matrices by its name: what is true of it, and how it is built.

Registered ones stand in `OptimConfig`, a line each. Any other is a class of the user's own, named
MODULE:Class, a `torch.optim.Optimizer` that takes (params, lr=..., **options): `docs/extending.md`.
What it does wrong is said in one line, since it is an input like any other.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintic.config import CustomConfig, MatrixOptimizer, OptimConfig, matrix_optimizers
from quintic.errors import QuinticError
from quintic.optim.whole import WholeMatrices

Groups = list[dict[str, Any]]
"""Parameter groups with `names`, `shapes`, `lr`, `base_lr` and `weight_decay`."""


@dataclass(frozen=True)
class Placement:
    """Says where and how an optimizer computes."""

    device: torch.device
    compile: bool = False
    whole: WholeMatrices | None = None
    """Where the parameters are rows of larger matrices, what brings them together."""


def facts_of(name: str) -> MatrixOptimizer:
    """Return what is true of the optimizer `name`; raises `QuinticError` where it is no class."""
    if registered := matrix_optimizers().get(name):
        return registered
    cls = _load_class(name, name)
    return MatrixOptimizer(name, name, elementwise=bool(getattr(cls, "elementwise", False)))


def weight_decay_of(config: OptimConfig) -> float:
    """Return the weight decay of the block matrices: as configured, or a class's own default."""
    settings = config.matrix_settings
    if not isinstance(settings, CustomConfig):
        return float(getattr(settings, "weight_decay", 0.0))
    cls = _load_class(facts_of(config.matrices).built_by, config.matrices)
    parameter = inspect.signature(cls).parameters.get("weight_decay")
    default = 0.0 if parameter is None else parameter.default
    found = settings.keywords.get("weight_decay", default)
    return float(found) if isinstance(found, int | float) else 0.0


def build_optimizer(
    name: str, config: OptimConfig, groups: Groups, placement: Placement
) -> torch.optim.Optimizer:
    """Build the optimizer `name` of some parameter groups.

    Raises `QuinticError` where it needs a package that is not installed, and where a class of the
    user's own cannot be imported or does not take what it is given.
    """
    registered, facts = matrix_optimizers(), facts_of(name)
    if facts.package and importlib.util.find_spec(facts.package) is None:
        *others, last = [n for n, other in registered.items() if not other.package]
        raise QuinticError(
            f"optim.matrices {name} needs the package {facts.package}: install "
            f"quintic[optimizers], or choose --optim.matrices {', '.join(others)} or {last}"
        )
    settings: Any = getattr(config, name) if name in registered else config.custom
    builder = _load(facts.built_by, name)
    if not isinstance(builder, type):
        optimizer: torch.optim.Optimizer = builder(settings, groups, placement)
        return optimizer
    own = isinstance(settings, CustomConfig)
    options = {"lr": settings.lr, **settings.keywords} if own else asdict(settings)
    return _construct(_load_class(facts.built_by, name), groups, options, name)


def _load(path: str, name: str) -> Any:
    """Import MODULE:NAME; of a user's own from the current directory too, as `python -m` does."""
    own, (module_name, _, attribute) = f"optim.matrices {name}:", path.partition(":")
    if path == name and (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise QuinticError(f"{own} {module_name} imports {error.name}: install it") from error
        raise QuinticError(
            f"{own} there is no module {module_name} in {Path.cwd()} or on PYTHONPATH: run "
            "quintic in the folder of its file, or name that folder in PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:
        raise QuinticError(f"{own} importing {module_name} raised {_words(error)}") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, list(vars(module)), n=1)
        hint = f": did you mean {module_name}:{near[0]}?" if near else ", name one that it has"
        raise QuinticError(f"{own} {module.__file__} has no class {attribute}{hint}")
    return getattr(module, attribute)


def _load_class(path: str, name: str) -> type[torch.optim.Optimizer]:
    cls = _load(path, name)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise QuinticError(f"optim.matrices {name}: it must be a subclass of torch.optim.Optimizer")
    return cls


def _construct(
    cls: type[torch.optim.Optimizer], groups: Groups, options: Mapping[str, Any], name: str
) -> torch.optim.Optimizer:
    own, signature = f"optim.matrices {name}:", inspect.signature(cls)
    try:
        signature.bind(groups, **options)
    except TypeError as error:
        _, *takes = signature.parameters
        raise QuinticError(
            f"{own} {cls.__name__} {error}: it takes {', '.join(takes) or 'params alone'}, and was "
            f"given {', '.join(options)}; name its own with --optim.custom.options NAME=VALUE"
        ) from None
    given_params = _parameters(groups)
    try:
        optimizer: torch.optim.Optimizer = cls(groups, **options)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise QuinticError(f"{own} {cls.__name__}({given}) raised {_words(error)}") from error
    if not vars(optimizer).keys() >= {"defaults", "state", "param_groups"}:
        raise QuinticError(f"{own} {cls.__name__}.__init__ must call super().__init__")
    found = optimizer.param_groups
    if _parameters(found) != given_params or not all("base_lr" in group for group in found):
        raise QuinticError(
            f"{own} {cls.__name__} must hand the params that it is given to "
            "torch.optim.Optimizer.__init__ as they are, since their groups have names and rates"
        )
    _watch(optimizer, own)
    return optimizer


def _watch(optimizer: torch.optim.Optimizer, own: str) -> None:
    """Make what a step raises one line, and refuse a state that no checkpoint would hold.

    Every step is looked at, so that no run is refused for what a step before its last checkpoint
    did.
    """
    update, before = optimizer.step, _unsaved(optimizer)

    def step(*arguments: Any) -> Any:
        try:
            result = update(*arguments)
        except (QuinticError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise QuinticError(f"{own} its step raised {_words(error)}") from error
        after = _unsaved(optimizer)
        # In lists, since a NaN equals itself there.
        if changed := [n for n in {**before, **after} if [before.get(n)] != [after.get(n)]]:
            raise QuinticError(
                f"{own} its step changes self.{changed[0]}, which no checkpoint holds: keep "
                "what a step must remember in self.state[p], by the parameter p"
            )
        return result

    optimizer.step = step  # type: ignore[method-assign, assignment]


def _parameters(groups: Groups) -> list[list[int]]:
    """Return the identities of the parameters of each group."""
    return [[id(p) for p in group["params"]] for group in groups]


def _unsaved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what tells a change of each attribute that a checkpoint does not hold, and of what is
    no number in the parameter groups."""
    # Hooks are those of whoever looks at a step (quintic.diagnostics), not the optimizer's own.
    held = ("state", "param_groups", "_optimizer_step_pre_hooks")
    attributes = {name: _mark(v) for name, v in vars(optimizer).items() if name not in held}
    return attributes | {
        f"param_groups[{i}][{key!r}]": _mark(value)
        for i, group in enumerate(optimizer.param_groups)
        for key, value in group.items()
        if not isinstance(value, bool | int | float)
    }


def _mark(value: Any) -> Any:
    """Return what differs once a step has changed a number or a tensor, at any depth of lists."""
    if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
        return id(value), value._version
    if isinstance(value, dict):
        return [_mark(inner) for inner in value.values()]
    if isinstance(value, list | tuple):
        return [_mark(inner) for inner in value]
    return value if isinstance(value, bool | int | float) else None


def _words(error: BaseException) -> str:
    """Return an error in one line, with the innermost line of code that is no library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and f.filename[0] != "<"]
    place = (own or frames)[-1]
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first} ({place.filename}, line {place.lineno})"

"""quintic muon convert and table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quintic import run_dir
from quintic.cli.options import Muon, MuonConvert
from quintic.config import Config, resolve_vocabulary
from quintic.config.schema import option
from quintic.console import Console, Table
from quintic.errors import QuinticError
from quintic.model.build import meta_model
from quintic.optim.muon_checks import SCALES
from quintic.optim.muons import (
    Group,
    Implementation,
    Rates,
    Shape,
    convert,
    distinct,
    group_of_run,
    implementation,
    implementations,
    parse_groups,
    parse_shape,
    quintic_like,
    settings_of,
    unmatched,
)
from quintic.optim.param_groups import assign_parameters
from quintic.recipes import get_recipe


def run(command: Muon, _arguments: Sequence[str]) -> None:
    """Run the command that follows the word `muon`."""
    if isinstance(command.action, MuonConvert):
        _convert(command.action)
    else:
        _table()


def _convert(command: MuonConvert) -> None:
    """Print a table for each group, and what neither learning rate nor option matches."""
    shapes, own = _model(command) if command.model else ({}, None)
    found = []
    for group in _sources(command, own):
        asked = [parse_shape(text, group.source.axes) for text in command.shape]
        wanted = shapes | distinct(asked)
        if not wanted:
            raise QuinticError(
                "muon convert needs the shapes of matrices: name them with --shape 768x3072, or "
                "the run or recipe that has them with --model"
            )
        found.append(_Conversion.of(group, _target(command.to, group.source), wanted))
    if command.json:
        print(json.dumps([conversion.to_dict() for conversion in found], indent=1))
    else:
        for conversion in found:
            _print(conversion)


def _model(command: MuonConvert) -> tuple[dict[Shape, int], Group | None]:
    """Return the shapes of a run's or a recipe's matrices, with their number, and its own settings,
    which an imported model has none of."""
    assert command.model is not None
    config = _config(command.model)
    if config.optim.matrices != "muon":
        raise QuinticError(
            f"{command.model} gives its matrices to {config.optim.matrices}, and none to Muon: "
            "name a run or recipe of optim.matrices muon, or the shapes with --shape"
        )
    if config.model.vocab_size is None:  # on which no matrix of Muon's depends
        config = resolve_vocabulary(config, 1)
    specs = assign_parameters(meta_model(config.model), config.optim)
    muon = [(spec.shape[0], spec.shape[1]) for spec in specs if spec.optimizer == "muon"]
    return distinct(muon), None if config.is_imported else group_of_run(config.optim.muon)


def _config(named: str) -> Config:
    """Return the config of a run by its folder, or of a recipe."""
    if Path(named).is_dir():
        return run_dir.read_config(Path(named))
    try:
        return get_recipe(named)
    except QuinticError as error:
        raise QuinticError(f"--model {named} is the folder of no run, and {error}") from error


def _sources(command: MuonConvert, own: Group | None) -> list[Group]:
    if command.source is None and own is None:
        raise QuinticError(
            "muon convert needs --from, the implementation whose learning rate it is: one of "
            f"{', '.join(implementations())}"
        )
    for name, value in (("--lr", command.lr), ("--weight-decay", command.weight_decay)):
        if value is not None and not 0 <= value < float("inf"):
            raise QuinticError(f"{name} is {value:g}: it must be a finite number from 0 up")
        if value is not None and command.groups:
            raise QuinticError(f"{name} is in --groups already: give one of them")
    own_lr: float | None
    if command.source is None:
        assert own is not None
        source, own_lr, own_decay = own.source, own.lr, own.weight_decay
    else:
        source = implementation("max_dim" if command.source == "quintic" else command.source)
        own_lr, own_decay = source.lr, source.weight_decay
    if command.groups:
        if not command.groups.is_file():
            raise QuinticError(f"--groups is {command.groups}: it must be a file that is there")
        return parse_groups(command.groups.read_bytes(), source)
    lr = own_lr if command.lr is None else command.lr
    decay = own_decay if command.weight_decay is None else command.weight_decay
    if lr is None:
        raise QuinticError(f"{source.title} has no learning rate of its own: give it with --lr")
    owner = source.name if command.source else command.model
    notes = [source.note] if source.note else []
    if command.lr is None:
        notes.append(f"the learning rate is {owner}'s own, {lr:g}")
    if command.weight_decay is None and decay:
        notes.append(f"the weight decay is {owner}'s own, {decay:g}")
    return [Group(source, lr, decay, tuple(notes))]


def _target(name: str, source: Implementation) -> Implementation:
    if name == "quintic":
        return quintic_like(source)
    target = implementation(name, "--to")
    return quintic_like(source, name) if name in SCALES else target


@dataclass(frozen=True)
class _Conversion:
    """Holds what is printed of one group."""

    group: Group
    target: Implementation
    shapes: dict[Shape, int]
    rates: list[Rates]
    settings: dict[str, Any] | None
    """Fields of `optim.muon`, where the target is quintic."""
    unmatched: list[str]

    @classmethod
    def of(cls, group: Group, target: Implementation, shapes: dict[Shape, int]) -> _Conversion:
        rates = [
            convert(group.source, target, shape, lr=group.lr, weight_decay=group.weight_decay)
            for shape in shapes
        ]
        settings = settings_of(target, rates) if target.name in SCALES else None
        said = unmatched(group.source, target, decays=group.weight_decay > 0)
        return cls(group, target, shapes, rates, settings, said)

    @property
    def one_rate(self) -> bool:
        return len({f"{rate.lr:.6g}" for rate in self.rates}) == 1

    @property
    def options(self) -> str:
        """The settings as options of quintic train."""
        assert self.settings is not None
        return " ".join(option(f"optim.muon.{name}", v) for name, v in self.settings.items())

    def to_dict(self) -> dict[str, Any]:
        """Return it as --json has it."""
        found: dict[str, Any] = {
            "from": self.group.source.name,
            "to": self.target.name,
            "notes": list(self.group.notes),
            "rates": [{**asdict(rate), "matrices": self.shapes[rate.shape]} for rate in self.rates],
            "unmatched": self.unmatched,
        }
        if self.settings is not None:
            found |= {"settings": self.settings, "options": self.options}
        return found


def _print(conversion: _Conversion) -> None:
    source, target, console = conversion.group.source, conversion.target, Console()
    console.line(f"from {source.title} {source.version}".rstrip())
    console.line(f"to   {target.title} {target.version}".rstrip())
    for note in conversion.group.notes:
        console.line(note)
    rows = [
        [
            f"{rate.shape[0]} x {rate.shape[1]}",
            f"{conversion.shapes[rate.shape]}",
            f"{rate.update:.4g}",
            f"{rate.lr:.4g}",
            "no equal" if rate.weight_decay is None else f"{rate.weight_decay:.4g}",
        ]
        for rate in conversion.rates
    ]
    console.table(Table(["out x in", "matrices", "lr x scale", "lr", "weight decay"], rows))
    if not conversion.one_rate:
        console.line(
            f"the scales differ by shape ({source.scale}, {target.scale}): each shape needs a "
            "parameter group of its own"
        )
    if conversion.settings is not None:
        console.line(conversion.options)
    if conversion.unmatched:
        own = "no learning rate matches:"
        console.line(
            own if conversion.settings is None else "no learning rate and no option matches:"
        )
        for sentence in conversion.unmatched:
            console.line(f"  {sentence}")


def _table() -> None:
    """Print the implementations by the names that convert takes."""
    header = ["name", "version", "known", "scale", "lr", "weight decay", "newest", "from quintic"]
    rows = [
        [
            one.name,
            one.version or "quintic",
            one.source,
            one.scale,
            "-" if one.lr is None else f"{one.lr:g}",
            f"{one.weight_decay:g}",
            f"{one.newest[1]:.2f}",
            "-" if one.source == "read" else f"{one.difference:.1%}",
        ]
        for one in implementations().values()
    ]
    Console().table(Table(header, rows))

"""quintic muon convert and table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quintic import run_dir
from quintic.cli.options import Muon, MuonConvert
from quintic.config import Config, resolve_vocabulary
from quintic.console import Console, Table
from quintic.errors import QuinticError
from quintic.model.build import meta_model
from quintic.optim.muon_checks import SCALES
from quintic.optim.muons import (
    Group,
    Implementation,
    Shape,
    convert,
    distinct,
    group_of_run,
    implementation,
    implementations,
    nearest_of_quintic,
    parse_groups,
    parse_shape,
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
    """Print a table for each group, and what no learning rate matches."""
    shapes, own = _model(command) if command.model else ({}, None)
    for group in _sources(command, own):
        asked = [parse_shape(text, group.source.axes) for text in command.shape]
        wanted = shapes | distinct(asked)
        if not wanted:
            raise QuinticError(
                "muon convert needs the shapes of matrices: name them with --shape 768x3072, or "
                "the run or recipe that has them with --model"
            )
        _print(group, _target(command.to, group.source), wanted)


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
    notes = []
    if command.lr is None:
        notes.append(f"the learning rate is {owner}'s own, {lr:g}")
    if command.weight_decay is None and decay:
        notes.append(f"the weight decay is {owner}'s own, {decay:g}")
    return [Group(source, lr, decay, tuple(notes))]


def _target(name: str, source: Implementation) -> Implementation:
    return nearest_of_quintic(source) if name == "quintic" else implementation(name, "--to")


def _print(group: Group, target: Implementation, shapes: dict[Shape, int]) -> None:
    source, console = group.source, Console()
    rates = [
        convert(source, target, shape, lr=group.lr, weight_decay=group.weight_decay)
        for shape in shapes
    ]
    console.line(f"from {source.title} {source.version}".rstrip())
    console.line(f"to   {target.title} {target.version}".rstrip())
    for note in group.notes:
        console.line(note)
    rows = [
        [
            f"{rate.shape[0]} x {rate.shape[1]}",
            f"{shapes[rate.shape]}",
            f"{rate.update:.4g}",
            f"{rate.lr:.4g}",
            "no equal" if rate.weight_decay is None else f"{rate.weight_decay:.4g}",
        ]
        for rate in rates
    ]
    console.table(Table(["out x in", "matrices", "lr x scale", "lr", "weight decay"], rows))
    if len({f"{rate.lr:.6g}" for rate in rates}) > 1:
        console.line(
            f"the scales differ by shape ({source.scale}, {target.scale}): each shape needs a "
            "parameter group of its own"
        )
    elif target.name in SCALES:
        decay = rates[0].weight_decay
        decays = f" --optim.muon.weight-decay {decay:.6g}" if decay else ""
        console.line(f"--optim.muon.scale {target.scale} --optim.muon.lr {rates[0].lr:.6g}{decays}")
    if said := unmatched(source, target, decays=group.weight_decay > 0):
        console.line("no learning rate matches:")
        for sentence in said:
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

"""Public implementations of Muon, and which learning rate of one is which of another.

What each does was measured by running it: `findings/muons.sh` does that again, and muons.json,
beside this file, is its record. docs/muons.md shows it.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from quintic.config import MuonConfig
from quintic.errors import QuinticError, one_line
from quintic.optim.muon import update_scale
from quintic.optim.muon_checks import SCALES
from quintic.optim.newton_schulz import DION, QUINTIC

POLYNOMIALS = {
    "jordan": "3.4445, -4.7750, 2.0315 in each iteration",
    "five": "five sets of coefficients, from 4.0848, -6.8946, 2.9270 on",
    "polar_express": "Polar Express",
}
"""What the polynomials of the record are called where a difference is told."""

NAMED = {"jordan": "quintic", "five": "dion", "polar_express": "polar_express"}
"""Values of `optim.muon.ns_coefficients` by the polynomials of the record."""

NAMED_ELSEWHERE = {
    "timm": {"original": "jordan", "quintic": "five"},
    "optax": {"standard": "jordan", "dion": "five"},
    "emerging-optimizers": {"simple": "jordan", "quintic": "five"},
    "quintic": {name: polynomial for polynomial, name in NAMED.items()},
}
"""What implementations call those polynomials in their options, where it is known."""

VARIANTS = {"original": "aspect", "match_rms_adamw": "rms"}
"""The scales that the values of PyTorch's `adjust_lr_fn` stand for, in most that have it."""

Shape = tuple[int, int]
"""(out, in), as PyTorch has a weight."""


def shares(momentum: float, nesterov: bool) -> tuple[float, float]:
    """Return the shares of the newest gradient in the direction, in the second step and once
    momentum has settled, where this is the buffer or has Nesterov's form."""
    if nesterov:
        return (1 + momentum) / (1 + momentum + momentum**2), 1 - momentum**2
    return 1 / (1 + momentum), 1 - momentum


@dataclass(frozen=True)
class Implementation:
    """Tells what one implementation does; the defaults are what quintic does."""

    name: str
    title: str
    version: str = ""
    """The package's; empty for quintic."""
    source: str = "run"
    """How it is known: `run`, or `read` where it could not be run."""
    axes: str = "out, in"
    """How its library has a weight's axes: `out, in`, or `in, out`."""
    scale: str = "max_dim"
    """Factor of the update by shape: one of quintic's scales, or `none` or `ratio`."""
    lr: float | None = None
    """Default; None where there is none."""
    momentum: float = 0.95
    weight_decay: float = 0.0
    """Default."""
    cautious: bool = False
    """Decays a weight only where the update makes it smaller too."""
    normuon: bool = False
    """Divides the rows of an update by their root second moment."""
    decay: str = "decoupled"
    """Where decay enters: `decoupled`; `scaled`, multiplied by the scale too; or `through the
    gradient`, before the orthogonalisation."""
    buffer: str = "sum"
    """The momentum buffer is a `sum`, or an `average` of gradients."""
    newest: tuple[float, float] = shares(0.95, nesterov=True)
    """Share of the newest gradient in the direction: of the second step, and once settled."""
    nesterov: bool | None = True
    """None where the direction has neither Nesterov's form nor is the buffer."""
    polynomial: str = "jordan"
    ns_steps: int = 5
    dtype: str = "float32"
    """Of Newton-Schulz on a CPU."""
    adam: str = ""
    """What it gives to Adam on its own account, as a sentence."""
    also: str = ""
    """What else no learning rate can match, as a sentence."""
    note: str = ""
    """What is said of it wherever a learning rate is converted from it."""
    difference: float = 0.0
    """From quintic after ten steps at the best learning rate, over the length of the way."""
    factor: float = 1.0
    """That best learning rate, over the one that the scales alone give."""

    def scale_of(self, shape: Shape) -> float:
        """Return the factor of the update of a weight."""
        rows, columns = shape
        if self.scale == "none":
            return 1.0
        if self.scale == "ratio":
            return math.sqrt(rows / columns)
        return update_scale(self.scale, rows, columns)

    def decay_rate(self, shape: Shape, lr: float) -> float | None:
        """Return the factor of weight decay in a step; None where it has no part of its own."""
        if self.decay == "through the gradient":
            return None
        return lr * (self.scale_of(shape) if self.decay == "scaled" else 1.0)

    @property
    def label(self) -> str:
        """The name where a difference is told: all scales of quintic differ in nothing else."""
        return self.name if self.version else "quintic"


@cache
def implementations() -> dict[str, Implementation]:
    """Read all of them, by the names of `quintic muon convert`; quintic's own are its scales."""
    found = {
        scale: Implementation(scale, f"quintic, scale {scale}", scale=scale, dtype="as the weights")
        for scale in SCALES
    }
    record = json.loads(files("quintic.optim").joinpath("muons.json").read_text(encoding="utf-8"))
    for name, row in record.items():
        facts = row.get("measured") or row["read"]
        if "scale" not in facts:
            continue  # one that does not run
        steps = facts.get("ten_steps", {})
        newest = (facts["newest"][0], facts["newest"][1])
        found[name] = Implementation(
            name,
            row["title"],
            version=facts["version"],
            source="run" if "measured" in row else "read",
            axes=row.get("axes", "out, in"),
            scale=facts["scale"],
            lr=facts["lr"],
            momentum=facts["momentum"],
            weight_decay=facts["weight_decay"] or 0.0,
            cautious=facts.get("cautious", False),
            decay=facts["decay"],
            buffer="sum" if max(facts["state"].values()) == 1 else "average",
            newest=newest,
            nesterov=nesterov_of(newest, facts["momentum"]),
            polynomial=facts["polynomial"],
            dtype=facts["dtype"],
            adam=row.get("adam", ""),
            also=row.get("also", ""),
            note=row.get("note", ""),
            difference=steps.get("difference", 0.0),
            factor=steps.get("factor", 1.0),
        )
    return found


def implementation(name: str, option: str = "--from") -> Implementation:
    """Return one by its name; raises `QuinticError`, with those near it, where there is none."""
    known = implementations()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1) or [n for n in known if name in n][:1]
    hint = f"did you mean {close[0]}? " if close else ""
    raise QuinticError(f"{option} is {name!r}: {hint}the names are quintic, {', '.join(known)}")


def nesterov_of(newest: tuple[float, float], momentum: float) -> bool | None:
    """Return whether a direction with these shares has Nesterov's form; None where it has neither
    that nor is the buffer."""
    off = {form: abs(newest[1] - shares(momentum, form)[1]) for form in (True, False)}
    nearest = min(off, key=lambda form: off[form])
    return nearest if off[nearest] < 0.02 else None


def quintic_like(source: Implementation, scale: str | None = None) -> Implementation:
    """Return quintic with all of another implementation that its options can have.

    That is momentum, Nesterov's form, the polynomial and its iterations, and the scale, `max_dim`
    where it has none of quintic's, unless another `scale` is named.
    """
    own = implementations()[scale or (source.scale if source.scale in SCALES else "max_dim")]
    nesterov = source.nesterov is not False
    return replace(
        own,
        momentum=source.momentum,
        nesterov=nesterov,
        newest=shares(source.momentum, nesterov),
        polynomial=source.polynomial if source.polynomial in NAMED else own.polynomial,
        ns_steps=source.ns_steps,
        cautious=source.cautious,
        normuon=source.normuon,
    )


@dataclass(frozen=True)
class Rates:
    """The rates of one weight under which two implementations make the same update."""

    shape: Shape
    update: float
    """Length of the update: learning rate times scale."""
    lr: float
    weight_decay: float | None
    """None where no weight decay gives the same."""


def convert(
    source: Implementation,
    target: Implementation,
    shape: Shape,
    *,
    lr: float,
    weight_decay: float,
) -> Rates:
    """Return the rates of `target` that do to a weight what `lr` and `weight_decay` do in `source`.

    The update is lr * scale(shape) in both. Decoupled decay multiplies weights by 1 - lr *
    weight_decay a step, so that product stays: where the learning rate doubles, the decay halves.
    Raises `QuinticError` where a float cannot hold a converted rate.
    """
    update = lr * source.scale_of(shape)
    converted = update / target.scale_of(shape)
    decay: float | None = 0.0
    if weight_decay and lr and sys.float_info.min < converted < math.inf:
        here, there = source.decay_rate(shape, lr), target.decay_rate(shape, converted)
        decay = None if here is None or there is None else weight_decay * (here / there)
    if not all(math.isfinite(rate) for rate in (update, converted, decay or 0.0)) or (
        lr and converted <= sys.float_info.min
    ):
        raise QuinticError(
            f"the rates {lr:g} and {weight_decay:g} of a matrix of {shape[0]} x {shape[1]} have no "
            "equal in floating point: give some of ordinary size"
        )
    return Rates(shape, update, converted, decay)


def settings_of(target: Implementation, rates: Sequence[Rates]) -> dict[str, Any]:
    """Return the fields of `optim.muon` that make quintic's update the one of these rates, in which
    all that `target` says is set; rates that differ by shape are left out."""
    found: dict[str, Any] = {"scale": target.scale}
    for name in ("lr", "weight_decay"):
        values = {getattr(rate, name) for rate in rates}
        rounded = {None if value is None else float(f"{value:.6g}") for value in values}
        if len(rounded) == 1 and None not in rounded:
            (found[name],) = rounded
    found |= {
        "momentum": target.momentum,
        "momentum_warmup_steps": 0,
        "nesterov": target.nesterov,
        "ns_steps": target.ns_steps,
        "ns_coefficients": NAMED[target.polynomial],
    }
    # Cautious decay without decay is refused.
    return found | {
        "cautious": target.cautious and bool(found.get("weight_decay")),
        "normuon": target.normuon,
    }


def unmatched(source: Implementation, target: Implementation, *, decays: bool) -> list[str]:
    """Say in sentences what no learning rate and, where the target is quintic, no option makes
    equal, with the figures of the record.

    `decays` says whether there is weight decay to convert.
    """
    a, b = source.label, target.label
    said = []
    if abs(source.newest[1] - target.newest[1]) > 0.02:
        said.append(
            f"weight of the newest gradient: {source.newest[1]:.2f} of the direction in {a} and "
            f"{target.newest[1]:.2f} in {b}, once momentum has settled"
        )
    elif abs(source.newest[0] - target.newest[0]) > 0.02:
        said.append(
            f"the first steps: one of them corrects its average for its start, so the newest "
            f"gradient is {source.newest[0]:.2f} of the second step's direction in {a} and "
            f"{target.newest[0]:.2f} in {b}; once 0.95^t is small they are the same"
        )
    if source.momentum != target.momentum:
        said.append(
            f"momentum is {source.momentum:g} in {a} and {target.momentum:g} in {b} unless set"
        )
    if source.polynomial != target.polynomial:
        said.append(
            f"the polynomial: {POLYNOMIALS.get(source.polynomial, source.polynomial)} in {a}, "
            f"{POLYNOMIALS.get(target.polynomial, target.polynomial)} in {b}"
        )
    if source.ns_steps != target.ns_steps:
        said.append(
            f"{source.ns_steps} iterations of Newton-Schulz in {a} and {target.ns_steps} in {b} "
            "unless set"
        )
    # The record's figure is quintic's defaults', so it says nothing where options repeat the other.
    repeated = not said and target.name in SCALES and target != implementations()[target.name]
    if source.buffer != target.buffer:
        averaging, summing = (a, b) if source.buffer == "average" else (b, a)
        constant = " (--optim.muon.momentum-warmup-steps 0)" if "quintic" in (a, b) else ""
        said.append(
            f"momentum while it warms up: {averaging} averages gradients and {summing} adds them, "
            f"which is one direction at constant momentum only{constant}; a buffer of {averaging} "
            "is 1 - momentum times the sum"
        )
    for one, other in ((source, target), (target, source)):
        if one.normuon and not other.normuon:
            said.append(f"NorMuon: {one.label} divides rows by their root second moment")
        if decays and one.cautious and not other.cautious:
            said.append(
                f"weight decay: {one.label} decays only where the update makes a weight smaller "
                f"too, and {other.label} everywhere"
            )
    if decays and "through the gradient" in (source.decay, target.decay):
        through = a if source.decay == "through the gradient" else b
        said.append(
            f"weight decay: {through} adds it to the gradient before the orthogonalisation, which "
            "forgets its length, so no decoupled decay is the same: choose one anew"
        )
    for one in (source, target):
        said += [f"{one.label}: {text}" for text in (one.also, one.adam) if text]
    for one in (source, target):
        if one.difference > 0.001 and not repeated:
            nearest = "" if one.factor == 1 else f", best at {one.factor:g} times the learning rate"
            said.append(
                f"together: ten steps of {one.name} {one.version} end {one.difference:.1%} of "
                f"their way from those of quintic's defaults{nearest}"
            )
        elif one.source == "read":
            said.append(
                f"{one.name} {one.version} was read and not run: nothing here is measured of it"
            )
    return said


@dataclass(frozen=True)
class Group:
    """Holds the settings of one parameter group of another implementation."""

    source: Implementation
    lr: float
    weight_decay: float
    notes: tuple[str, ...] = ()


def group_of_run(config: MuonConfig) -> Group:
    """Return the settings of a run or recipe of quintic, with what of them changes its update."""
    source = replace(
        implementations()[config.scale],
        momentum=config.momentum,
        nesterov=config.nesterov,
        newest=shares(config.momentum, config.nesterov),
        polynomial=NAMED_ELSEWHERE["quintic"][config.ns_coefficients],
        ns_steps=config.ns_steps,
        cautious=config.cautious,
        normuon=config.normuon,
    )
    return Group(source, config.lr, config.weight_decay)


def parse_groups(text: bytes, source: Implementation) -> list[Group]:
    """Return the groups that an implementation gives to Muon, from its `param_groups` as JSON.

    The parameters themselves are left out of it, or are there as the numbers of a state dict.
    Raises `QuinticError` where the text is something else, or has no group for Muon.
    """
    try:
        groups = json.loads(text)
    except (ValueError, RecursionError) as error:  # of JSON, or of the bytes' encoding
        raise QuinticError(f"--groups is not JSON: {one_line(error)}") from None
    if isinstance(groups, dict):
        groups = groups.get("param_groups", [groups])
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise QuinticError(
            "--groups must be a list of objects, as json.dump of optimizer.param_groups without "
            "their params writes it"
        )
    found = [
        _group(number, group, source)
        for number, group in enumerate(groups)
        if group.get("use_muon", True) and group.get("optimizer", "muon") == "muon"
    ]
    if not found:
        raise QuinticError("--groups has no group for Muon: each says use_muon false, or none is")
    return found


def _group(number: int, group: dict[str, Any], source: Implementation) -> Group:
    def setting(name: str, default: float | None) -> float:
        value = group.get(name, default)
        if isinstance(value, str) and value.startswith("tensor("):
            raise QuinticError(
                f"--groups: group {number} has {name} {value!r:.60}, a tensor as text, which is "
                "rounded: write the groups as docs/muons.md does, by json.dump(groups, file, "
                "default=lambda v: v.item() if hasattr(v, 'item') else str(v))"
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= sys.float_info.max
        ):
            raise QuinticError(
                f"--groups: group {number} has {name} {value!r:.60}: it must be a number from 0 up"
            )
        return float(value)

    def flag(name: str, default: bool) -> bool:
        value = group.get(name, default)
        if not isinstance(value, bool):
            raise QuinticError(
                f"--groups: group {number} has {name} {value!r:.60}: it must be true or false"
            )
        return value

    if "lr" not in group:
        raise QuinticError(
            f"--groups: group {number} has no lr: give the groups as json.dump of "
            "optimizer.param_groups without their params writes them"
        )
    notes = []
    lr = setting("lr", None)
    if "initial_lr" in group:
        notes.append(f"the learning rate is initial_lr, before the schedule; now {lr:g}")
        lr = setting("initial_lr", None)
    if source.name in SCALES:  # quintic's own groups say which, and what changes an update
        source = replace(
            implementation(str(group.get("scale", source.scale)), "--groups"),
            cautious=flag("cautious", source.cautious),
            normuon=flag("normuon", source.normuon),
        )
    if variant := group.get("adjust_lr_fn") or (group.get("use_adjusted_lr") and "use_adjusted_lr"):
        base = implementation(source.name.partition(":")[0])
        name = f"{base.name}:{variant}"
        own = name not in implementations() and base.scale == VARIANTS.get(str(variant))
        source = base if own else implementation(name, "--groups")
    momentum, steps = setting("momentum", source.momentum), setting("ns_steps", 5)
    if momentum >= 1:
        raise QuinticError(
            f"--groups: group {number} has momentum {momentum:g}: it must be at least 0 and below 1"
        )
    nesterov = group.get("nesterov", source.nesterov)
    if not (steps >= 1 and steps.is_integer() and nesterov in (True, False, None)):
        raise QuinticError(
            f"--groups: group {number} has ns_steps {group.get('ns_steps')!r} and nesterov "
            f"{nesterov!r}: they must be a whole number from 1 up and true or false"
        )
    polynomial = _polynomial(number, group, source)
    as_given = replace(
        source, momentum=momentum, nesterov=nesterov, polynomial=polynomial, ns_steps=int(steps)
    )
    if as_given != source:  # the recorded shares and difference are those of the defaults
        newest = source.newest if nesterov is None else shares(momentum, nesterov)
        source = replace(as_given, newest=newest, difference=0.0)
    return Group(source, lr, setting("weight_decay", source.weight_decay), tuple(notes))


def _polynomial(number: int, group: dict[str, Any], source: Implementation) -> str:
    """Return the polynomial that a group names, or has as numbers."""
    given = group.get("ns_coefficients")
    if given is None:
        return source.polynomial
    if not isinstance(given, list | str):
        raise QuinticError(
            f"--groups: group {number} has ns_coefficients {given!r}: they must be a list of "
            "numbers or a name"
        )
    whose = "quintic" if source.name in SCALES else source.name.partition(":")[0]
    names = NAMED_ELSEWHERE.get(whose, {"original": "jordan"})
    names |= {str(list(QUINTIC)): "jordan", str([list(row) for row in DION]): "five"}
    return names.get(str(given), f"coefficients {given}")


def parse_shape(text: str, axes: str) -> Shape:
    """Return 768x3072 as (out, in), where a library has its axes so or the other way around.

    Raises `QuinticError` unless it is two positive integers.
    """
    parts = [part.strip() for part in text.replace(",", "x").split("x")]
    # No tensor has a size of more digits.
    sizes = [int(part) for part in parts if part.isdecimal() and len(part) <= 18]
    if not (len(parts) == len(sizes) == 2 and all(sizes)):
        raise QuinticError(
            f"--shape is {text!r:.60}: it must be a matrix's two sizes, such as 768x3072; "
            "Muon takes matrices only"
        )
    first, second = sizes
    return (first, second) if axes == "out, in" else (second, first)


def distinct(shapes: Sequence[Shape]) -> dict[Shape, int]:
    """Return the different shapes, in their order, with how many there are of each."""
    return {shape: shapes.count(shape) for shape in dict.fromkeys(shapes)}

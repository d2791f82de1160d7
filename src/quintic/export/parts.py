"""The tensors of another tool's, made of a model's parameters, and back, exactly.

Shapes: D model width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """The way from tensors of quintic's to one of the other tool's, and back."""

    there: Callable[[Sequence[Tensor]], Tensor]
    back: Callable[[Tensor], Sequence[Tensor]]


SAME = Form(lambda ours: ours[0], lambda theirs: [theirs])
TRANSPOSED = Form(lambda ours: ours[0].T, lambda theirs: [theirs.T])
STACKED = Form(lambda ours: torch.cat(list(ours)), lambda theirs: theirs.chunk(3))
STACKED_TRANSPOSED = Form(lambda ours: torch.cat(list(ours)).T, lambda theirs: theirs.T.chunk(3))


def halves_swapped(heads: int) -> Form:
    """Return the form whose rows [H K, D] have the two halves of each head's K swapped."""

    def swap(rows: Tensor) -> Tensor:
        first, second = rows.unflatten(0, (heads, 2, -1)).unbind(1)
        return torch.stack((second, first), 1).flatten(0, 2)

    return Form(lambda ours: swap(ours[0]), lambda theirs: [swap(theirs)])


def halves_interleaved(heads: int) -> Form:
    """Return the form whose rows [H K, D] alternate between the second half of each head's K and
    the first."""

    def interleave(rows: Tensor) -> Tensor:
        first, second = rows.unflatten(0, (heads, 2, -1)).unbind(1)
        return torch.stack((second, first), 2).flatten(0, 2)

    def part(rows: Tensor) -> Tensor:
        second, first = rows.unflatten(0, (heads, -1, 2)).unbind(2)
        return torch.stack((first, second), 1).flatten(0, 2)

    return Form(lambda ours: interleave(ours[0]), lambda theirs: [part(theirs)])


class Part(NamedTuple):
    """A tensor of the other tool's by name, and the parameters of ours that it is made of; a gain,
    which is ones, of none."""

    theirs: str
    ours: tuple[str, ...]
    form: Form = SAME
    gain: int | None = None
    """How many ones it is."""


def to_theirs(parts: Iterable[Part], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the other tool's tensors by name, on the device of ours."""
    device = next(iter(ours.values())).device
    return {
        part.theirs: torch.ones(part.gain, device=device)
        if part.gain is not None
        else part.form.there([ours[name] for name in part.ours]).contiguous()
        for part in parts
    }


def to_ours(parts: Iterable[Part], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters by name: the inverse of `to_theirs`."""
    ours: dict[str, Tensor] = {}
    for part in parts:
        if part.gain is None:
            back = part.form.back(theirs[part.theirs])
            ours |= {name: x.contiguous() for name, x in zip(part.ours, back, strict=True)}
    return ours

"""The tensors of a file against those that its config makes, and as weights in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from quintic.errors import QuinticError, counted

EXACT = (torch.float32, torch.bfloat16, torch.float16)
"""The precisions whose every number is one of float32's."""


def check_layers(layers: int, tensors: Collection[str], given_by: str) -> None:
    """Raise `QuinticError` where there are fewer tensors than layers, before anybody makes a list
    of so many."""
    if layers > len(tensors):
        raise QuinticError(
            f"{given_by} asks for {counted(layers, 'layer')} and there are "
            f"{counted(len(tensors), 'tensor')}: name a whole checkpoint"
        )


def check_tensors(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    given_by: str,
    *,
    ones: Collection[str] = (),
) -> None:
    """Raise `QuinticError` where tensors are missing, too many, of another shape than expected, or
    not all ones where `ones` has their names; each is named.

    `given_by` is what says the shapes, for the message.
    """
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is too much" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        shape = tuple(tensors[name].shape)
        if shape != expected[name]:
            problems.append(f"{name} is {shape} where {given_by} makes it {expected[name]}")
        elif name in ones and not bool((tensors[name] == 1).all()):
            problems.append(f"{name} is not all ones, and quintic's RMSNorm has no gain")
    if problems:
        raise QuinticError(
            f"the tensors do not fit {given_by}: {'; '.join(sorted(problems))}; name a whole "
            "checkpoint of the class"
        )


def as_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in float32, with the same numbers; those that are that already as they are.

    Raises `QuinticError` for one of another precision, and for one that is not finite, naming them.
    """
    if other := [f"{name} is {x.dtype}" for name, x in tensors.items() if x.dtype not in EXACT]:
        raise QuinticError(
            f"{'; '.join(other)}: quintic's weights are float32; save them in that, bfloat16 or "
            "float16"
        )
    found = {name: x.detach().to(torch.float32) for name, x in tensors.items()}
    if lost := [name for name, x in found.items() if not bool(torch.isfinite(x).all())]:
        raise QuinticError(
            f"{', '.join(lost)}: not finite, so the training that wrote them had diverged; name an "
            "earlier checkpoint"
        )
    return found


def without_tied_head(
    tensors: Mapping[str, Tensor], head: str, embedding: str
) -> dict[str, Tensor]:
    """Return tensors without a head that is the embedding written a second time; one of its own
    stays."""
    found = dict(tensors)
    if head in found and embedding in found and torch.equal(found[head], found[embedding]):
        del found[head]
    return found

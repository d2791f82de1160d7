"""The matrices that one step of Muon updates, stacked where they are alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from quintic.optim.dtensor import Part, gradient_here, local, parts_of
from quintic.optim.matrices import Matrices, matrices_of
from quintic.optim.newton_schulz_cpu import one_at_a_time
from quintic.optim.whole import WholeMatrices

STACK_ELEMENTS = 2**24
"""Elements of one stack at most: enough to fill a device, while the temporaries of an update, five
stacks or so, stay small beside the weights. Large matrices on a CPU fill it one by one."""

Group = dict[str, Any]
"""A parameter group of an optimizer."""


@dataclass
class Stack:
    """Holds views of matrices of one whole shape, or of this process's parts of them."""

    shape: tuple[int, int]
    """The whole matrices' rows and columns."""
    whole: WholeMatrices | None
    """What brings them together, or shares the work on them among processes."""
    alone: bool
    """One large matrix, which needs no other process: others may be updated beside it."""
    weights: list[Tensor]
    """With the parameter's axes: kernels of a convolution have four."""
    gradients: list[Tensor]
    buffers: list[Tensor]
    """Their momentum."""
    moments: list[Tensor]
    """NorMuon's second moments [r, 1], where it is asked for."""


def whole_shapes(group: Group) -> list[tuple[int, ...]]:
    """Return the shapes of a group's parameters; where they are rows of larger ones, of those."""
    shapes: list[tuple[int, ...]] | None = group.get("shapes")
    return shapes or [tuple(p.shape) for p in group["params"]]


def group_matrices(shape: tuple[int, ...], group: Group) -> Matrices:
    """Return the matrices of a parameter of this shape, under the options of its group."""
    options = ("flatten", "split", "transposed")
    return matrices_of(shape, **{option: group[option] for option in options})


def frozen(p: Tensor) -> bool:
    """Return whether a parameter of a module does not require gradients.

    A master weight that another library keeps beside the module's need not require them.
    """
    return isinstance(p, nn.Parameter) and not p.requires_grad


def to_update(group: Group) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
    """Yield (parameter, gradient, whole shape) of those with a gradient that are not frozen."""
    for p, shape in zip(group["params"], whole_shapes(group), strict=True):
        if p.grad is not None and not frozen(p):
            yield p, p.grad, shape


def stacks_of(
    group: Group, state_of: Callable[[Tensor], dict[str, Tensor]], whole: WholeMatrices | None
) -> list[Stack]:
    """Return the stacks of a group, of `STACK_ELEMENTS` at most, in the order of its parameters.

    `whole` is for parameters that are no DTensors; those say for themselves how they lie.
    """
    alike: dict[Any, list[tuple[Tensor, ...]]] = {}
    for p, gradient, shape in to_update(group):
        state = state_of(p)
        cut = group_matrices(shape, group)
        if isinstance(p, DTensor):
            parts = parts_of(p, cut)
        elif "shapes" in group:
            parts = [Part(len(p), whole)]
        else:
            parts = [Part(rows, whole) for rows in cut.rows]
        tensors = [p.detach(), gradient_here(gradient, p), state["momentum"]]
        if group["normuon"]:
            tensors.append(state["second_moment"])
        views = [cut.views(local(tensor), [part.rows for part in parts]) for tensor in tensors]
        for matrix in zip(*views, strict=True):
            for rows, part, found in zip(cut.rows, parts, zip(*matrix, strict=True), strict=True):
                key = (rows, cut.columns), part.layout, *((t.device, t.dtype) for t in found)
                alike.setdefault(key, []).append(found)
    stacks = []
    for (shape, layout, *_), matrices in alike.items():
        most, alone = max(1, STACK_ELEMENTS // math.prod(shape)), False
        if layout is None and one_at_a_time(shape, matrices[0][0].device):
            most, alone = 1, True
        for start in range(0, len(matrices), most):
            weights, *others = map(list, zip(*matrices[start : start + most], strict=True))
            gradients, buffers, *moments = [[t.flatten(1) for t in other] for other in others]
            second = moments[0] if moments else []
            stacks.append(Stack(shape, layout, alone, weights, gradients, buffers, second))
    return stacks

"""NorMuon's second half: every neuron's share of an orthogonal update made equal over time.

Orthogonalisation equalises the singular values of an update and not the lengths of its rows, each
of which is what one output neuron gets. NorMuon divides each row by a running root mean square of
its own entries, as Adam does with each entry, at the price of one number per row.
Source: Li et al., https://arxiv.org/abs/2510.05491
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

EPS = 1e-10
"""Added to every denominator, as the authors do: a zero update stays zero."""


def frobenius_norm(update_nrc: Tensor) -> Tensor:
    """The norm of each matrix of a stack, [n, 1, 1]."""
    norm_n11: Tensor = update_nrc.norm(dim=(-2, -1), keepdim=True)
    return norm_n11


def normalize_neurons(
    update_nrc: Tensor,
    second_moment_nr1: Tensor,
    *,
    beta2: float,
    norm: Callable[[Tensor], Tensor] = frobenius_norm,
) -> Tensor:
    """The update [n, r, c] with its rows divided by their root second moment; changes the moment.

        second_moment = beta2 second_moment + (1 - beta2) mean over the columns of update^2
        normalized    = update / sqrt(second_moment)
        result        = normalized |update| / |normalized|        (Frobenius norms)

    The second moment [n, r, 1] starts at zero and needs no correction for that: it is off by the
    same factor in every row, which the last line cancels. That line keeps the norm that the update
    came with, as the authors' code does, so that Muon's scales and learning rates stay valid. The
    paper gives all entries a root mean square of 0.2 instead, which is the scale `rms`.

    Where the stack holds some rows only, `norm` gives the norms of the whole matrices.
    """
    norm_n11 = norm(update_nrc)
    second_moment_nr1.lerp_(update_nrc.square().mean(dim=-1, keepdim=True), 1 - beta2)
    normalized_nrc = update_nrc / (second_moment_nr1.sqrt() + EPS)
    new_norm_n11 = norm(normalized_nrc)
    result: Tensor = normalized_nrc * (norm_n11 / (new_norm_n11 + EPS))
    return result

"""Many fits at once of log L = log(exp(e) + sum over j of exp(c_j - g_j x_j)), by Newton's method.

x_j is the logarithm of what term j is a power of, such as the parameters or the tokens. A fit
minimises the weighted sum of Huber losses of log L, as Hoffmann et al.
(https://arxiv.org/abs/2203.15556, section 3.3). All fits take each step together: what is summed
over runs is a few products of matrices, and fits that are done drop out. The derivatives, first and
second, are written out.

Shapes: K fits, R runs, M terms that are powers, P = 2 M + 1 parameters: all c, then all g, then e.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DELTA = 1e-3
"""Residual of log L where the Huber loss turns from a parabola into a line."""

MOST_STEPS = 100
GRADIENT = 1e-13
"""Largest entry of the gradient at which a fit is done, over delta times the sum of the weights:
the rounding of the sums is a hundredth of that."""
ROUNDING = 1e-12
"""Share of the objective under which a fall is not seen for rounding."""
SMALLEST_CURVATURE = 1e-12
"""Curvature that is taken for less than this is taken for this."""
SMALLEST_E, SMALLEST_SLOPE = -4.0, 1e-6
"""The logarithm of E's part in the loss, and the g, under which coordinates are not turned."""
STRIDE = 3.0
"""Fall of log E in a step on the way to E = 0."""
LARGEST_EXPONENT = 700.0
"""A step too far ends here, at a loss that is refused, and not at infinity."""
LARGEST_DAMPING = 1e6
CHUNK = 1 << 16
"""Fits times runs in one pass: its arrays stay in a cache of the processor."""


@dataclass(frozen=True)
class Solved:
    """The ends of K fits."""

    parameters_KP: Floats
    objective_K: Floats
    """Weighted sums of Huber losses."""
    done_K: NDArray[np.bool_]
    """False where the steps were not enough."""


def solve(
    starts_KP: Floats,
    weights_KR: Floats,
    x_MR: Floats,
    log_loss_R: Floats,
    most_steps: int = MOST_STEPS,
) -> Solved:
    """Return the minimum that each start leads to, or where so many steps have come to;
    `weights_KR` may have one row for all fits.

    Where x is centred, so that its mean is near 0, the parameters hardly depend on each other and
    few steps are needed.
    """
    fits, runs = len(starts_KP), len(log_loss_R)
    weights_KR = np.broadcast_to(weights_KR, (fits, runs))
    rows = max(1, CHUNK // runs)
    # Where the loss rises with N or D all terms vanish on the way, and what follows is refused.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        parts = [
            _solve(starts_KP[k : k + rows], weights_KR[k : k + rows], x_MR, log_loss_R, most_steps)
            for k in range(0, fits, rows)
        ]
    return Solved(
        np.concatenate([part.parameters_KP for part in parts]),
        np.concatenate([part.objective_K for part in parts]),
        np.concatenate([part.done_K for part in parts]),
    )


def _solve(
    starts_KP: Floats, weights_KR: Floats, x_MR: Floats, log_loss_R: Floats, most_steps: int
) -> Solved:
    """Take damped Newton steps until each fit is done.

    Where the curvature is negative its size is used, so that every step goes downhill; the damping
    rises where a step is refused, since the loss would not fall, and falls where the loss falls as
    foreseen.
    """
    sums = Sums(x_MR, log_loss_R)
    theta_KP = starts_KP.copy()
    objective_K, *parts = sums.objective(theta_KP, weights_KR)
    gradient_KP, hessian_KPP = sums.derivatives(weights_KR, *parts)
    damping_K = np.full(len(theta_KP), DELTA)
    enough_K = GRADIENT * DELTA * weights_KR.sum(1)
    done_K = np.zeros(len(theta_KP), dtype=bool)
    taken_K = np.ones(len(theta_KP), dtype=bool)
    left = np.arange(len(theta_KP))
    for _ in range(most_steps):
        steered = _Steered(theta_KP[left])
        gradient, hessian = steered.derivatives(gradient_KP[left], hessian_KPP[left])
        curvature, axes = np.linalg.eigh(hessian)
        size = np.maximum(np.abs(curvature), SMALLEST_CURVATURE) + damping_K[left, None]
        along = np.einsum("kpa,kp->ka", axes, gradient)
        step = -np.einsum("kpa,ka->kp", axes, along / size)
        foreseen = np.einsum("ka,ka->k", along**2 / size, 1 - curvature / (2 * size))
        reached_KP = steered.after(step)
        hasten_K = taken_K[left] & ~steered.turned_K & (gradient[:, -1] > 0)
        reached_KP[hasten_K] = steered.towards_zero(reached_KP[hasten_K])
        after, *parts = sums.objective(reached_KP, weights_KR[left])
        fallen = objective_K[left] - after
        # So near the minimum rounding hides the fall, and Newton's step is taken for right.
        hidden = foreseen <= ROUNDING * objective_K[left]
        taken = (fallen > 0) | hidden
        kept = left[taken]
        taken_K[left] = taken
        theta_KP[kept] = reached_KP[taken]
        objective_K[kept] = after[taken]
        gradient_KP[kept], hessian_KPP[kept] = sums.derivatives(
            weights_KR[kept], *(part[taken] for part in parts)
        )
        damping_K[left] *= np.where(
            ~taken, 4.0, np.where(hidden | (fallen > foreseen / 2), 0.1, 1.0)
        )
        done_K[left] = np.abs(gradient_KP[left]).max(1) <= enough_K[left]
        left = left[~done_K[left] & (damping_K[left] < LARGEST_DAMPING)]
        if not len(left):
            break
    return Solved(theta_KP, objective_K, done_K)


class _Steered:
    """Coordinates of some fits in which the minimum lies along a straight valley.

    Runs tell the loss in their middle, exp(m) = E + sum of the exp(c_j), and its slopes,
    exp(q_j) = g_j exp(c_j), far better than what of it is E. In (c, g, e) the fits that agree on
    these lie along a curve, on which Newton's steps are short; in (c, q, m) along the axes of c.
    Where E is next to nothing, or a slope is not positive, (c, g, e) are kept.
    """

    def __init__(self, theta_KP: Floats) -> None:
        self.theta_KP, self.terms = theta_KP, theta_KP.shape[1] // 2
        self.c_KM, self.g_KM = theta_KP[:, : self.terms], theta_KP[:, self.terms : -1]
        self.log_middle_K = np.logaddexp.reduce(theta_KP[:, [*range(self.terms), -1]], axis=1)
        part_K = theta_KP[:, -1] - self.log_middle_K
        self.turned_K = (part_K > SMALLEST_E) & (self.g_KM > SMALLEST_SLOPE).all(1)

    def derivatives(self, gradient_KP: Floats, hessian_KPP: Floats) -> tuple[Floats, Floats]:
        """Return gradient and Hessian in these coordinates, by the chain rule."""
        fits, size = gradient_KP.shape
        jacobian_KPP = np.zeros((fits, size, size))  # of (c, g, e) by (c, q, m)
        bend_KPP = np.zeros((fits, size, size))  # gradient times their second derivatives
        turned_K = self.turned_K.astype(float)
        rise_KM = np.exp(self.c_KM - self.theta_KP[:, -1:]) * turned_K[:, None]
        whole_K = np.exp(self.log_middle_K - self.theta_KP[:, -1]) * turned_K
        slope_K = gradient_KP[:, -1]
        for j in range(self.terms):
            g, own_K = self.terms + j, self.g_KM[:, j]
            pull_K = gradient_KP[:, g] * own_K * turned_K
            jacobian_KPP[:, j, j] = 1
            jacobian_KPP[:, g, g] = np.where(self.turned_K, own_K, 1)
            jacobian_KPP[:, g, j] = -own_K * turned_K
            jacobian_KPP[:, -1, j] = -rise_KM[:, j]
            bend_KPP[:, g, g] = bend_KPP[:, j, j] = pull_K
            bend_KPP[:, g, j] = bend_KPP[:, j, g] = -pull_K
            bend_KPP[:, j, j] -= slope_K * rise_KM[:, j]
            bend_KPP[:, j, -1] = bend_KPP[:, -1, j] = slope_K * whole_K * rise_KM[:, j]
        jacobian_KPP[:, -1, -1] = np.where(self.turned_K, whole_K, 1)
        bend_KPP[:, -1, -1] = slope_K * (whole_K - whole_K**2)
        m = self.terms
        bend_KPP[:, :m, :m] -= slope_K[:, None, None] * rise_KM[:, :, None] * rise_KM[:, None]
        transposed_KPP = jacobian_KPP.transpose(0, 2, 1)
        return (
            (transposed_KPP @ gradient_KP[:, :, None])[:, :, 0],
            transposed_KPP @ hessian_KPP @ jacobian_KPP + bend_KPP,
        )

    def after(self, step_KP: Floats) -> Floats:
        """Return (c, g, e) after a step in these coordinates; NaN for an E that is not positive."""
        plain_KP = self.theta_KP + step_KP
        c_KM = plain_KP[:, : self.terms]
        with np.errstate(over="ignore", invalid="ignore"):
            g_KM = self.g_KM * np.exp(step_KP[:, self.terms : -1] - step_KP[:, : self.terms])
            log_middle_K = self.log_middle_K + step_KP[:, -1]
            part_K = 1 - np.exp(c_KM - log_middle_K[:, None]).sum(1)
            e_K = log_middle_K + np.log(np.where(part_K > 0, part_K, np.nan))
        turned_KP = np.column_stack([c_KM, g_KM, e_K])
        return np.where(self.turned_K[:, None], turned_KP, plain_KP)

    def towards_zero(self, theta_KP: Floats) -> Floats:
        """Return fits with a fraction of their E, the rest of which goes to the terms.

        Where the best E is 0, Newton's steps lower its logarithm by 1 at most.
        """
        nearer_KP = theta_KP.copy()
        nearer_KP[:, -1] -= STRIDE
        moved_K = np.exp(theta_KP[:, -1]) * -np.expm1(-STRIDE)
        rise_K = moved_K / np.exp(theta_KP[:, : self.terms]).sum(1)
        nearer_KP[:, : self.terms] += np.log1p(rise_K)[:, None]
        return nearer_KP


class Sums:
    """What is summed over runs, for many fits at once."""

    def __init__(self, x_MR: Floats, log_loss_R: Floats) -> None:
        self.x_MR, self.log_loss_R = x_MR, log_loss_R
        ones_R = np.ones(x_MR.shape[1])
        self.powers = [np.stack([ones_R, x, x * x], 1) for x in x_MR]
        """By term: 1, x and x squared, [R, 3]."""
        self.products = {
            (j, k): np.stack([ones_R, x_MR[j], x_MR[k], x_MR[j] * x_MR[k]], 1)
            for k in range(len(x_MR))
            for j in range(k)
        }
        """By pair of terms: 1, each x, and their product, [R, 4]."""

    def objective(self, theta_KP: Floats, weights_KR: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the weighted sum of losses [K], the residuals [K, R] and each term's share of the
        loss foreseen [K, M + 1, R], the constant's last."""
        terms = len(self.x_MR)
        terms_KTR = np.empty((len(theta_KP), terms + 1, len(self.log_loss_R)))
        for j, x in enumerate(self.x_MR):
            np.multiply.outer(-theta_KP[:, terms + j], x, out=terms_KTR[:, j])
            terms_KTR[:, j] += theta_KP[:, j, None]
        terms_KTR[:, terms] = theta_KP[:, -1, None]
        np.exp(np.minimum(terms_KTR, LARGEST_EXPONENT, out=terms_KTR), out=terms_KTR)
        whole_KR = terms_KTR.sum(1)
        residual_KR = self.log_loss_R - np.log(whole_KR)
        terms_KTR /= whole_KR[:, None]
        bounded = np.clip(residual_KR, -DELTA, DELTA)
        objective_K = np.einsum("kr,kr,kr->k", weights_KR, bounded, residual_KR - bounded / 2)
        return objective_K, residual_KR, terms_KTR

    def derivatives(
        self, weights_KR: Floats, residual_KR: Floats, share_KTR: Floats
    ) -> tuple[Floats, Floats]:
        """Return gradient [K, P] and Hessian [K, P, P].

        With f the foreseen log L, whose gradient are the shares p_j, times -x_j for g_j, the second
        derivatives of f are those of the logarithm of a sum of exponentials, diag(p) - p p'.
        """
        terms = len(self.x_MR)
        pull_KR = weights_KR * np.clip(residual_KR, -DELTA, DELTA)
        both_KR = pull_KR + weights_KR * (np.abs(residual_KR) < DELTA)
        gradient = np.empty((len(weights_KR), 2 * terms + 1))
        hessian = np.empty((*gradient.shape, gradient.shape[1]))

        def put(j: int, k: int, values_K: Floats) -> None:
            hessian[:, j, k] = hessian[:, k, j] = values_K

        last_KR = both_KR * share_KTR[:, terms]
        constant_K = np.einsum("kr,kr->k", pull_KR, share_KTR[:, terms])
        gradient[:, -1] = -constant_K
        put(-1, -1, np.einsum("kr,kr->k", last_KR, share_KTR[:, terms]) - constant_K)
        for j in range(terms):
            c, g = j, terms + j
            first = (pull_KR * share_KTR[:, j]) @ self.powers[j]
            gradient[:, c], gradient[:, g] = -first[:, 0], first[:, 1]
            weighted_KR = both_KR * share_KTR[:, j]
            own = (weighted_KR * share_KTR[:, j]) @ self.powers[j] - first
            put(c, c, own[:, 0])
            put(c, g, -own[:, 1])
            put(g, g, own[:, 2])
            mixed = (last_KR * share_KTR[:, j]) @ self.powers[j][:, :2]
            put(c, -1, mixed[:, 0])
            put(g, -1, -mixed[:, 1])
            for k in range(j + 1, terms):
                pair = (weighted_KR * share_KTR[:, k]) @ self.products[j, k]
                put(c, k, pair[:, 0])
                put(g, k, -pair[:, 1])
                put(c, terms + k, -pair[:, 2])
                put(g, terms + k, pair[:, 3])
        return gradient, hessian

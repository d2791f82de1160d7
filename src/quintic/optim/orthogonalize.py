"""The nearest semi-orthogonal matrix: quintic Newton-Schulz, batched, and the SVD as its oracle.

For G = U S V^T both compute an approximation of U V^T: every singular value replaced by one.
Shapes: n matrices of r rows and c columns; R = min(r, c), C = max(r, c).
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of one iteration, x -> a x + b x^3 + c x^5 on every singular value.

Chosen to maximise the slope at zero, so that small singular values grow fastest, at the price of
not converging to 1: after five iterations they lie roughly between 0.7 and 1.2.
Source: https://kellerjordan.github.io/posts/muon/
"""

EPS = 1e-7
"""Added to the Frobenius norm that the matrix is divided by, so that zero stays zero."""


def newton_schulz(
    G_nrc: Tensor, *, steps: int = 5, coefficients: tuple[float, float, float] = QUINTIC
) -> Tensor:
    """Orthogonalise a stack of matrices [..., r, c] at once, in the precision they come in.

    Dividing by the Frobenius norm puts every singular value into [0, 1], where the iteration
    X <- a X + (b A + c A A) X with A = X X^T moves them towards 1. It works on the wide
    orientation, where A is the smaller of the two Gram matrices. A zero matrix stays zero.
    Source: Bernstein & Newhouse, https://arxiv.org/abs/2409.20325, and the Muon post above.
    """
    a, b, c = coefficients
    tall = G_nrc.shape[-2] > G_nrc.shape[-1]
    X = G_nrc.mT if tall else G_nrc
    X_nRC = X.reshape(-1, *X.shape[-2:])
    # Contiguous, since products of a transposed view are up to a third slower on a CPU.
    X_nRC = (X_nRC / (X_nRC.norm(dim=(-2, -1), keepdim=True) + EPS)).contiguous()
    for _ in range(steps):
        A_nRR = X_nRC @ X_nRC.mT
        # baddbmm scales and adds inside the product: b A + c A A, then a X + B X.
        B_nRR = torch.baddbmm(A_nRR, A_nRR, A_nRR, beta=b, alpha=c)
        X_nRC = torch.baddbmm(X_nRC, B_nRR, X_nRC, beta=a)
    X = X_nRC.reshape(X.shape)
    return X.mT if tall else X


def orthogonalize_svd(G_nrc: Tensor) -> Tensor:
    """U V^T from the singular value decomposition: exact, slow, the oracle of the tests.

    Singular values at rounding level (below max(r, c) eps times the largest) have no direction of
    their own and are dropped, so that rank-deficient and zero matrices have a defined result.
    """
    U_nrR, S_nR, Vh_nRc = torch.linalg.svd(G_nrc, full_matrices=False)
    tolerance = max(G_nrc.shape[-2:]) * torch.finfo(G_nrc.dtype).eps
    keep_nR = S_nR > tolerance * S_nR[..., :1]
    nearest_nrc: Tensor = U_nrR * keep_nR[..., None, :].to(G_nrc.dtype) @ Vh_nRc
    return nearest_nrc


def default_dtype(device: torch.device, weights: torch.dtype) -> torch.dtype:
    """The precision of Newton-Schulz where the config says `auto`.

    bfloat16 on CUDA, as in the original: the iteration forgives its errors. Elsewhere the weights'
    own, since bfloat16 products on a CPU without the units for it are ten times slower.
    """
    if device.type == "cuda" and weights is not torch.float64:
        return torch.bfloat16
    return weights

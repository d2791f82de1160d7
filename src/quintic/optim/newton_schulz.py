"""The nearest semi-orthogonal matrix: quintic Newton-Schulz, batched, and the SVD as its oracle.

For G = U S V^T both compute an approximation of U V^T: every singular value replaced by one.
Shapes: n matrices of r rows and c columns; R = min(r, c), C = max(r, c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quintic.errors import QuinticError
from quintic.kernels.runnable import require_triton
from quintic.optim import newton_schulz_cpu

Coefficients = tuple[float, float, float]
"""(a, b, c) of one iteration, x -> a x + b x^3 + c x^5 on every singular value."""

QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""The original's, the same in every iteration.

Chosen to maximise the slope at zero, so that small singular values grow fastest, at the price of
not converging to 1: after five iterations those from 0.002 up lie between 0.68 and 1.20.
Source: https://kellerjordan.github.io/posts/muon/
"""

_POLAR_EXPRESS_TABLE: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Algorithm 1 of https://arxiv.org/abs/2505.16932: each iteration is the odd quintic nearest to 1,
in the worst case, on the interval that the iterations before leave of [0.001, 1]. The last is the
classical one, which the sequence converges to."""

POLAR_EXPRESS_SAFETY = 1.01
"""Algorithm 1 applies every polynomial but the last to x / 1.01, since in low precision a singular
value beyond its interval would be blown up, and the first to a matrix divided by 1.01 besides."""


def _polar_express() -> tuple[Coefficients, ...]:
    def shrunk(coefficients: Coefficients, by: float) -> Coefficients:
        a, b, c = coefficients
        return a / by, b / by**3, c / by**5

    first, *middle, last = _POLAR_EXPRESS_TABLE
    return (
        shrunk(first, POLAR_EXPRESS_SAFETY**2),
        *(shrunk(coefficients, POLAR_EXPRESS_SAFETY) for coefficients in middle),
        last,
    )


POLAR_EXPRESS = _polar_express()
"""Polar Express as published, its safety factors multiplied out. Of singular values from 0.001 of
the Frobenius norm up, five iterations make 0.84 to 1.12 (`QUINTIC` 0.47 to 1.20) and eight 1."""

DION: tuple[Coefficients, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""A sequence of five by You Jiacheng, under the name that optax has for it: after five iterations
singular values from 0.006 up lie between 0.98 and 1.04, smaller ones up to 1.145. HeavyBall and
timm iterate with it, timm and Megatron as their "quintic".
Sources: https://x.com/YouJiacheng/status/1905861218138804534; timm 1.0.31 (`timm/optim/muon.py`)
and HeavyBall 3.2.1 (`heavyball/utils.py`) have the same digits.
"""

COEFFICIENTS: dict[str, tuple[Coefficients, ...]] = {
    "quintic": (QUINTIC,),
    "polar_express": POLAR_EXPRESS,
    "dion": DION,
}
"""The values of `optim.muon.ns_coefficients`."""

EPS = 1e-7
"""Added to the Frobenius norm that the matrix is divided by, so that zero stays zero."""


GramPolynomial = Callable[[Tensor, float, float], Tensor]
"""(X_nRC, b, c) -> b A + c A A, where A = X X^T."""


def gram_polynomial(X_nRC: Tensor, b: float, c: float) -> Tensor:
    """b A + c A A with A = X X^T, of each matrix of a stack; what an iteration multiplies X by.

    `quintic.kernels.gram` computes the same with half the operations.
    """
    A_nRR = X_nRC @ X_nRC.mT
    # baddbmm scales and adds inside the product.
    return torch.baddbmm(A_nRR, A_nRR, A_nRR, beta=b, alpha=c)


def newton_schulz(
    G_nrc: Tensor,
    *,
    steps: int = 5,
    coefficients: Sequence[Coefficients] = (QUINTIC,),
    polynomial: GramPolynomial = gram_polynomial,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    work: Tensor | None = None,
) -> Tensor:
    """Orthogonalise a stack of matrices [..., r, c] at once, in the precision they come in.

    `coefficients` has those of each iteration: fewer iterations use the first of them, further ones
    repeat the last. With `dtype`, that is the precision of the iteration alone. With `overwrite`,
    G's memory may be used for the result; `work` is room for large matrices on a CPU.

    Dividing by the Frobenius norm puts every singular value into [0, 1], where the iteration
    X <- a X + (b A + c A A) X with A = X X^T moves them towards 1. It works on the wide
    orientation, where A is the smaller of the two Gram matrices. A zero matrix stays zero. The
    division is done in `dtype`, but before float16 in float32, since float16 has no number for the
    norm of a large gradient, nor for the entries of a small one.
    Large matrices on a CPU go another way to the same result (`newton_schulz_cpu`).
    Source: Bernstein & Newhouse, https://arxiv.org/abs/2409.20325, and the Muon post above.
    """
    dtype = dtype or G_nrc.dtype
    dividing = torch.float32 if dtype is torch.float16 else dtype
    tall = G_nrc.shape[-2] > G_nrc.shape[-1]
    X = G_nrc.mT if tall else G_nrc
    X_nRC = X.reshape(-1, *X.shape[-2:])
    sequence = [coefficients[min(step, len(coefficients) - 1)] for step in range(steps)]
    by_strips = polynomial is gram_polynomial  # of which they are another form
    if by_strips and newton_schulz_cpu.one_at_a_time(X_nRC.shape[1:], X_nRC.device):
        X_nRC = X_nRC.to(newton_schulz_cpu.product_dtype(dividing), copy=not overwrite)
        X_nRC.div_(X_nRC.norm(dim=(-2, -1), keepdim=True) + EPS)
        X_nRC = X_nRC.to(newton_schulz_cpu.product_dtype(dtype))
        newton_schulz_cpu.iterate_in_place(X_nRC, sequence, dtype, work)
    else:
        X_nRC = X_nRC.to(dividing)
        norm_n11 = X_nRC.norm(dim=(-2, -1), keepdim=True)
        # Contiguous, since products of a stack of transposed views are up to a third slower.
        room_nRC = torch.empty_like(X_nRC, memory_format=torch.contiguous_format)
        X_nRC = torch.div(X_nRC, norm_n11 + EPS, out=room_nRC).to(dtype)
        for a, b, c in sequence:
            B_nRR = polynomial(X_nRC, b, c)
            X_nRC = torch.baddbmm(X_nRC, B_nRR, X_nRC, beta=a)
    X = X_nRC.reshape(X.shape).to(G_nrc.dtype)
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


def newton_schulz_dtype(asked: str, device: torch.device, weights: torch.dtype) -> torch.dtype:
    """Return the precision of Newton-Schulz for `optim.muon.ns_dtype`.

    auto is bfloat16 on CUDA, as in the original: the iteration forgives its errors. Elsewhere it
    is float32, or float64 where the weights are, since bfloat16 products are much slower on a
    CPU without units for it.
    """
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        return dtype
    if device.type == "cuda" and weights is not torch.float64:
        return torch.bfloat16
    return torch.promote_types(weights, torch.float32)


def polynomial_for(kernel: str, device: torch.device, dtype: torch.dtype) -> GramPolynomial:
    """The products of Newton-Schulz for `optim.muon.kernel`, in the precision `dtype`.

    `auto` is PyTorch's own until the kernel has been measured on a GPU.

    Raises `QuinticError` where the kernel is asked for and cannot run.
    """
    if kernel != "triton":
        return gram_polynomial
    require_triton(device, asked="optim.muon.kernel triton", instead="--optim.muon.kernel torch")
    if dtype is torch.float64:
        raise QuinticError(
            "optim.muon.kernel triton adds up in float32 and Newton-Schulz is to run in float64: "
            "use --optim.muon.kernel torch, or --optim.muon.ns-dtype float32"
        )
    from quintic.kernels import gram

    return gram.gram_polynomial


def newton_schulz_flops(rows: int, columns: int, steps: int = 5) -> float:
    """Count the operations that orthogonalise one matrix: per step X X^T, A A and B X, with
    R = min(rows, columns) and C = max: 2 R R C + 2 R R R + 2 R R C."""
    R, C = min(rows, columns), max(rows, columns)
    return steps * (4.0 * R * R * C + 2.0 * R**3)

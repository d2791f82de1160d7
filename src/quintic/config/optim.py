"""Which optimizer has which parameters, its settings, and the schedule of learning rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quintic.config.checks import betas, fraction, not_negative, one_of, positive, require

MOMENTUM_START = 0.85
"""Where a momentum warm-up begins, as in the speedrun's later records."""

MatrixOptimizer = Literal["muon", "adamw", "sgd", "soap", "shampoo"]


@dataclass(frozen=True)
class MuonConfig:
    """Muon, for the matrices of the blocks."""

    lr: float = 3.6e-4
    """Learning rate before the scale; each scale has its own natural range (docs/muon.md)."""
    momentum: float = 0.95
    """Decay of the momentum buffer: buffer = momentum * buffer + gradient."""
    momentum_warmup_steps: int = 0
    """Steps over which the momentum rises linearly from 0.85; 0: constant."""
    nesterov: bool = True
    """Orthogonalise gradient + momentum * buffer instead of the buffer."""
    scale: Literal["max_dim", "aspect", "rms"] = "max_dim"
    """Factor of the update of a (rows, columns) matrix: max_dim sqrt(max(r, c)), the original's;
    aspect sqrt(max(1, r/c)); rms 0.2 sqrt(max(r, c)), which reuses an AdamW learning rate."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    ns_coefficients: Literal["quintic", "polar_express"] = "quintic"
    """Of Newton-Schulz: quintic, the original's, the same in every iteration; polar_express, a
    sequence of eight, of which fewer iterations use the first and more repeat the last."""
    ns_dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Precision of Newton-Schulz; auto: bfloat16 on GPUs, the weights' own elsewhere."""
    kernel: Literal["auto", "torch", "triton"] = "auto"
    """Products of Newton-Schulz: torch; triton, a kernel for GPUs that computes half of what is
    symmetric; auto: torch, until the kernel has been measured."""
    normuon: bool = False
    """NorMuon: divide each row of the update by its running root mean square."""
    beta2: float = 0.95
    """Decay of NorMuon's second moment; used with normuon only."""
    weight_decay: float = 0.0
    """Decoupled: weights shrink by lr * weight_decay a step, before the scale."""
    cautious: bool = False
    """Decay a weight only where the update makes it smaller too."""

    def __post_init__(self) -> None:
        one_of("optim.muon", self, "scale", "ns_coefficients", "ns_dtype", "kernel")
        positive("optim.muon", self, "lr", "ns_steps")
        not_negative("optim.muon", self, "weight_decay", "momentum_warmup_steps")
        fraction("optim.muon", self, "momentum", "beta2")
        require(
            self.momentum_warmup_steps == 0 or self.momentum >= MOMENTUM_START,
            f"optim.muon.momentum is {self.momentum} and its warm-up rises from {MOMENTUM_START}: "
            "choose a larger momentum, or --optim.muon.momentum-warmup-steps 0",
        )
        require(
            not self.cautious or self.weight_decay > 0,
            "optim.muon.cautious is True and optim.muon.weight_decay 0.0: there is no decay to be "
            "cautious about; give --optim.muon.weight-decay",
        )


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW, for everything that Muon does not take."""

    lr: float = 3.6e-3
    """Learning rate of embeddings, head and vectors."""
    matrix_lr: float | None = None
    """Learning rate of the block matrices where AdamW has them; None: lr."""
    head_lr: float | None = None
    """Learning rate of a head that is not tied to the embedding; None: lr."""
    scalar_lr: float | None = None
    """Learning rate of the learned scalars of shortcuts; None: lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled, on matrices only: vectors are never decayed."""

    def __post_init__(self) -> None:
        positive("optim.adamw", self, "lr", "matrix_lr", "head_lr", "scalar_lr", "eps")
        not_negative("optim.adamw", self, "weight_decay")
        betas("optim.adamw", self.betas)


@dataclass(frozen=True)
class SGDConfig:
    """SGD with Nesterov momentum, for the matrices of the blocks: what Muon orthogonalises."""

    lr: float = 0.03
    """Learning rate."""
    momentum: float = 0.95
    """Decay of the momentum buffer: buffer = momentum * buffer + gradient."""

    def __post_init__(self) -> None:
        positive("optim.sgd", self, "lr")
        require(
            0 < self.momentum < 1,
            f"optim.sgd.momentum is {self.momentum}: it must be between 0 and 1, since Nesterov's "
            "method has momentum",
        )


@dataclass(frozen=True)
class SOAPConfig:
    """SOAP, for the matrices of the blocks; needs the extra `optimizers`."""

    lr: float = 3e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the first moment, and of the second and the preconditioners."""
    precondition_frequency: int = 10
    """Steps from one renewal of the eigenbasis to the next."""

    def __post_init__(self) -> None:
        positive("optim.soap", self, "lr", "precondition_frequency")
        betas("optim.soap", self.betas)


@dataclass(frozen=True)
class ShampooConfig:
    """Shampoo, for the matrices of the blocks; needs the extra `optimizers`."""

    lr: float = 1e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the momentum, and of the preconditioners and the step length."""
    precondition_frequency: int = 10
    """Steps from one renewal of the inverse roots to the next."""

    def __post_init__(self) -> None:
        positive("optim.shampoo", self, "lr", "precondition_frequency")
        betas("optim.shampoo", self.betas)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run, as a factor of each optimizer's own."""

    kind: Literal["trapezoid", "cosine"] = "trapezoid"
    """trapezoid: warm-up, constant, linear to zero; cosine: warm-up, half a cosine to zero."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    cooldown_fraction: float = 0.28
    """Share of all steps over which the trapezoid falls to zero; unused by cosine."""

    def __post_init__(self) -> None:
        one_of("optim.schedule", self, "kind")
        not_negative("optim.schedule", self, "warmup_steps")
        require(
            0 <= self.cooldown_fraction <= 1,
            f"optim.schedule.cooldown_fraction is {self.cooldown_fraction}: it must be from 0 to 1",
        )


@dataclass(frozen=True)
class OptimConfig:
    """Which optimizer takes the block matrices, and each optimizer's settings."""

    matrices: MatrixOptimizer = "muon"
    """The optimizer of the block matrices; everything else is AdamW's."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    sgd: SGDConfig = field(default_factory=SGDConfig)
    soap: SOAPConfig = field(default_factory=SOAPConfig)
    shampoo: ShampooConfig = field(default_factory=ShampooConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = None
    """Clip the gradient to this global norm; None: no clipping."""

    def __post_init__(self) -> None:
        one_of("optim", self, "matrices")
        positive("optim", self, "clip_norm")

    @property
    def matrix_lr(self) -> float:
        """Learning rate of the block matrices, before schedule and scale."""
        if self.matrices == "adamw":
            return self.adamw.matrix_lr or self.adamw.lr
        return {
            "muon": self.muon.lr,
            "sgd": self.sgd.lr,
            "soap": self.soap.lr,
            "shampoo": self.shampoo.lr,
        }[self.matrices]

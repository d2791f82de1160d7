"""Which optimizer has which parameters, its settings, and the schedule of learning rates."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

from quintic.config.schema import (
    ABOVE_0,
    FINITE,
    ITERATED,
    ON,
    Accepted,
    Beta,
    Betas,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rule,
    Section,
    require,
    section,
    setting,
)

MOMENTUM_START = 0.85
"""Where a momentum warm-up begins, as in the speedrun's later records."""

NESTEROV = Rule(
    lambda value: 0 < value < 1, "it must be between 0 and 1, since Nesterov's method has momentum"
)

LEARNED_SCALARS = {"model.value_embeddings": ON, "model.x0_skip": True, "model.unet_skips": True}
"""What gives the model learned scalars, which weigh skips."""

T = TypeVar("T")


@dataclass(frozen=True)
class MatrixOptimizer:
    """Says what is true of an optimizer of the block matrices, whatever its settings are."""

    label: str
    """What reports call it."""
    built_by: str
    """MODULE:NAME of a function of (settings, groups, placement), or of a class that takes
    (params, lr=..., **options); imported when it is needed."""
    elementwise: bool = False
    """It updates each element by that element's gradients alone, so a matrix may be cut by rows."""
    gathers: bool = False
    """Not elementwise, it brings the rows of a matrix together itself where they are sharded."""
    package: str | None = None
    """A package that it needs, of the extra `optimizers`."""

    def check_sharding(self, name: str) -> None:
        """Raise `QuinticError` where a matrix must stay whole, and rows are all that ranks have."""
        require(
            self.elementwise or self.gathers,
            f"train.sharding fsdp cuts matrices into rows, and optim.matrices {name} needs them "
            "whole: use --train.sharding zero1",
        )


def matrix_optimizer(
    name: str, settings: Callable[[], T], label: str, built_by: str, **facts: Any
) -> T:
    """Register an optimizer as the field `name` of `OptimConfig`, a section of its settings."""
    return field(
        default_factory=settings,
        metadata={
            "optimizer": MatrixOptimizer(label, built_by, **facts),
            # AdamW has all other parameters too, so its settings are never without effect.
            "part_of": None if name == "adamw" else {"optim.matrices": name},
        },
    )


@dataclass(frozen=True)
class MuonConfig(Section, name="optim.muon"):
    """Muon, for the matrices of the blocks."""

    lr: PositiveFloat = 3.6e-4
    """Learning rate before the scale; each scale has its own natural range (docs/muon.md)."""
    momentum: Beta = 0.95
    """Decay of the momentum buffer: buffer = momentum * buffer + gradient."""
    momentum_warmup_steps: NonNegativeInt = 0
    """Steps over which the momentum rises linearly from 0.85; 0: constant."""
    nesterov: bool = True
    """Orthogonalise gradient + momentum * buffer instead of the buffer."""
    scale: Literal["max_dim", "aspect", "rms", "none"] = "max_dim"
    """Factor of the update of a (rows, columns) matrix: max_dim sqrt(max(r, c)), the original's;
    aspect sqrt(max(1, r/c)); rms 0.2 sqrt(max(r, c)), which reuses an AdamW learning rate; none."""
    ns_steps: Annotated[int, ABOVE_0, ITERATED] = 5
    """Newton-Schulz iterations."""
    ns_coefficients: Literal["quintic", "polar_express", "dion"] = "quintic"
    """Of Newton-Schulz: quintic, the original's, the same in every iteration; polar_express, a
    sequence of eight, and dion, one of five, of which fewer iterations use the first and more
    repeat the last."""
    ns_dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Precision of Newton-Schulz; auto: bfloat16 on GPUs, the weights' own elsewhere."""
    kernel: Literal["auto", "torch", "triton"] = setting("auto", resume="free")
    """Products of Newton-Schulz: torch; triton, a kernel for GPUs that computes half of what is
    symmetric; auto: torch, until the kernel has been measured."""
    normuon: bool = False
    """NorMuon: divide each row of the update by its running root mean square."""
    beta2: Beta = setting(0.95, part_of={"optim.muon.normuon": True})
    """Decay of NorMuon's second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled: weights shrink by lr * weight_decay a step, before the scale."""
    cautious: bool = setting(False, needs={"optim.muon.weight_decay": ON})
    """Decay a weight only where the update makes it smaller too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.momentum_warmup_steps == 0 or self.momentum >= MOMENTUM_START,
            f"optim.muon.momentum is {self.momentum} and its warm-up rises from {MOMENTUM_START}: "
            f"use --optim.muon.momentum {MOMENTUM_START} or more, or "
            "--optim.muon.momentum-warmup-steps 0",
        )


@dataclass(frozen=True)
class AdamWConfig(Section, name="optim.adamw"):
    """AdamW, for everything that Muon does not take."""

    # Without a bound: PyTorch's AdamW computes with doubles, and the loss says that it diverged.
    lr: Annotated[float, FINITE, ABOVE_0] = 3.6e-3
    """Learning rate of embeddings, head and vectors."""
    matrix_lr: PositiveFloat | None = setting(None, part_of={"optim.matrices": "adamw"})
    """Learning rate of the block matrices where AdamW has them; None: lr."""
    head_lr: PositiveFloat | None = setting(None, part_of={"model.tied_head": False})
    """Learning rate of a head that is not tied to the embedding; None: lr."""
    scalar_lr: PositiveFloat | None = setting(None, part_of=LEARNED_SCALARS)
    """Learning rate of the learned scalars of shortcuts; None: lr."""
    betas: Betas = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled, on matrices only: vectors are never decayed."""


@dataclass(frozen=True)
class SGDConfig(Section, name="optim.sgd"):
    """SGD with Nesterov momentum, for the matrices of the blocks: what Muon orthogonalises."""

    lr: PositiveFloat = 0.03
    """Learning rate."""
    momentum: Annotated[float, NESTEROV] = 0.95
    """Decay of the momentum buffer: buffer = momentum * buffer + gradient."""


@dataclass(frozen=True)
class SOAPConfig(Section, name="optim.soap"):
    """SOAP, for the matrices of the blocks; needs the extra `optimizers`."""

    lr: PositiveFloat = 3e-3
    """Learning rate."""
    betas: Betas = (0.95, 0.95)
    """Decay of the first moment, and of the second and the preconditioners."""
    precondition_frequency: PositiveInt = 10
    """Steps from one renewal of the eigenbasis to the next."""


@dataclass(frozen=True)
class ShampooConfig(Section, name="optim.shampoo"):
    """Shampoo, for the matrices of the blocks; needs the extra `optimizers`."""

    lr: PositiveFloat = 1e-3
    """Learning rate."""
    betas: Betas = (0.95, 0.95)
    """Decay of the momentum, and of the preconditioners and the step length."""
    precondition_frequency: PositiveInt = 10
    """Steps from one renewal of the inverse roots to the next."""


@dataclass(frozen=True)
class CustomConfig(Section, name="optim.custom"):
    """An optimizer class of your own, for the matrices of the blocks (docs/extending.md)."""

    lr: PositiveFloat = 1e-3
    """Learning rate."""
    options: tuple[str, ...] = ()
    """Further hyperparameters of the class, each NAME=VALUE, with spaces between them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [option.partition("=")[0] for option in self.options]
        for option, name in zip(self.options, names, strict=True):
            require(
                "=" in option and name.isidentifier(),
                f"optim.custom.options has {option!r}: each must be NAME=VALUE, such as beta1=0.9",
            )
            require(
                name not in ("params", "lr"),
                f"optim.custom.options has {option!r}: use --optim.custom.lr",
            )
            require(names.count(name) == 1, f"optim.custom.options has {name} twice")

    @property
    def keywords(self) -> dict[str, Any]:
        """Return the options by name, each as the Python literal it is or else as text."""
        found = {}
        for name, _, text in (option.partition("=") for option in self.options):
            try:
                found[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                found[name] = text
        return found


def _names_a_class(matrices: object) -> bool:
    module, _, name = str(matrices).partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


CUSTOM = Accepted(_names_a_class, "MODULE:Class")


@dataclass(frozen=True)
class ScheduleConfig(Section, name="optim.schedule"):
    """Learning rate over the run, as a factor of each optimizer's own."""

    kind: Literal["trapezoid", "cosine"] = setting("trapezoid", resume="schedule")
    """trapezoid: warm-up, constant, linear to zero; cosine: warm-up, half a cosine to zero."""
    warmup_steps: NonNegativeInt = setting(0, resume="schedule")
    """Steps of linear warm-up."""
    cooldown_fraction: Annotated[
        float, Rule(lambda share: 0 <= share <= 1, "it must be from 0 to 1")
    ] = setting(0.28, resume="schedule", part_of={"optim.schedule.kind": "trapezoid"})
    """Share of all steps over which the trapezoid falls to zero."""


@dataclass(frozen=True)
class OptimConfig(Section, name="optim"):
    """Which optimizer takes the block matrices, and each optimizer's settings."""

    matrices: str = "muon"
    """The optimizer of the block matrices: muon, adamw, sgd, soap, shampoo, or MODULE:Class, one of
    your own; everything else is AdamW's."""
    muon: MuonConfig = matrix_optimizer(
        *("muon", MuonConfig, "Muon", "quintic.optim.muon:build_muon"), gathers=True
    )
    adamw: AdamWConfig = matrix_optimizer(
        *("adamw", AdamWConfig, "AdamW", "quintic.optim.baselines:adamw"), elementwise=True
    )
    sgd: SGDConfig = matrix_optimizer(
        *("sgd", SGDConfig, "SGD with Nesterov momentum", "quintic.optim.baselines:sgd"),
        elementwise=True,
    )
    soap: SOAPConfig = matrix_optimizer(
        *("soap", SOAPConfig, "SOAP", "quintic.optim.baselines:soap"), package="pytorch_optimizer"
    )
    shampoo: ShampooConfig = matrix_optimizer(
        *("shampoo", ShampooConfig, "Shampoo", "quintic.optim.baselines:shampoo"),
        package="pytorch_optimizer",
    )
    custom: CustomConfig = section(CustomConfig, part_of={"optim.matrices": CUSTOM})
    schedule: ScheduleConfig = section(ScheduleConfig)
    clip_norm: PositiveFloat | None = None
    """Clip the gradient to this global norm; None: no clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = matrix_optimizers()
        require(
            self.matrices in known or self.is_custom,
            f"optim.matrices is {self.matrices!r}: it must be one of {', '.join(known)}, or "
            "MODULE:Class, an optimizer of your own (docs/extending.md)",
        )

    @property
    def is_custom(self) -> bool:
        """True where the optimizer of the block matrices is named as MODULE:Class."""
        return CUSTOM.accepts(self.matrices)

    @property
    def matrix_settings(self) -> Any:
        """Return the settings of the optimizer of the block matrices."""
        return self.custom if self.is_custom else getattr(self, self.matrices)

    @property
    def matrix_lr(self) -> float:
        """Return the learning rate of the block matrices, before schedule and scale."""
        own = self.adamw.matrix_lr if self.matrices == "adamw" else None
        lr: float = own or self.matrix_settings.lr
        return lr

    @property
    def lr_options(self) -> str:
        """Return the options for the learning rates in words, for messages."""
        own = "custom" if self.is_custom else self.matrices
        return " or ".join(f"--optim.{name}.lr" for name in dict.fromkeys([own, "adamw"]))


def matrix_optimizers() -> dict[str, MatrixOptimizer]:
    """Return what is registered: each optimizer by its name, in the order of the fields."""
    registered = {f.name: f.metadata.get("optimizer") for f in fields(OptimConfig)}
    return {name: found for name, found in registered.items() if found is not None}

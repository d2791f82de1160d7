"""A whole run: its sections, and what they ask of each other."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quintic.config.batches import BatchSizes
from quintic.config.checks import require
from quintic.config.data import DataConfig
from quintic.config.model import ModelConfig
from quintic.config.optim import OptimConfig
from quintic.config.schema import build, unknown_field
from quintic.config.train import TrainConfig
from quintic.errors import QuinticError


@dataclass(frozen=True)
class Config:
    """A whole run."""

    recipe: str = "custom"
    """Name of the recipe this came from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        context, batch, micro = (
            self.model.context,
            self.train.batch_tokens,
            self.train.micro_batch,
        )
        require(
            batch % context == 0,
            f"train.batch_tokens {batch:,} is not a multiple of model.context {context:,}: "
            f"use --train.batch-tokens {max(1, round(batch / context)) * context}",
        )
        stages = self.train.batch_stages
        require(
            stages <= self.train.steps and self.batch_sequences % stages == 0,
            f"train.batch_stages is {stages}: it must divide the {self.batch_sequences} sequences "
            f"of a batch, and there are {self.train.steps} steps to cut into stages; use "
            "--train.batch-stages 1, or another --train.batch-tokens",
        )
        smallest = self.batches.smallest
        require(
            micro is None or smallest % micro == 0,
            f"train.batch_tokens {batch:,} is not a multiple of train.micro_batch {micro} times "
            f"model.context {context:,}"
            + (f" in each of {stages} stages" if stages > 1 else "")
            + f": the {'smallest ' if stages > 1 else ''}batch has {smallest} sequences, so the "
            "micro-batch must divide that",
        )
        require(
            self.train.eval_tokens % context == 0,
            f"train.eval_tokens {self.train.eval_tokens:,} is not a multiple of model.context "
            f"{context:,}: use --train.eval-tokens "
            f"{max(1, round(self.train.eval_tokens / context)) * context}",
        )
        require(
            self.train.sharding != "fsdp" or self.optim.matrices not in ("soap", "shampoo"),
            f"train.sharding fsdp cuts matrices into rows, and optim.matrices "
            f"{self.optim.matrices} needs them whole: use --train.sharding zero1",
        )
        require(
            self.optim.adamw.head_lr is None or not self.model.tied_head,
            f"optim.adamw.head_lr is {self.optim.adamw.head_lr} and the head is the embedding's "
            "matrix, whose learning rate is optim.adamw.lr: leave it out, or use "
            "--model.no-tied-head",
        )
        require(
            self.optim.adamw.scalar_lr is None or self.model.has_scalars,
            f"optim.adamw.scalar_lr is {self.optim.adamw.scalar_lr} and the model has no learned "
            "scalars: leave it out, or use --model.value-embeddings, --model.x0-skip or "
            "--model.unet-skips",
        )
        require(
            self.train.attention != "flex" or self.model.architecture == "gpt",
            f"train.attention flex is for model.architecture gpt, and this is "
            f"{self.model.architecture}: use another --train.attention",
        )
        if self.train.float8_head:
            self._check_float8_head()
        require(
            self.train.mtp_tokens <= context,
            f"train.mtp_tokens is {self.train.mtp_tokens} and model.context {context}: no "
            "sequence has as many tokens ahead, so predict fewer",
        )
        schedule = self.optim.schedule
        require(
            schedule.warmup_steps + self.cooldown_steps <= self.train.steps,
            f"optim.schedule.warmup_steps {schedule.warmup_steps} and {self.cooldown_steps} steps "
            f"of cooldown do not fit in train.steps {self.train.steps}: shorten the warm-up",
        )

    def _check_float8_head(self) -> None:
        require(
            self.train.loss != "plain",
            "train.float8_head is for the losses that go by chunks, and train.loss is plain: use "
            "--train.loss chunked or --train.loss fused, or --train.no-float8-head",
        )
        for name in ("width", "context", "vocab_size"):
            size = getattr(self.model, name)
            require(
                size is None or size % 16 == 0,
                f"model.{name} is {size}, and train.float8_head multiplies 16 numbers at a time: "
                f"choose a multiple, for example {-(-(size or 0) // 16) * 16}",
            )

    @property
    def batch_sequences(self) -> int:
        """Sequences in the global batch, of the last stage where it grows."""
        return self.train.batch_tokens // self.model.context

    @property
    def batches(self) -> BatchSizes:
        """Sequences in the global batch of every step."""
        return BatchSizes(self.batch_sequences, self.train.batch_stages, self.train.steps)

    def tokens_before(self, step: int) -> int:
        """Tokens that all steps before this one train on."""
        return self.batches.before(step) * self.model.context

    @property
    def tokens(self) -> int:
        """Tokens that the whole run trains on."""
        return self.tokens_before(self.train.steps)

    @property
    def cooldown_steps(self) -> int:
        """Steps of the trapezoid's linear fall to zero; 0 for cosine, which has none."""
        if self.optim.schedule.kind == "cosine":
            return 0
        return round(self.optim.schedule.cooldown_fraction * self.train.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; raises `QuinticError` on unknown keys and bad values."""
        return typing.cast(Config, build(Config, values))

    def override(self, changes: Mapping[str, Any]) -> Config:
        """A copy with dotted fields replaced: `override({"train.steps": 10})`.

        All changes are applied before anything is validated, so fields that depend on each other
        can change together. Raises `QuinticError` for an unknown field, naming the nearest.
        """
        values = self.to_dict()
        for key, value in changes.items():
            section, *rest = key.split(".")
            target: Any = values
            path = [section, *rest]
            for name in path[:-1]:
                target = target.get(name) if isinstance(target, dict) else None
            if not isinstance(target, dict) or path[-1] not in target:
                raise QuinticError(unknown_field(Config, key))
            target[path[-1]] = value
        return Config.from_dict(values)

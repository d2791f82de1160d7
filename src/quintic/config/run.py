"""A whole run: its sections, what they ask of each other, and what is left to the dataset."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from quintic import __version__
from quintic.config.data import DataConfig
from quintic.config.model import ModelConfig
from quintic.config.optim import OptimConfig, matrix_optimizers
from quintic.config.origin import ContinuedFrom, Imported, InitFrom
from quintic.config.schema import (
    RENAMED,
    build,
    check_effects,
    dotted,
    flatten,
    require,
    section,
    setting,
    without_effect,
)
from quintic.config.train import BatchSizes, TrainConfig
from quintic.errors import QuinticError, counted

FORMAT, FORMAT_SINCE = 2, "0.2.0"
"""Number of the format in which a config is saved, and the first release that reads it."""


@dataclass(frozen=True)
class Config:
    """Describes a whole run."""

    recipe: str = setting("custom", resume="free", not_swept="it is a name, and changes nothing")
    """Name of the recipe this came from."""
    model: ModelConfig = section(ModelConfig)
    data: DataConfig = section(DataConfig)
    optim: OptimConfig = section(OptimConfig)
    train: TrainConfig = section(TrainConfig)
    continued_from: ContinuedFrom = section(ContinuedFrom)
    init_from: InitFrom = section(InitFrom)
    imported: Imported = section(Imported)

    def __post_init__(self) -> None:
        check_effects(self)
        context, batch, micro = self.model.context, self.train.batch_tokens, self.train.micro_batch
        require(
            batch % context == 0,
            f"train.batch_tokens {batch:,} is not a multiple of model.context {context:,}: "
            f"use --train.batch-tokens {max(1, round(batch / context)) * context}",
        )
        stages = self.train.batch_stages
        require(
            stages <= self.train.steps and self.batch_sequences % stages == 0,
            f"train.batch_stages is {stages}: it must divide the "
            f"{counted(self.batch_sequences, 'sequence')} of a batch, and "
            f"{counted(self.train.steps, 'step')} are to be cut into stages; use "
            "--train.batch-stages 1, or another --train.batch-tokens",
        )
        smallest = self.batches.smallest
        require(
            micro is None or smallest % micro == 0,
            f"train.batch_tokens {batch:,} is not a multiple of train.micro_batch {micro} times "
            f"model.context {context:,}"
            + (f" in each of {stages} stages" if stages > 1 else "")
            + f": the {'smallest ' if stages > 1 else ''}batch has "
            f"{counted(smallest, 'sequence')}, so --train.micro-batch must divide that",
        )
        require(
            self.train.eval_tokens % context == 0,
            f"train.eval_tokens {self.train.eval_tokens:,} is not a multiple of model.context "
            f"{context:,}: use --train.eval-tokens "
            f"{max(1, round(self.train.eval_tokens / context)) * context}",
        )
        # A class of the user's own says what it needs when it is imported.
        if self.train.sharding == "fsdp" and not self.optim.is_custom:
            matrix_optimizers()[self.optim.matrices].check_sharding(self.optim.matrices)
        require(
            self.train.attention != "flex" or self.model.architecture == "gpt",
            f"train.attention flex is for model.architecture gpt, and this is "
            f"{self.model.architecture}: use another --train.attention",
        )
        for name in ("width", "context", "vocab_size") if self.train.float8_head else ():
            size = getattr(self.model, name)
            require(
                size is None or size % 16 == 0,
                f"model.{name} is {size}, and train.float8_head multiplies 16 numbers at a time: "
                f"use a multiple, for example --model.{name.replace('_', '-')} "
                f"{-(-(size or 0) // 16) * 16}",
            )
        require(
            self.train.mtp_tokens <= context,
            f"train.mtp_tokens is {self.train.mtp_tokens} and model.context {context}: no "
            f"sequence has as many tokens ahead, so use --train.mtp-tokens {context}",
        )
        schedule = self.optim.schedule
        require(
            schedule.warmup_steps + self.cooldown_steps <= self.train.steps,
            f"optim.schedule.warmup_steps {schedule.warmup_steps} and "
            f"{counted(self.cooldown_steps, 'step')} of cooldown do not fit in train.steps "
            f"{self.train.steps}: use --optim.schedule.warmup-steps "
            f"{max(0, self.train.steps - self.cooldown_steps)}"
            + (", or a smaller --optim.schedule.cooldown-fraction" if self.cooldown_steps else ""),
        )

    @property
    def is_imported(self) -> bool:
        """Return whether the model was trained by another tool, and not here."""
        return self.imported.source is not None

    @property
    def batch_sequences(self) -> int:
        """Return the sequences in the global batch, of the last stage where it grows."""
        return self.train.batch_tokens // self.model.context

    @property
    def batches(self) -> BatchSizes:
        """Return the sequences in the global batch of every step."""
        return BatchSizes(self.batch_sequences, self.train.batch_stages, self.train.steps)

    def tokens_before(self, step: int) -> int:
        """Return the tokens that all steps before this one train on."""
        return self.batches.before(step) * self.model.context

    @property
    def tokens(self) -> int:
        """Return the tokens that the whole run trains on."""
        return self.tokens_before(self.train.steps)

    @property
    def cooldown_steps(self) -> int:
        """Return the steps of the trapezoid's linear fall to zero; other kinds have none."""
        if self.optim.schedule.kind != "trapezoid":
            return 0
        return round(self.optim.schedule.cooldown_fraction * self.train.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, ready for JSON, with the number of their format."""
        return {"format": FORMAT, "needs_quintic": FORMAT_SINCE, **asdict(self)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """Return the config of what `to_dict` gave, in this release or an earlier one.

        Raises `QuinticError` on unknown keys, bad values and the format of a later release.
        """
        if not isinstance(values, Mapping):
            text = json.dumps(values, default=repr)
            raise QuinticError(
                f"a config is an object with sections, and this is {text[:40]}: restore it"
            )
        found = dotted(values)
        number, since = found.pop("format", 1), found.pop("needs_quintic", "a newer one")
        require(
            type(number) is int and number > 0,
            f"config format is {number!r}: it must be a whole number from 1; restore the file",
        )
        if (switch := "train.tensorboard") in found:  # before there were other trackers
            writes = found.pop(switch)
            require(type(writes) is bool, f"{switch} is {writes!r}: it must be True or False")
            require("train.log_to" not in found, f"config has {switch} and train.log_to: keep that")
            found["train.log_to"] = ["tensorboard"] if writes else []
        # Before 0.2.0 was released threads could divide a step in another way, with the same result
        # to rounding: a config that says so is that of the same run without it.
        found.pop("train.side_by_side", None)
        if number == 1:
            found = _from_format_1(found)
        elif number != FORMAT:
            raise QuinticError(
                f"config format {number} needs quintic {since}, and this is {__version__}, which "
                f"reads formats 1 to {FORMAT}: update quintic"
            )
        return typing.cast(Config, build(Config, found))

    def override(self, changes: Mapping[str, Any]) -> Config:
        """Return a copy with dotted fields replaced: `override({"train.steps": 10})`.

        All changes are applied before anything is validated, so fields that depend on each other
        can change together. Where they switch something off, its settings go back to their
        defaults, unless they are among the changes. Raises `QuinticError` for an unknown field,
        naming the nearest.
        """
        values = {**flatten(self), **changes}
        dropped = set(without_effect(Config, values)) - changes.keys()
        kept = {name: value for name, value in values.items() if name not in dropped}
        return typing.cast(Config, build(Config, kept))


def _from_format_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config of quintic 0.1 as they are called and valued now."""
    for old, new in RENAMED.items():
        require(
            not {old, new} <= values.keys(), f"config has {old} and {new}, its name now: keep one"
        )
    found = {RENAMED.get(name, name): value for name, value in values.items()}
    prefetch = "train.prefetch_to_gpu"
    for old, new in (("ahead", "on"), ("inline", "off")):
        if found.get(prefetch) == old:
            found[prefetch] = new
    # Format 1 let settings stand that had no effect, such as a learning rate of SGD beside Muon.
    # They are refused now, and taking them away changes nothing of what was computed.
    for name in without_effect(Config, found):
        found.pop(name, None)
    return found


def from_the_start(config: Config) -> Config:
    """Return the config for a run that begins at step 0 with drawn weights, although it may be that
    of one which goes on from another, exactly.

    Raises `QuinticError` where it says only how a run went on.
    """
    origin, init = config.continued_from, config.init_from
    require(
        not config.is_imported,
        f"the config is that of {config.imported.source}, which was imported, and says nothing of "
        "training: give a recipe, and name the folder with --init-from",
    )
    require(
        init.run is None,
        f"the config is that of a run which began with the weights of {init.run}: name its folder "
        "with --init-from",
    )
    require(
        origin.anew == 0,
        f"the config is that of a run which went on from {origin.run} at step {origin.anew}, on "
        "other data or at other learning rates, and says nothing of the steps before: take "
        "continued_from out of it",
    )
    return replace(config, continued_from=ContinuedFrom())


def resolve_vocabulary(config: Config, dataset_vocabulary: int | None) -> Config:
    """Return the config with `model.vocab_size` filled in from the dataset's vocabulary.

    Rounded up to a multiple of 128, which keeps the head's matrix product aligned; the extra rows
    are never a target. Raises `QuinticError` where neither gives a size, or where the model's is
    too small for the dataset's tokenizer.
    """
    if config.model.vocab_size is not None:
        require(
            config.model.vocab_size >= (dataset_vocabulary or 0),
            f"model.vocab_size is {config.model.vocab_size} and the tokenizer of "
            f"{config.data.path} has {dataset_vocabulary} tokens: give the model at least as many, "
            "or leave --model.vocab-size out",
        )
        return config
    if dataset_vocabulary is None:
        raise QuinticError(
            f"the vocabulary of {config.data.path} is unknown, since it has no manifest: name "
            "its tokenizer with --data.tokenizer (gpt2, or a tokenizer.json) or give "
            "--model.vocab-size"
        )
    padded = -(-dataset_vocabulary // 128) * 128
    return replace(config, model=replace(config.model, vocab_size=padded))


def resolve_eot(config: Config, dataset_eot_id: int | None) -> Config:
    """Return the config with `model.eot_id` filled in from the dataset's tokenizer, where it is
    needed.

    Raises `QuinticError` where neither gives one, or where they differ.
    """
    model = config.model
    if not model.document_mask:
        return config
    require(
        model.eot_id is not None or dataset_eot_id is not None,
        f"the end-of-text token of {config.data.path} is unknown, which model.document_mask needs: "
        "name its tokenizer with --data.tokenizer (gpt2, or a tokenizer.json) or give "
        "--model.eot-id",
    )
    require(
        model.eot_id is None or dataset_eot_id is None or model.eot_id == dataset_eot_id,
        f"model.eot_id is {model.eot_id} and the tokenizer of {config.data.path} begins documents "
        f"with {dataset_eot_id}: leave --model.eot-id out",
    )
    eot_id = dataset_eot_id if model.eot_id is None else model.eot_id
    return replace(config, model=replace(model, eot_id=eot_id))

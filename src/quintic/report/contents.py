"""What a report tells of a run: what its folder says, and what its model makes of the validation
text. Whatever is not to be had is named with the reason, and the rest is told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic import run_dir
from quintic.config import Config
from quintic.data.dataset import Dataset
from quintic.data.tokenizer import Tokenizer
from quintic.diagnostics.heatmaps import HeatMaps, read_heat_maps
from quintic.errors import QuinticError, reason
from quintic.evaluate import token_counts
from quintic.metrics_file import METRICS, MetricsRecord, read_records
from quintic.model.base import LanguageModel
from quintic.report.token_losses import Predictions, TokenLosses, predict, token_losses
from quintic.run_dir import SAMPLES
from quintic.samples import why_none

SHOWN_TOKENS = 2048
"""Of the validation text with each token's loss, about."""
LIKELIEST = 5
MEASURED_TOKENS = 2**18
"""Tokens whose losses are measured, at most."""


@dataclass(frozen=True)
class Measured:
    """The losses of a model on the run's validation text."""

    step: int
    losses: TokenLosses
    predictions: Predictions
    """For the beginning of the text, which is shown."""
    counts_V: npt.NDArray[np.int64]
    """How often the training data has each token."""
    tokenizer: Tokenizer | None
    """None where nobody says which, so that tokens are numbers."""

    @property
    def bits_per_byte(self) -> float | None:
        """Return the loss in bits per byte; None where the bytes are not known, or there are
        none."""
        if self.tokenizer is None:
            return None
        return self.losses.bits_per_byte(self.tokenizer.byte_lengths)


@dataclass
class Contents:
    """All of a report; what is missing is said in `missing`."""

    folder: Path
    config: Config
    records: list[MetricsRecord]
    samples: list[dict[str, Any]]
    environments: list[dict[str, Any]]
    param_groups: list[list[str]]
    """The rows of `param_groups.txt`, of which the first is the heading."""
    heat_maps: HeatMaps = field(default_factory=dict)
    """What `diagnostics.jsonl` says; empty where the run has none."""
    measured: Measured | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def parameter_count(self) -> int:
        """Return the elements of all parameters, a tied head once; 0 where they are not known."""
        try:
            return sum(math.prod(map(int, row[1].split(" x "))) for row in self.param_groups[1:])
        except (IndexError, ValueError):  # the file is another, or was edited
            return 0


def read_contents(folder: Path) -> Contents:
    """Return what the folder of a run says.

    Raises `QuinticError` where it holds none, or one that was not trained here, and where its files
    are damaged.
    """
    config = run_dir.read_config(folder)
    if config.is_imported:
        raise QuinticError(
            f"the model in {folder} was imported from {config.imported.source} and not trained "
            "here, so there is no training to report: quintic evaluate measures its loss"
        )
    contents = Contents(
        folder=folder,
        config=config,
        records=read_records(folder / METRICS),
        samples=[],
        environments=run_dir.read_environments(folder),
        param_groups=_read_param_groups(folder),
    )
    try:
        contents.heat_maps = read_heat_maps(folder)
    except QuinticError as error:
        contents.missing.append(f"what the optimizer does to the weights: {error}")
    if not contents.records:
        contents.missing.append(f"curves and times: {METRICS} has no record")
    if not contents.param_groups:
        contents.missing.append(f"the parameters: {run_dir.PARAM_GROUPS} is not there")
    try:
        contents.samples = read_records(folder / SAMPLES)
        why_none_are_there = None if contents.samples else _why_no_samples(contents)
    except QuinticError as error:
        why_none_are_there = str(error)
    if why_none_are_there is not None:
        contents.missing.append(f"samples along the way: {why_none_are_there}")
    return contents


def _read_param_groups(folder: Path) -> list[list[str]]:
    path = folder / run_dir.PARAM_GROUPS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip()]
    return rows if rows and all(len(row) == len(rows[0]) for row in rows) else []


def _why_no_samples(contents: Contents) -> str:
    processes = max((start.get("processes", 1) for start in contents.environments), default=1)
    train = contents.config.train
    sharded = train.sharding == "fsdp" and processes > 1
    why = why_none(sample_tokens=train.sample_tokens, sharded=sharded)
    return why or f"{SAMPLES} has none, as of runs before quintic 0.2 or without a tokenizer"


def measure(
    model: LanguageModel,
    dataset: Dataset,
    config: Config,
    step: int,
    missing: list[str],
    *,
    longest_s: float,
) -> Measured:
    """Return what a model of a run makes of its validation text, as of `step`, within about
    `longest_s` seconds; what cannot be had of it goes to `missing`.

    Raises `QuinticError` where the data are damaged.
    """
    context, tokenizer = config.model.context, None
    try:
        tokenizer = dataset.load_tokenizer()
    except QuinticError as error:
        missing.append(f"the tokens as text: {error}")
    vocab_size = tokenizer.vocab_size if tokenizer else model.vocab_size
    tokens = min(config.train.eval_tokens, max(1, MEASURED_TOKENS // context) * context)
    losses = token_losses(model, dataset.val, tokens, longest_s=longest_s)
    if len(losses.nats_N) < config.train.eval_tokens:
        missing.append(
            f"the losses of all {config.train.eval_tokens:,} validation tokens: those of the first "
            f"{len(losses.nats_N):,} stand for them, which took long enough"
        )
    shown = min(len(losses.nats_N), max(1, SHOWN_TOKENS // context) * context, SHOWN_TOKENS)
    predictions = predict(model, dataset.val, shown, vocab_size=vocab_size, likeliest=LIKELIEST)
    counts_V = token_counts(dataset.train, vocab_size)
    return Measured(step, losses, predictions, counts_V, tokenizer)


def note_failure(contents: Contents, error: Exception) -> None:
    """Say why nothing could be measured."""
    why = error if isinstance(error, QuinticError) else reason(error)
    contents.missing.append(f"the losses token by token: {why}")

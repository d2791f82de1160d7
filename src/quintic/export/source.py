"""The model that leaves: a run's checkpoint in float32 on the CPU, with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.console import Console
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.tokenizer import Tokenizer
from quintic.model.base import LanguageModel
from quintic.model.build import build_model
from quintic.trained import Trained, load_trained


@dataclass(frozen=True)
class Source:
    """Holds what every target is made of."""

    trained: Trained
    """The run and its checkpoint, for what is to be said of them; its model may be of another
    precision."""
    model: LanguageModel
    """The model in float32 on the CPU. Its config has the window of the checkpoint's step, where
    the run's grows, and its vocabulary may be padded beyond the tokenizer's."""
    tokenizer: Tokenizer

    @property
    def config(self) -> ModelConfig:
        """Return the config of the model."""
        return self.model.config

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name, a tied head under the embedding's alone."""
        return {name: value.detach() for name, value in self.model.named_parameters()}


def open_source(
    folder: Path, console: Console, *, which: str = "newest", tokenizer: str | None = None
) -> Source:
    """Load the model of a run from its newest whole checkpoint, or the best by validation loss.

    Raises `QuinticError` as `load_trained`, `Trained.tokenizer_spec` and `load_tokenizer` do.
    """
    trained = load_trained(folder, which=which, device="cpu")
    for problem in trained.checkpoint.damaged:
        console.line(f"skipped: {problem}")
    vocabulary = load_tokenizer(trained.tokenizer_spec(console, tokenizer))
    config, model = trained.config.model, trained.model
    if config.window_start is not None:
        config = replace(config, window=int(model.window), window_start=None)
    if config != model.config or model.compute_dtype is not torch.float32:
        model = build_model(config)
        model.load_state_dict(trained.model.state_dict())
    return Source(trained, model.eval(), vocabulary)


def padding_note(source: Source) -> list[str]:
    """Return in words that a padded vocabulary is cut to the tokenizer's, where it is."""
    rows = source.model.vocab_size - source.tokenizer.vocab_size
    return [
        f"the {rows} rows that pad the vocabulary are cut off; they are terms of quintic's "
        "softmax, so losses are a little lower without"
    ] * (rows > 0)


def document_note(source: Source) -> list[str]:
    """Return in words that a tool masks no documents, where the model does."""
    return [
        "model.document_mask has no counterpart: texts of more than one document are seen across "
        "their borders"
    ] * source.config.document_mask

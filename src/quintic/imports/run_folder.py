"""A foreign model as the folder of a run: at step 0, with its tokenizer, and never trained here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from quintic import run_dir
from quintic.checkpoint import save_checkpoint
from quintic.config import Config, Imported, ModelConfig, TrainConfig
from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.load_tokenizer import tokenizer_info
from quintic.errors import QuinticError
from quintic.files import file_sha256, new_folder
from quintic.imports.foreign import ForeignModel

RECIPE = "imported"
EVALUATED_TOKENS = 2**20
"""Tokens of a dataset that `quintic evaluate` takes unless told otherwise, about."""
SEQUENCES = 8
"""Sequences that it computes at once."""


def choose_tokenizer(model: ForeignModel, named: str | None) -> tuple[str, tuple[str, ...]]:
    """Return a model's tokenizer as `load_tokenizer` takes it, with notes: the one named, or the
    one beside the weights, or GPT-2's where the vocabulary has its size, padded or not.

    Raises `QuinticError` where there is none, and where it has more tokens than the model.
    """
    vocab_size, notes = model.config.vocab_size, []
    assert vocab_size is not None, "a reader fills it in"
    spec = named or (str(model.tokenizer) if model.tokenizer else None)
    if spec is None and 0 <= vocab_size - GPT2.vocab_size < 128:
        spec = GPT2.name
        notes.append(f"its {vocab_size:,} tokens are taken for GPT-2's: it brings no tokenizer")
    if spec is None:
        raise QuinticError(
            f"it brings no {TOKENIZER_FILE}, and its {vocab_size:,} tokens are not GPT-2's: name "
            f"its {TOKENIZER_FILE} with --tokenizer"
        )
    known = tokenizer_info(spec).vocab_size
    if known > vocab_size:
        raise QuinticError(
            f"the tokenizer {spec} has {known:,} tokens and the model {vocab_size:,}: name the one "
            "it was trained with, with --tokenizer"
        )
    if known < vocab_size:
        notes.append(f"{vocab_size - known:,} rows of its embedding are no token: padding, if few")
    return spec, tuple(notes)


def write_run(
    model: ForeignModel, tokenizer: str, out: Path, *, source: str, revision: str | None = None
) -> None:
    """Write a model with its tokenizer as the folder of a run, which appears whole or not at all.

    `source` is where it comes from, and `revision` which commit of that. Raises `OSError` where the
    disk refuses.
    """
    origin = Imported(source, revision, model.kind, _digest(model.files))
    config = imported_config(model.config, origin)
    with new_folder(out) as folder:
        run_dir.create(folder, config, f"{model.kind}: imported, and in no optimizer's groups\n")
        kept = run_dir.keep_tokenizer(folder, tokenizer)
        run_dir.record_environment(folder, torch.device("cpu"), **kept)
        save_checkpoint(
            folder / run_dir.CHECKPOINTS,
            {f"model.{name}": tensor for name, tensor in model.tensors.items()},
            {
                "step": 0,
                "elapsed_s": 0.0,
                "val_loss": None,
                "fingerprint": None,  # of no data that we know
                "config": config.to_dict(),
            },
        )


def imported_config(model: ModelConfig, origin: Imported) -> Config:
    """Return the config of a run folder that only keeps a model."""
    context = model.context
    train = TrainConfig(
        batch_tokens=SEQUENCES * context,
        micro_batch=SEQUENCES,
        eval_tokens=max(1, EVALUATED_TOKENS // context) * context,
    )
    return Config(RECIPE, model, train=train, imported=origin)


def _digest(files: tuple[Path, ...]) -> str:
    """Return the SHA-256 of a file; of several, that of theirs, in order."""
    first, *others = digests = [file_sha256(file) for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if others else first

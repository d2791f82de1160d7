"""What a config leaves to the dataset."""

from __future__ import annotations

from dataclasses import replace

from quintic.config.checks import require
from quintic.config.run import Config
from quintic.errors import QuinticError


def resolve_vocabulary(config: Config, dataset_vocabulary: int | None) -> Config:
    """The config with `model.vocab_size` filled in from the dataset's vocabulary.

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
    """The config with `model.eot_id` filled in from the dataset's tokenizer, where it is needed.

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

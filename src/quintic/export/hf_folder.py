"""The folder that transformers loads: weights, config, tokenizer and card, written and verified."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from quintic import run_dir
from quintic.errors import QuinticError
from quintic.export.card import CARD_FILE, FIGURE, model_card
from quintic.export.hf import class_of, hf_config, to_hf, unheld_switches
from quintic.export.source import Source
from quintic.export.tokenizer import write_tokenizer
from quintic.export.verify import (
    MARKED_TEXT,
    TEXTS,
    compare_ids,
    compare_logits,
    quintic_logits,
    sample_ids,
)
from quintic.files import write_json

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
WEIGHTS_FILE = "model.safetensors"


def write_hf(source: Source, folder: Path, log: Callable[[str], None]) -> None:
    """Write what transformers loads into an empty folder, and verify it where that is installed.

    Raises `QuinticError` where no class holds the model, and where transformers computes another.
    """
    config, tokenizer = source.config, source.tokenizer
    name = class_of(config)
    if name is None:
        raise QuinticError(
            f"{', '.join(unheld_switches(config))}: no class of transformers computes that; "
            "export a run without"
        )
    tensors = to_hf(config, source.tensors, tokenizer.vocab_size)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    end = tokenizer.eot_id
    write_json(folder / CONFIG_FILE, hf_config(config, vocab_size=tokenizer.vocab_size, eot_id=end))
    # Without a length: transformers stops after 20 tokens and says so.
    write_json(
        folder / GENERATION_FILE,
        {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end},
    )
    write_tokenizer(tokenizer, folder, config.context)
    if (figure := source.trained.folder / run_dir.FIGURE).exists():
        shutil.copyfile(figure, folder / FIGURE)
    (folder / CARD_FILE).write_text(model_card(source, name), encoding="utf-8")
    for line in notes(source):
        log(f"note: {line}")
    if importlib.util.find_spec("transformers") is None:
        log("not verified: that needs the package transformers, pip install 'quintic[hf]'")
        return
    for line in verify_hf(source, folder):
        log(line)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar over the tensors that it loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def notes(source: Source) -> list[str]:
    """Return what the exported model does otherwise than quintic's, in words."""
    found = []
    rows = source.model.vocab_size - source.tokenizer.vocab_size
    if rows > 0:
        found.append(
            f"the {rows} rows that pad the vocabulary are cut off; they are terms of quintic's "
            "softmax, so losses are a little lower without"
        )
    if source.config.document_mask:
        found.append(
            "model.document_mask has no counterpart: texts of more than one document are seen "
            "across their borders"
        )
    return found


def verify_hf(source: Source, folder: Path) -> list[str]:
    """Load a folder with transformers and return in words how near logits and ids are.

    Raises `QuinticError` where they are not those of quintic.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tool = "transformers"
    with _without_bars():
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if wrong := [*loaded["missing_keys"], *loaded["unexpected_keys"], *loaded["mismatched_keys"]]:
        raise QuinticError(
            f"{tool} does not take {wrong[0]} of {len(wrong)} tensors as they are: the export was "
            "removed; report it"
        )
    ids_BT = sample_ids(source)
    with torch.no_grad():
        logits_BTV = model.eval()(ids_BT).logits
    lines = [compare_logits(quintic_logits(source, ids_BT), logits_BTV, tool)]

    def encode(text: str) -> list[int]:
        # quintic takes the characters of end of text for text, transformers only if told so.
        options = {"split_special_tokens": True} if text == MARKED_TEXT else {}
        ids: list[int] = tokenizer(text, **options)["input_ids"]
        return ids

    lines.append(compare_ids(source, encode, tool, (*TEXTS, MARKED_TEXT)))
    return lines

"""The folder that transformers loads: weights, config, tokenizer and card, written and verified."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quintic.data.tokenizer import END_OF_TEXT
from quintic.errors import QuinticError, one_line
from quintic.export.card import write_card
from quintic.export.hf import class_of, hf_config, to_hf, unheld_switches
from quintic.export.remote_code import MODULE, QUINTIC, write_remote_code
from quintic.export.source import Source, document_note, padding_note
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

    Raises `QuinticError` where transformers computes another model.
    """
    config, tokenizer = source.config, source.tokenizer
    if class_of(config) == QUINTIC:
        write_remote_code(folder)
        log(f"note: {_unheld(source)}; by {MODULE.name} it loads with trust_remote_code=True")
    vocab_size, end = tokenizer.vocab_size, tokenizer.eot_id
    write_json(folder / CONFIG_FILE, hf_config(config, vocab_size=vocab_size, eot_id=end))
    _save(to_hf(config, source.tensors, vocab_size), folder / WEIGHTS_FILE)
    # safetensors lets nobody else read its files.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    # Without a length: transformers stops after 20 tokens and says so.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(folder / GENERATION_FILE, dict.fromkeys(names, end))
    write_tokenizer(tokenizer, folder, config.context)
    use, notes = _use(source), _notes(source)
    write_card(source, folder, library="transformers", use=use, notes=notes, log=log)
    if importlib.util.find_spec("transformers") is None:
        log("not verified: that needs the package transformers, pip install 'quintic[hf]'")
        return
    for line in verify_hf(source, folder):
        log(line)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as transformers does; raises `OSError` where the disk does not take them."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # It tells the system's errors by text alone.
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars, and from warning of texts longer than the context."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _use(source: Source) -> str:
    name = class_of(source.config)
    options, why = "", ""
    if name == QUINTIC:
        options = ", trust_remote_code=True"
        why = f", whose source is `{MODULE.name}`\nbeside the weights: {_unheld(source)}"
    return f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER OR OWNER/NAME"{options})
tokenizer = AutoTokenizer.from_pretrained("FOLDER OR OWNER/NAME"{options})
ids = tokenizer("{END_OF_TEXT}The", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50, do_sample=True, top_k=50)[0]))
```

Its class is `{name}`{why}.

Every document of its training began with `{END_OF_TEXT}`, so a prompt should; the tokenizer
does not add it. It sees at most {source.config.context:,} tokens at once."""


def _unheld(source: Source) -> str:
    return f"no class of transformers has {', '.join(unheld_switches(source.config))}"


def _notes(source: Source) -> list[str]:
    documents = document_note(source) if class_of(source.config) != QUINTIC else []
    return [*padding_note(source), *documents]


def verify_hf(source: Source, folder: Path) -> list[str]:
    """Load a folder with transformers and return in words how near logits and ids are.

    Raises `QuinticError` where they are not those of quintic, or it cannot be loaded.
    """
    tool, ids_BT, texts = "transformers", sample_ids(source), (*TEXTS, MARKED_TEXT)
    try:
        logits_BTV, ids = _computed(folder, ids_BT, texts)
    except Exception as error:  # whatever a release of theirs raises
        raise QuinticError(
            f"{tool} {version(tool)} does not load what was written, so it was removed "
            f"({one_line(error)}): pip install --upgrade 'quintic[hf]', or export without {tool}"
        ) from error
    return [
        compare_logits(quintic_logits(source, ids_BT), logits_BTV, tool),
        compare_ids(source, ids.__getitem__, tool, texts),
    ]


@torch.no_grad()
def _computed(
    folder: Path, ids_BT: Tensor, texts: Sequence[str]
) -> tuple[Tensor, dict[str, list[int]]]:
    """Return transformers' logits of the model in a folder, and its ids of each text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loader = AutoModelForCausalLM
    if (folder / MODULE.name).exists():  # the same source, and no copy in transformers' cache
        from quintic.export.modeling_quintic import QuinticForCausalLM

        loader = QuinticForCausalLM
    with _quiet():
        model, loaded = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        if wrong := [f"{name} ({kind})" for kind in kinds for name in loaded[kind]]:
            raise ValueError(", ".join(wrong))
        # Else it asks on the terminal whether to run the source, which it does not need.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        # quintic takes the characters of end of text for text; transformers does where it is told.
        ids = {text: tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts}
        return model.eval()(ids_BT).logits, ids

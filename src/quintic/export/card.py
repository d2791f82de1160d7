"""The card of an exported model: what it is, how it was trained, what it scores, how to use it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quintic import __version__, run_dir
from quintic.config import ModelConfig, field_facts
from quintic.console import Console
from quintic.data.loader import validation_batches
from quintic.data.tokenizer import END_OF_TEXT, GPT2
from quintic.errors import QuinticError, counted
from quintic.evaluate import score_text, sum_losses
from quintic.export.source import Source
from quintic.metrics import METRICS, read_metrics

CARD_FILE, FIGURE = "README.md", "loss.png"
MOST_SCORED_TOKENS = 16_384
VALIDATIONS_SHOWN = 12


def model_card(source: Source, class_name: str) -> str:
    """Return the README.md of a model that transformers loads as `class_name`."""
    trained = source.trained
    config, step = trained.config, trained.checkpoint.state["step"]
    name = f"{config.recipe}, step {step:,}"
    figure = f"\n![Training and validation loss]({FIGURE})\n" if _figure(source).exists() else ""
    return f"""\
---
license: unknown
library_name: transformers
pipeline_tag: text-generation
tags:
- quintic
- muon
---

# {name}

A language model of {source.model.parameter_count():,} parameters, trained by
[quintic](https://github.com/quintic-lm/quintic) {__version__} and written by `quintic export`.

Licence: nobody has said yet under which one it is given away; `license` above is the place for it,
after a look at that of the data.

## Use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER OR OWNER/NAME")
tokenizer = AutoTokenizer.from_pretrained("FOLDER OR OWNER/NAME")
ids = tokenizer("{END_OF_TEXT}The", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50, do_sample=True, top_k=50)[0]))
```

It is a `{class_name}`. Every document of its training began with `{END_OF_TEXT}`, so a prompt
should; the tokenizer does not add it. It sees at most {source.config.context:,} tokens at once.

## What it is

| | |
|---|---|
{_table(_facts(source))}

## How it was trained

| | |
|---|---|
{_table(_training(source))}
{figure}
{_losses(source)}
"""


def _figure(source: Source) -> Path:
    return source.trained.folder / run_dir.FIGURE


def _table(rows: Iterator[tuple[str, Any]]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in rows)


def _facts(source: Source) -> Iterator[tuple[str, Any]]:
    config, tokenizer = source.config, source.tokenizer
    yield "architecture", config.architecture
    yield "layers x width", f"{config.layers} x {config.width}"
    yield "heads", f"{config.heads} of {config.head_width}"
    yield "context", f"{config.context:,} tokens"
    kind = "GPT-2's" if tokenizer.name == GPT2.name else "a byte-level BPE of its own"
    yield "vocabulary", f"{kind}, {counted(tokenizer.vocab_size, 'token')}"
    for name, facts in field_facts(ModelConfig).items():
        if facts.needs and (value := getattr(config, name)) != facts.default:
            yield name, value


def _training(source: Source) -> Iterator[tuple[str, Any]]:
    trained = source.trained
    config, step = trained.config, trained.checkpoint.state["step"]
    yield "recipe", f"`{config.recipe}`"
    yield "data", f"`{config.data.path}`, fingerprint `{trained.checkpoint.state['fingerprint']}`"
    yield "steps", f"{step:,} of {config.train.steps:,}"
    yield "tokens", f"{config.tokens_before(step):,}"
    yield "matrices", f"{config.optim.matrices}, the rest AdamW"
    yield "precision", config.train.precision
    yield "seed", config.train.seed
    if starts := run_dir.read_environments(trained.folder):
        for key in ("device", "torch", "quintic", "commit"):
            if starts[-1].get(key):
                yield key, starts[-1][key]
    if config.init_from.run is not None:
        yield "began with the weights of", config.init_from.run


def _losses(source: Source) -> str:
    trained, step = source.trained, source.trained.checkpoint.state["step"]
    lines = ["## What it scores", "", "Validation losses of the run, in nats per token:", ""]
    measured = []
    with suppress(QuinticError, OSError):
        records = read_metrics(trained.folder / METRICS)
        measured = [
            (record["step"], record["val_loss"])
            for record in records
            if record.get("val_loss") is not None and record["step"] <= step
        ]
    if not measured:
        lines[2:3] = ["The run has measured no validation loss."]
    else:
        lines += ["| step | tokens | loss |", "|---|---|---|"]
        stride = math.ceil(len(measured) / VALIDATIONS_SHOWN)
        for at, loss in measured[::-1][::stride][::-1]:
            lines.append(f"| {at:,} | {trained.config.tokens_before(at):,} | {loss:.4f} |")
        lines.append("")
    with suppress(QuinticError, OSError):
        lines.append(_own_score(source))
    return "\n".join(lines).rstrip()


def _own_score(source: Source) -> str:
    """Return the loss and the bits per byte of the weights as they are exported, without rows that
    pad the vocabulary, on the first validation tokens.

    Raises `QuinticError` and `OSError` where the run's data is not at hand.
    """
    trained = source.trained
    context = source.config.context
    dataset = trained.open_data(Console(quiet=True))
    tokens = min(trained.config.train.eval_tokens, max(1, MOST_SCORED_TOKENS // context) * context)

    def loss(inputs_BT: Tensor, targets_BT: Tensor, reduction: str) -> Tensor:
        logits_BTV = source.model(inputs_BT)[..., : source.tokenizer.vocab_size]
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction=reduction)

    batches = validation_batches(dataset.val, context, tokens, 1)
    sums = sum_losses(loss, batches, torch.device("cpu"), special_ids=dataset.special_ids)
    scores = score_text(
        sums, targets=dataset.val.read(1, sums.tokens), tokenizer=source.tokenizer, train=None
    )
    return (
        f"The exported weights, on the first {sums.tokens:,} validation tokens: loss "
        f"{sums.mean:.4f} nats per token, {scores.bits_per_byte:.4f} bits per byte (gzip -9 of the "
        f"same text {scores.gzip_bits_per_byte:.4f})."
    )

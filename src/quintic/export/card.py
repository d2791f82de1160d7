"""The card of an exported model: what it is, how it was trained, what it scores, how to use it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quintic import __version__, run_dir
from quintic.config import ModelConfig, field_facts
from quintic.data.gpt2_tokenizer import GPT2
from quintic.errors import QuinticError, counted
from quintic.evaluate import score_text
from quintic.export.score import validation_sums
from quintic.export.source import Source
from quintic.metrics_file import METRICS, read_records

CARD_FILE = "README.md"
CARD_MARK = "<!-- Written by `quintic export`. Remove this line to keep a card of your own. -->"
VALIDATIONS_SHOWN = 12


def model_title(source: Source) -> str:
    """Return which run's model it is, at which step."""
    trained = source.trained
    if trained.config.is_imported:
        return f"{trained.config.imported.source}, imported"
    return f"{trained.config.recipe}, step {trained.checkpoint.state['step']:,}"


def write_card(
    source: Source,
    folder: Path,
    *,
    library: str,
    use: str,
    notes: Sequence[str],
    log: Callable[[str], None],
) -> None:
    """Write the README.md of an exported model, and the figure of its run where there is one.

    `library` is the hub's name of what loads it, and `use` says in Markdown how; `notes` are
    what it does otherwise than quintic, which is said to `log` too.
    """
    figure = ""
    if (drawn := source.trained.folder / run_dir.FIGURE).exists():
        shutil.copyfile(drawn, folder / run_dir.FIGURE)
        figure = f"\n![Training and validation loss]({run_dir.FIGURE})\n"
    made, and_then = "trained", ""
    if source.trained.config.is_imported:
        made, and_then = "imported", ", which has not trained it,"
    differences = "".join(f"\n- {line}" for line in notes)
    if differences:
        differences = f"\n\nDifferent from the model in quintic:\n{differences}"
    card = f"""\
---
license: unknown
library_name: {library}
pipeline_tag: text-generation
tags:
- quintic
- muon
---

{CARD_MARK}

# {model_title(source)}

A language model of {source.model.parameter_count():,} parameters, {made} by
[quintic](https://github.com/quintic-lm/quintic) {__version__}{and_then} and written by `quintic
export`.

Licence: nobody has said yet under which one it is given away; `license` above is the place for it,
after a look at that of the data.

## Use it

{use}{differences}

## What it is

| | |
|---|---|
{_table(_facts(source))}

{_history(source, figure)}
"""
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    for line in notes:
        log(f"note: {line}")


def _history(source: Source, figure: str) -> str:
    """Return how the model was trained and what it scores, in Markdown; of one that was imported,
    from where."""
    if source.trained.config.is_imported:
        return f"## Where it comes from\n\n| | |\n|---|---|\n{_table(_origin(source))}"
    return f"""\
## How it was trained

| | |
|---|---|
{_table(_training(source))}
{figure}
## What it scores

{_losses(source)}"""


def _table(rows: Iterator[tuple[str, Any]]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in rows)


def _facts(source: Source) -> Iterator[tuple[str, Any]]:
    config, tokenizer = source.config, source.tokenizer
    yield "architecture", config.architecture
    yield "layers x width", f"{config.layers} x {config.width}"
    yield "heads", f"{config.heads} of {config.head_width}"
    yield "context", f"{config.context:,} tokens"
    kind = "GPT-2's" if tokenizer.fingerprint == GPT2.fingerprint else "a byte-level BPE of its own"
    yield "vocabulary", f"{kind}, {counted(tokenizer.vocab_size, 'token')}"
    for name, facts in field_facts(ModelConfig).items():
        if facts.needs and (value := getattr(config, name)) != facts.default:
            yield name, value


def _training(source: Source) -> Iterator[tuple[str, Any]]:
    trained = source.trained
    config, step = trained.config, trained.checkpoint.state["step"]
    yield "recipe", f"`{config.recipe}`"
    # Not the whole path, which would tell the world how the trainer's disk is arranged.
    data = Path(config.data.path).name
    yield "data", f"`{data}`, fingerprint `{trained.checkpoint.state['fingerprint']}`"
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


def _origin(source: Source) -> Iterator[tuple[str, Any]]:
    origin = source.trained.config.imported
    yield "source", origin.source
    if origin.revision is not None:
        yield "commit", origin.revision
    yield "format", origin.kind
    yield "SHA-256 of the weights", origin.sha256


def _losses(source: Source) -> str:
    trained, step = source.trained, source.trained.checkpoint.state["step"]
    lines = ["Validation losses of the run, in nats per token:", ""]
    measured = []
    with suppress(QuinticError, OSError):
        records = read_records(trained.folder / METRICS)
        measured = [
            (record["step"], record["val_loss"])
            for record in records
            if record.get("val_loss") is not None and record["step"] <= step
        ]
    if not measured:
        lines[0] = "The run has measured no validation loss."
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
    sums, targets = validation_sums(source)
    scores = score_text(sums, targets, tokenizer=source.tokenizer, train=None)
    return (
        f"The exported weights, on the first {sums.tokens:,} validation tokens: loss "
        f"{sums.mean:.4f} nats per token, {scores.bits_per_byte:.4f} bits per byte (gzip -9 of the "
        f"same text {scores.gzip_bits_per_byte:.4f})."
    )

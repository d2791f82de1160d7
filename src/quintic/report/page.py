"""The report as one self-contained page: no file beside it, no request to anywhere.

page.html draws with what pages share; this fills in the texts and the numbers.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quintic.config import EMBEDDED
from quintic.console import Table
from quintic.data.token_text import token_name
from quintic.errors import counted
from quintic.figure import running_mean
from quintic.metrics_file import MetricsRecord
from quintic.pages.fill import html_items, html_table, script_json, write_filled
from quintic.report.contents import Contents, Measured
from quintic.report.text import level_names, text_markup, token_data
from quintic.report.time_spent import step_times, time_spent
from quintic.report.token_losses import (
    FEWEST_OCCURRENCES,
    TokenGroup,
    by_frequency,
    by_position,
    by_token,
)
from quintic.report.verdict import verdict
from quintic.run_dir import SAMPLES
from quintic.tasks.curves import chance_levels, first_of_each_task, score_curves

POINTS = 1500
"""Of a curve, at most; of a longer run each is the mean of several steps."""
SAMPLES_SHOWN, STARTS_SHOWN, TOKENS_LISTED = 12, 5, 12


def write_report(contents: Contents, path: Path) -> None:
    """Write the page; the file is replaced whole."""
    measured = contents.measured
    whole = (
        measured is not None and len(measured.losses.nats_N) == contents.config.train.eval_tokens
    )
    bits_per_byte = measured.bits_per_byte if measured and whole else None
    parts = {
        "TITLE": html.escape(contents.folder.absolute().name),
        "VERDICT": _items(verdict(contents.config, contents.records, bits_per_byte)),
        "FACTS": _table("what was trained, and on what", ["fact", "value"], [*_facts(contents)]),
        "MISSING": _missing(contents.missing),
        "SCORES": _scores(contents.records),
        "SAMPLES": _samples(contents.samples),
        "LOSSES": _losses(measured) if measured else "",
        "TEXT": _text(measured) if measured else "",
        "TIME": _time(contents),
        "DIAGNOSTICS": _diagnostics(contents),
        "PARAMETERS": _parameters(contents.param_groups),
        "STARTS": _starts(contents.environments),
        "CONFIG": html.escape(json.dumps(contents.config.to_dict(), indent=1)),
        "DATA": script_json(_data(contents)),
    }
    write_filled("quintic.report", parts, path)


def _table(caption: str, header: list[str], rows: list[list[str]]) -> str:
    """Return a table that can be scrolled by itself where it is wider than the page."""
    table = html_table(caption, Table(header, rows))
    label = html.escape(caption, quote=True)
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _items(sentences: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def _missing(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    return (
        f'<section id="missing"><h2>Not in this report</h2><ul>{html_items(missing)}</ul></section>'
    )


def _facts(contents: Contents) -> Iterator[list[str]]:
    """Yield what was trained and on what, a name and a text each."""
    c, model = contents.config, contents.config.model
    yield ["recipe", c.recipe]
    yield [
        "model",
        f"{model.architecture}, {counted(model.layers, 'layer')} x {model.width}, "
        f"{counted(model.heads, 'head')}, context {model.context:,}, "
        f"vocabulary {model.vocab_size or 0:,}",
    ]
    if contents.parameter_count:
        yield ["parameters", f"{contents.parameter_count:,}"]
    yield [
        "training",
        f"{counted(c.train.steps, 'step')} of {c.train.batch_tokens:,} tokens = "
        f"{c.tokens / 1e6:,.1f}M tokens, {c.optim.matrices} on the matrices, seed {c.train.seed}",
    ]
    start = contents.environments[-1] if contents.environments else {}
    data = c.data.path
    if data == EMBEDDED:
        data = f"the standard library of Python {start.get('python', '')}".rstrip()
    yield ["data", f"{data}, {c.data.order} order"]
    if digest := start.get("data"):
        yield ["digest of the data", str(digest)]
    if origin := c.init_from.run or c.continued_from.run:
        step = c.init_from.at_step or c.continued_from.at_step
        yield ["went on from", f"{origin}, step {step:,}"]
    if device := start.get("device"):
        yield ["device", f"{device}, {c.train.precision}"]


def _scores(records: Sequence[MetricsRecord]) -> str:
    """Return the last score of each metric; empty where no task was scored."""
    rows = []
    for curve in score_curves(records):
        chance = "-" if curve.chance is None else f"{curve.chance:.4f}"
        rows.append([curve.name, curve.last, chance, f"{curve.records[-1]['step']:,}"])
    if not rows:
        return ""
    header = ["task and metric", "score", "chance", "step"]
    return _table("last scores on tasks ± standard error", header, rows)


def _samples(samples: Sequence[dict[str, Any]]) -> str:
    """Return the samples, evenly chosen where they are many, the last one open."""
    if not samples:
        return ""
    count, last = min(len(samples), SAMPLES_SHOWN), len(samples) - 1
    chosen = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    entries = []
    for index in chosen:
        sample = samples[index]
        head = f"step {sample['step']:,}, {sample.get('tokens', 0):,} tokens"
        text = html.escape(str(sample.get("text", "")))
        entries.append(
            f"<details{' open' if index in (chosen[0], last) else ''}><summary>{head}</summary>"
            f"<pre>{text}</pre></details>"
        )
    prompt = html.escape(str(samples[-1].get("prompt", "")))
    more = f" {len(samples)} are in {SAMPLES}." if len(samples) > len(chosen) else ""
    return (
        '<section id="samples"><h2>Samples along the way</h2>'
        f"<p>What the model makes of the same beginning after each validation.{more}</p>"
        f'<pre class="prompt">{prompt}</pre>{"".join(entries)}</section>'
    )


def _losses(measured: Measured) -> str:
    """Return where the loss is: by position, by frequency and by token."""
    losses, tokenizer = measured.losses, measured.tokenizer
    frequencies = [
        [g.name, f"{g.share:.1%}", f"{g.nats:.3f}", f"{g.unigram_nats:.3f}"]
        for g in by_frequency(losses, measured.counts_V)
    ]
    groups = by_token(losses)
    often = [group for group in groups if group.count >= FEWEST_OCCURRENCES]
    costly = sorted(groups, key=lambda group: -group.share)

    def tokens(caption: str, listed: Sequence[TokenGroup]) -> str:
        rows = [
            [token_name(tokenizer, g.token), f"{g.count:,}", f"{g.nats:.3f}", f"{g.share:.2%}"]
            for g in listed[:TOKENS_LISTED]
        ]
        return _table(caption, ["token", "occurrences", "mean loss", "of all loss"], rows)

    return (
        '<section id="losses"><h2>Where the loss is</h2>'
        f"<p>Of the first {len(losses.nats_N):,} tokens of the validation text, by the model of "
        f"step {measured.step:,}: {losses.mean:.4f} nats per token. Losses here are in nats per "
        "token.</p>"
        '<h3>By position in the context</h3><div id="positions"></div>'
        "<h3>By frequency of the token in the training data</h3>"
        + _table(
            "tokens by their rank, the most frequent first",
            ["tokens", "of the text", "loss", "unigram model"],
            frequencies,
        )
        + "<h3>By token</h3>"
        f"<p>Hardest and easiest are among tokens that occur {FEWEST_OCCURRENCES} times or more. "
        "␣ is a blank, ↵ a line end, ⇥ a tab, \\x.. a byte that is no whole character.</p>"
        '<div class="beside">'
        + tokens("hardest tokens", often)
        + tokens("easiest tokens", often[::-1])
        + tokens("tokens with the most of the loss", costly)
        + "</div></section>"
    )


def _text(measured: Measured) -> str:
    if not (markup := text_markup(measured)):
        return ""
    legend = "".join(
        f'<li><i class="c{number}">{html.escape(name)}</i></li>'
        for number, name in enumerate(level_names())
    )
    count = len(measured.predictions.rank_N)
    return (
        '<section id="text"><h2>The validation text, token by token</h2>'
        f"<p>The first {count:,} tokens, each coloured by the probability that the model gave it. "
        "Point at one, or tap it, or move with the arrow keys, to see what the model expected. At "
        "a vertical bar a new context begins, where the model has seen nothing.</p>"
        f'<ul class="legend" aria-label="probability of the token that came">{legend}</ul>'
        '<form autocomplete="off"><label><input type="checkbox" id="coloured" checked> colours'
        "</label></form>"
        '<div id="tokens" class="tokens coloured" tabindex="0" role="application" '
        'aria-label="validation text: arrow keys go from token to token" '
        f'aria-describedby="token">{markup}</div>'
        '<div id="token" role="status" hidden></div></section>'
    )


def _time(contents: Contents) -> str:
    spent, steps = time_spent(contents.records, contents.samples), step_times(contents.records)
    if steps is None or not spent.total_s:
        return ""
    parts = {
        "gradients: forward and backward passes": spent.gradients_s,
        "optimizer": spent.optimizer_s,
        "validation": spent.validation_s,
        "scores on tasks": spent.tasks_s,
        "samples": spent.samples_s,
    }
    rows = [
        [name, _duration(seconds), f"{seconds / spent.total_s:.1%}"]
        for name, seconds in parts.items()
        if seconds
    ]
    facts = [
        ["tokens per second, median", f"{steps.tokens_per_s:,.0f}"],
        ["step, median", f"{steps.median_ms:,.1f} ms"],
        ["step, fastest", f"{steps.fastest_ms:,.1f} ms"],
        ["step, 19 of 20 below", f"{steps.slow_ms:,.1f} ms"],
        ["step, slowest", f"{steps.slowest_ms:,.1f} ms, step {steps.slowest_step:,}"],
    ]
    if steps.mfu is not None:
        facts.append(["model FLOPs utilisation, median", f"{steps.mfu:.1%}"])
    if steps.memory_gib is not None:
        facts.append(["most memory in use", f"{steps.memory_gib:.2f} GiB"])
    return (
        '<section id="time"><h2>Speed, and where the time went</h2><div class="beside">'
        + _table("throughput", ["measure", "value"], facts)
        + _table("where the time went", ["part", "time", "share"], rows)
        + "</div><p>Starting, compiling ahead of the first step and writing checkpoints are not "
        "measured.</p></section>"
    )


def _duration(seconds: float) -> str:
    """Return a time in words: 4.2 s, 3 min 29 s, 5 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _diagnostics(contents: Contents) -> str:
    """Return the place of the heat maps, where the run measured what they show."""
    if not contents.heat_maps.get("maps"):
        return ""
    optimizer = "Muon" if contents.config.optim.matrices == "muon" else "the optimizer"
    return (
        f'<section id="diagnostics"><h2>What {optimizer} does to the weights</h2>'
        "<p>Each column is a step, each row a matrix, named by its layer and its part in it, a "
        "layer or a head of attention.</p><div></div></section>"
    )


def _parameters(rows: Sequence[list[str]]) -> str:
    """Return the table of parameters; of equal ones in several layers, one line."""
    if not rows:
        return ""
    header, *body = rows
    alike: dict[tuple[str, ...], list[int]] = {}
    for name, *cells in body:
        layer = re.match(r"layers\.(\d+)\.", name)
        key = (name if layer is None else f"layers.*.{name[layer.end() :]}", *cells)
        alike.setdefault(key, []).extend([int(layer[1])] if layer else [])
    found = [
        [name.replace("*", _ranges(layers), 1) if layers else name, *cells]
        for (name, *cells), layers in alike.items()
    ]
    return (
        '<section id="parameters"><h2>Parameters and learning rates</h2>'
        + _table("which optimizer updates what, before the schedule", header, found)
        + "</section>"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers that rise as ranges: 0-3, 7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in ranges)
    return f"({text})" if "," in text else text


def _starts(environments: Sequence[dict[str, Any]]) -> str:
    """Return how it was started, a column for each time; of many the first and the last ones."""
    if not environments:
        return "<p>environment.json says nothing.</p>"
    chosen = [*environments]
    if len(chosen) > STARTS_SHOWN:
        chosen = [chosen[0], *chosen[1 - STARTS_SHOWN :]]
    names = dict.fromkeys(name for start in chosen for name in start)
    rows = [
        [name, *(_cell(start.get(name)) for start in chosen)]
        for name in sorted(names, key=lambda name: name != "command")
    ]
    heads = ["started", *(["later"] * (len(chosen) - 1))]
    return _table(
        f"how it was started, {len(environments)} times in all"
        if len(environments) > 1
        else "how it was started",
        ["fact", *heads],
        rows,
    )


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def _data(contents: Contents) -> dict[str, Any]:
    """Return the numbers of the charts and of the tokens."""
    measured = contents.measured
    data: dict[str, Any] = {
        "curves": _curves(contents.records),
        "lr": _lr(contents.records),
        "scores": _score_series(contents.records),
        "chances": chance_levels(score_curves(contents.records)),
        "diagnostics": contents.heat_maps,
    }
    if measured is not None:
        groups = by_position(measured.losses)
        # Logarithmic, so the first position is 1: the number of tokens that it sees.
        middles = [(group.first + group.last) / 2 + 1 for group in groups]
        data["positions"] = [
            {
                "label": "loss",
                "x": {"position": middles},
                "y": [round(group.nats, 4) for group in groups],
            }
        ]
        if measured.tokenizer is not None:
            data["tokens"] = token_data(measured)
    return data


def _curves(records: Sequence[MetricsRecord]) -> list[dict[str, Any]]:
    """Return the curves of the losses; that of each step shows when its key is clicked."""
    train = [record for record in records if "train_loss" in record]
    means = running_mean([record["train_loss"] for record in train])
    smooth = [{**record, "mean": mean} for record, mean in zip(train, means, strict=True)]
    curves = [
        {"label": "training loss, running mean", "index": 2, **_series(smooth, "mean")},
        {"label": "training loss", "index": 6, "hidden": True, **_series(train, "train_loss")},
        {"label": "validation loss", "index": 1, **_series(records, "val_loss")},
    ]
    return [curve for curve in curves if curve["y"]]


def _score_series(records: Sequence[MetricsRecord]) -> list[dict[str, Any]]:
    """Return a curve of accuracy for each task, in a band of one standard error to either side."""
    series = []
    for curve in first_of_each_task(score_curves(records)):
        rows = [
            {**record, "score": value, "low": low, "high": high}
            for record, value, low, high in zip(
                curve.records, curve.values, *curve.band, strict=True
            )
        ]
        edges = {edge: _series(rows, edge)["y"] for edge in ("low", "high")}
        series.append({"label": curve.name, **_series(rows, "score"), **edges})
    return series


def _lr(records: Sequence[MetricsRecord]) -> list[dict[str, Any]]:
    rates = _series(records, "lr")
    return [{"label": "learning rate", "index": 3, **rates}] if rates["y"] else []


def _series(records: Sequence[MetricsRecord], name: str) -> dict[str, Any]:
    """Return a curve over each axis; of more points than are drawn, means of adjoining ones."""
    rows = [record for record in records if name in record]
    each = max(1, -(-len(rows) // POINTS))
    groups = [rows[start : start + each] for start in range(0, len(rows), each)]
    axes = {"tokens": "tokens", "steps": "step", "seconds": "elapsed_s"}
    return {
        "x": {axis: [group[-1].get(key) for group in groups] for axis, key in axes.items()},
        "y": [_mean([record[name] for record in group]) for group in groups],
    }


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean to six digits; None, a gap, where one is not finite."""
    mean = sum(values) / len(values)
    return float(f"{mean:.6g}") if math.isfinite(mean) else None

"""A described dataset as one self-contained page: no file beside it, no request to anywhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from quintic.console import Table
from quintic.data.description import DatasetSummary, Excerpt, SplitSummary
from quintic.data.token_text import token_markup
from quintic.data_info.table import splits_table
from quintic.pages.fill import html_items, html_table, write_filled


def write_page(summary: DatasetSummary, path: Path) -> None:
    """Write the page; the file is replaced whole."""
    shown = summary.splits[summary.sampled]
    vocabulary = "unknown" if summary.vocab_size is None else f"{summary.vocab_size:,}"
    facts = [
        ["tokenizer", f"{summary.tokenizer or 'unknown'}, vocabulary {vocabulary}"],
        ["fingerprint", summary.fingerprint],
    ]
    sources = [
        ([f"{source.name} ({source.split})", f"{source.shards:,}", f"{source.tokens:,}"], of)
        for source in summary.sources
        if (of := source.tokens / sum(source.tokens for source in summary.sources))
    ]
    parts = {
        "TITLE": html.escape(summary.path.absolute().name),
        "FACTS": _wide("Facts", html_table("what it is", Table(["fact", "value"], facts))),
        "SPLITS": _wide("Splits", html_table("its splits", splits_table(summary))),
        "NOTES": html_items(summary.notes),
        "LENGTHS": "".join(
            _lengths(f"{name} documents", split) for name, split in summary.splits.items()
        ),
        "SOURCES": _bars("shards by the beginning of their names", ["shards", "tokens"], sources),
        "BYTES": "".join(
            _token_bytes(f"{name} tokens", split) for name, split in summary.splits.items()
        ),
        "FREQUENT": _frequent(f"{summary.sampled} tokens", shown),
        "LONGEST": _excerpts(shown.longest),
        "SAMPLES": _excerpts(summary.samples),
        "SPLIT": summary.sampled,
    }
    write_filled("quintic.data_info", parts, path)


def _wide(label: str, table: str) -> str:
    """Return a table that can be scrolled by itself where it is wider than the page."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _bars(caption: str, header: list[str], rows: Sequence[tuple[list[str], float]]) -> str:
    """Return a table whose rows, a name, other cells and a share, end with a bar of the share; of
    the largest share it is as long as there is room."""
    if not rows:
        return f"<p>{html.escape(caption)}: not known</p>"
    most = max(share for _, share in rows)
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in ["", *header, "share"])
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + f'<td class="share"><span style="width:{80 * share / (most or 1):.1f}%"></span> '
        f"{share:.1%}</td></tr>"
        for (name, *cells), share in rows
    )
    label = html.escape(caption, quote=True)
    table = f"<table><caption>{label}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return _wide(label, f"{table}</table>")


def _lengths(caption: str, split: SplitSummary) -> str:
    documents = sum(group.documents for group in split.lengths)
    tokens = sum(group.tokens for group in split.lengths)
    rows = [
        (
            [_length_name(group.shortest), f"{group.documents:,}", f"{group.tokens / tokens:.1%}"],
            group.documents / documents,
        )
        for group in split.lengths
    ]
    return _bars(caption, ["documents", "of the tokens"], rows)


def _length_name(shortest: int) -> str:
    """Return the lengths of a `LengthGroup` in words."""
    return f"{shortest:,}" if shortest == 1 else f"{shortest:,} to {2 * shortest - 1:,}"


def _token_bytes(caption: str, split: SplitSummary) -> str:
    rows = [
        ([str(size), f"{count:,}"], count / split.read_tokens)
        for size, count in enumerate(split.token_bytes)
        if count
    ]
    return _bars(caption, ["tokens"], rows)


def _frequent(caption: str, split: SplitSummary) -> str:
    rows = [
        ([token.name, f"{token.id}", f"{token.count:,}"], token.count / split.read_tokens)
        for token in split.frequent
    ]
    return _bars(caption, ["id", "occurrences"], rows)


def _excerpts(excerpts: Sequence[Excerpt]) -> str:
    """Return the beginnings of documents, the borders of whose tokens are seen by their colours."""
    entries = []
    for excerpt in excerpts:
        elements = "".join(
            token_markup(text, is_text, f"t{place % 2}")
            for place, (text, is_text) in enumerate(excerpt.pieces)
        )
        end = "" if len(excerpt.pieces) == excerpt.tokens - 1 else "…"
        entries.append(
            f"<h3>{excerpt.tokens:,} tokens, from token {excerpt.start:,} on</h3>"
            f'<div class="tokens">{elements}{end}</div>'
        )
    return "".join(entries) or "<p>Not known.</p>"

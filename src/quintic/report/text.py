"""The validation text as a page shows it, each token coloured by how likely the model held it."""

from __future__ import annotations

import codecs
import html
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from quintic.data.tokenizer import END_OF_TEXT, Tokenizer
from quintic.report.contents import Measured

LEVELS = (0.9, 0.5, 0.2, 0.05, 0.01, 0.001)
"""Least probabilities of the token that came, of one colour after another; less has the last."""
_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def token_name(tokenizer: Tokenizer | None, token: int) -> str:
    """Return a token by itself, so that it can be told from any other: blanks and line ends are
    marked, bytes that are no whole character are in hexadecimal."""
    if tokenizer is None:
        return f"id {token}"
    if token == tokenizer.eot_id:
        return END_OF_TEXT
    text = tokenizer.bytes_by_id[token].decode(errors="backslashreplace")
    return "".join(_MARKS.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[tuple[str, bool]]:
    """Yield the text of each token, and whether it is text: a character of several tokens is with
    the last of them, and the others, like end of text, have a name instead."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        text = decoder.decode(tokenizer.bytes_by_id[token])
        yield (text, True) if text else (token_name(tokenizer, token), False)


def level(nats: float) -> int:
    """Return the number of the colour of a token with this loss."""
    return sum(math.exp(-nats) < least for least in LEVELS)


def level_names() -> list[str]:
    """Return the probabilities of each colour, in words."""
    edges = [f"{100 * least:g}" for least in LEVELS]
    between = [f"{low} to {high}%" for high, low in itertools.pairwise(edges)]
    return [f"{edges[0]}% or more", *between, f"below {edges[-1]}%"]


def text_markup(measured: Measured) -> str:
    """Return the tokens as elements, in their colours; empty where they are only numbers."""
    if measured.tokenizer is None:
        return ""
    count, context = len(measured.predictions.rank_N), measured.losses.context
    ids, nats = measured.losses.targets_N[:count].tolist(), measured.losses.nats_N[:count].tolist()
    parts = []
    for place, (text, is_text) in enumerate(pieces(measured.tokenizer, ids)):
        classes = [f"c{level(nats[place])}"]
        if not is_text:
            classes.append("name")
        elif "\n" in text:
            classes.append("end")
        if place and place % context == 0:
            classes.append("cut")
        parts.append(f'<i class="{" ".join(classes)}">{html.escape(_shown(text))}</i>')
    return "".join(parts)


def _shown(text: str) -> str:
    """Return text without control characters, which a page may not have: each as its picture."""
    return "".join(
        chr(0x2400 + ord(c)) if ord(c) < 0x20 and c not in "\n\t" else "␡" if c == "\x7f" else c
        for c in text
    )


def token_data(measured: Measured) -> dict[str, Any]:
    """Return what the page says of a token that is pointed at: its name, loss and rank, and the
    tokens that were likeliest instead, in parts of a thousand."""
    shown = measured.predictions
    count = len(shown.rank_N)
    ids = measured.losses.targets_N[:count]
    used = sorted({*ids.tolist(), *shown.ids_NK.flatten().tolist()})
    place = {token: index for index, token in enumerate(used)}
    return {
        "names": [token_name(measured.tokenizer, token) for token in used],
        "token": _places(place, ids.tolist()),
        "nats": [round(nats, 3) for nats in measured.losses.nats_N[:count].tolist()],
        "rank": shown.rank_N.tolist(),
        "likeliest": [_places(place, row) for row in shown.ids_NK.tolist()],
        "permille": (1000 * shown.p_NK).round(1).tolist(),
    }


def _places(place: dict[int, int], ids: Sequence[int]) -> list[int]:
    return [place[token] for token in ids]

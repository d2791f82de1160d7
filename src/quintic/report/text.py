"""The validation text as a page shows it, each token coloured by how likely the model held it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from quintic.data.token_text import pieces, token_markup, token_name
from quintic.report.contents import Measured

LEVELS = (0.9, 0.5, 0.2, 0.05, 0.01, 0.001)
"""Least probabilities of the token that came, of one colour after another; less has the last."""


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
        if place and place % context == 0:
            classes.append("cut")
        parts.append(token_markup(text, is_text, *classes))
    return "".join(parts)


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

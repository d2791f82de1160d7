"""An exported model against quintic's: logits on a batch, and token ids on texts.

Shapes: B batch, T time, V vocabulary of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quintic.data.tokenizer import END_OF_TEXT
from quintic.errors import QuinticError
from quintic.export.source import Source

LOGIT_BOUND = 1e-4
"""Largest difference of logits that rounding in float32 explains, as a share of the largest."""

BATCH, MOST_TOKENS = 2, 512

TEXTS = (
    "The capital of France is Paris, isn't it? They'll say so in 1789 and 2024.",
    "def f(x, *, y=1.5e-3):\n    if x:  # two blanks\n\t\treturn x ** y\n\n\nprint(f(2))\r\n",
    "  Ünïcode é é 漢字かな 한국어 Привет مرحبا 🙂👩\u200d💻 \u00a0\u3000 end  ",
    "",
)
"""Texts on which another tokenizer must give the same ids: words, code, white space, scripts."""

MARKED_TEXT = f"one{END_OF_TEXT}two"
"""A text that mentions the end-of-text token, which is text to quintic."""


def sample_ids(source: Source) -> Tensor:
    """Return token ids of one document a row, which begins with end of text, drawn evenly from the
    others: int64, B = 2, T the context but at most 512."""
    tokenizer = source.tokenizer
    generator = torch.Generator().manual_seed(0)
    text_ids = torch.tensor(sorted({*range(tokenizer.vocab_size)} - {*tokenizer.special_ids}))
    shape = (BATCH, min(source.config.context, MOST_TOKENS))
    ids_BT = text_ids[torch.randint(len(text_ids), shape, generator=generator)]
    ids_BT[:, 0] = tokenizer.eot_id
    return ids_BT


@torch.no_grad()
def quintic_logits(source: Source, ids_BT: Tensor) -> Tensor:
    """Return quintic's own logits of the tokenizer's ids, without those of padded rows."""
    logits_BTV: Tensor = source.model(ids_BT)[..., : source.tokenizer.vocab_size]
    return logits_BTV


def compare_logits(
    expected_BTV: Tensor, found_BTV: Tensor, tool: str, bound: float = LOGIT_BOUND
) -> str:
    """Return in words how far a tool's logits are from quintic's.

    Raises `QuinticError` where that is more than `bound`, a share of the largest.
    """
    if expected_BTV.shape != found_BTV.shape:
        raise QuinticError(
            f"{tool} gives logits of shape {tuple(found_BTV.shape)} where quintic gives "
            f"{tuple(expected_BTV.shape)}: the export is wrong and was removed; report it"
        )
    largest = expected_BTV.abs().max().item()
    difference = (found_BTV.to(torch.float64) - expected_BTV).abs().max().item()
    line = (
        f"logits of {tool} on {BATCH} x {expected_BTV.shape[1]} tokens differ from quintic's by "
        f"at most {difference:.1e}, logits up to {largest:.1f}"
    )
    if not difference <= bound * largest:
        raise QuinticError(
            f"{line}, which is more than rounding: the export was removed; report it"
        )
    return line


def compare_ids(
    source: Source,
    encode: Callable[[str], list[int]],
    tool: str,
    texts: Sequence[str] = TEXTS,
) -> str:
    """Return in words that a tool gives the ids of quintic's tokenizer on all texts.

    Raises `QuinticError` for the first text on which it does not.
    """
    count = 0
    for text in texts:
        expected, found = source.tokenizer.encode(text), encode(text)
        if expected != found:
            raise QuinticError(
                f"{tool} cuts {text[:20]!r} into the tokens {found[:8]} ... where quintic gives "
                f"{expected[:8]} ...: the export was removed; report it"
            )
        count += len(expected)
    return f"ids of {tool} on {len(texts)} texts equal quintic's, {count:,} tokens"

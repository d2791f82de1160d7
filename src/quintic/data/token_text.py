"""Tokens as a reader is shown them: by name, and as the text that they make together."""

from __future__ import annotations

import codecs
import html
from collections.abc import Iterable, Iterator

from quintic.data.tokenizer import END_OF_TEXT, Tokenizer

_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def token_name(tokenizer: Tokenizer | None, token: int) -> str:
    """Return a token by itself, so that it can be told from any other: blanks and line ends are
    marked, bytes that are no whole character are in hexadecimal."""
    if tokenizer is None:
        return f"id {token}"
    if token == tokenizer.eot_id:
        return END_OF_TEXT
    text = tokenizer.bytes_by_id[token].decode(errors="backslashreplace")
    return marked(text)


def marked(text: str) -> str:
    """Return a text on one line, in which blanks are seen: ␣, ↵ and ⇥ for blank, line end and tab,
    and the number of what cannot be printed."""
    return "".join(_MARKS.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[tuple[str, bool]]:
    """Yield the text of each token, and whether it is text: a character of several tokens is with
    the last of them, and the others, like end of text, have a name instead."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        text = decoder.decode(tokenizer.bytes_by_id[token])
        yield (text, True) if text else (token_name(tokenizer, token), False)


def token_markup(text: str, is_text: bool, *classes: str) -> str:
    """Return a piece that `pieces` yields as an element of a page, with style.css's look of line
    ends and names besides the `classes`."""
    names = [*classes]
    if not is_text:
        names.append("name")
    elif "\n" in text:
        names.append("end")
    return f'<i class="{" ".join(names)}">{html.escape(_printable(text))}</i>'


def _printable(text: str) -> str:
    """Return text without control characters, which a page may not have: each as its picture."""
    return "".join(
        chr(0x2400 + ord(c)) if ord(c) < 0x20 and c not in "\n\t" else "␡" if c == "\x7f" else c
        for c in text
    )

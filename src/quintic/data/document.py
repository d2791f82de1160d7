"""A file of one's own text as one document, and what is wrong with a file that is none."""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError, one_line, reason

STDIN = Path("-")
"""Stands for standard input."""


@dataclass(frozen=True)
class Document:
    """Holds a text as training has it: `ids` are end of text and then those of the text, [1 +
    tokens]; `text` is the bytes behind them."""

    name: str
    text: bytes
    ids: npt.NDArray[np.int64]

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return a copy of the `count` tokens from position `start` on, [count]."""
        return self.ids[start : start + count].copy()


def read_document(path: Path, tokenizer: Tokenizer) -> Document:
    """Read a file, or standard input, as one document.

    Raises `QuinticError` as `read_text` does, and for a text that the tokenizer does not give back.
    """
    if path != STDIN and path.is_dir():
        raise QuinticError(
            f"{path} is a folder: name its files, or build a dataset of it with quintic data build "
            "and evaluate that with --data"
        )
    name, text = _name(path), read_text(path)
    try:
        ids = tokenizer.encode_to_array(text)
    except ValueError as error:  # tiktoken gives up on a million blanks before a word
        raise QuinticError(f"{name} cannot be tokenized ({one_line(error)}): cut it") from error
    if not tokenizer.gives_back(text, ids, compare=len(ids)):
        raise QuinticError(
            f"{name} is not what the tokenizer gives back of it: use a byte-level vocabulary that "
            "keeps every byte"
        )
    all_ids = np.concatenate([[tokenizer.eot_id], ids.astype(np.int64)])
    return Document(name, text.encode(), all_ids)


def _name(path: Path) -> str:
    return "standard input" if path == STDIN else str(path)


def read_text(path: Path) -> str:
    """Read a file, or standard input; a byte order mark is no text.

    Raises `QuinticError` for a file that is not there or not a file, is empty or is not UTF-8.
    """
    name = _name(path)
    if path == STDIN and sys.stdin is None:
        raise QuinticError("standard input is closed: pipe the text in, or name a file")
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    except OSError as error:
        raise QuinticError(f"{name} cannot be read ({reason(error)}): name a text file") from error
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content:
        raise QuinticError(f"{name} is empty: name a file that has text")
    if problem := text_problem(content):
        raise QuinticError(f"{name} is {problem}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise QuinticError(
            f"{name} is not UTF-8 from byte {error.start} on: name a text file, or convert it"
        ) from error


# PKWARE's APPNOTE, sections 4.3.7, 4.3.16 and 8.5.4; 7-Zip's DOC/7zFormat.txt.
_ARCHIVES = {
    "zip": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    "7z": (b"7z\xbc\xaf\x27\x1c",),
}


def archive_problem(head: bytes) -> str:
    """Return what archive a file is whose first 262 bytes or more are these, and what to do; ""
    where it is none."""
    kind = next((kind for kind, begins in _ARCHIVES.items() if head.startswith(begins)), "")
    # The magic of POSIX's ustar, behind fields that end with zeros.
    if head[257:262] == b"ustar" and b"\0" in head[:257]:
        kind = "tar"
    return kind and f"a {kind} archive: unpack it and name what is in it"


def text_problem(content: bytes) -> str:
    """Return what a file is, by its first bytes, that is no text in UTF-8, and how to make it one;
    "" where they do not say.

    English in UTF-16 without a byte order mark is valid UTF-8; but every second byte of it is 0.
    """
    if problem := archive_problem(content):
        return problem
    head, encoding = content[:1000], ""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    elif 3 * max(even, odd) > len(head) > 16 and max(even, odd) > 4 * min(even, odd):
        encoding = "UTF-16LE" if odd > even else "UTF-16BE"
    elif len(head) > 16:
        first, second, third, fourth = (4 * head[n::4].count(0) / len(head) for n in range(4))
        if first < 0.1 and min(third, fourth) > 0.9:
            encoding = "UTF-32LE"
        elif fourth < 0.1 and min(first, second) > 0.9:
            encoding = "UTF-32BE"
    return encoding and (
        f"{encoding} and not UTF-8: iconv -f {encoding} -t UTF-8 OLD > NEW converts it"
    )

"""The settings of `quintic data build` that decide about the bytes of a dataset."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quintic.data.build.chunks import DocumentFormat
from quintic.data.build.messages import TEMPLATES, unknown_places
from quintic.data.build.text_files import FileKind
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.shards import MAX_SHARD_TOKENS
from quintic.errors import QuinticError

NamedKind = Literal["text", "json", "csv", "tsv", "warc"]


@dataclass(frozen=True)
class BuildSettings:
    """The settings that decide about the bytes of a dataset.

    `inputs` is as `find_text_files` takes it; shards are named NAME_train_000001.bin and
    NAME_val_000000.bin; `field` and `separator` are as in `DocumentFormat`, and so is `messages`,
    which may also be a name of `TEMPLATES`; `tokenizer` is "gpt2", the path of a `tokenizer.json`,
    or "train:SIZE", with ":gpt2" behind it where text is to be cut as GPT-2 does; `val_share`, 0 to
    1, is the share of the documents that is for validation;
    `shuffle` is the seed of a shuffle of the documents, None keeps their order; `kind` is what
    standard input is, and files whose names do not say it, None for what their first bytes say.

    Raises `QuinticError` for a value out of its range.
    """

    inputs: tuple[str, ...]
    name: str
    field: str = "text"
    separator: str | None = None
    tokenizer: str = GPT2.name
    shard_tokens: int = 100_000_000
    val_share: float = 0.01
    shuffle: int | None = None
    messages: str | None = None
    kind: NamedKind | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise QuinticError("data build needs an INPUT: a file, a folder or a pattern")
        check_shards(self.name, self.shard_tokens, self.val_share)
        if self.shuffle is not None and not 0 <= self.shuffle < 2**64:
            raise QuinticError(f"--shuffle is {self.shuffle}: it must be from 0 to 2**64 - 1")
        if self.separator == "":
            raise QuinticError("--separator is empty: leave it out, or name a text")
        if self.messages is not None and "{content}" not in self._template:
            raise QuinticError(
                f"--messages is {self.messages!r}: it must be {' or '.join(TEMPLATES)}, or a "
                f"template with {{content}} and, if wanted, {{role}}, such as "
                f"'{{role}}: {{content}}\\n'"
            )
        if unknown := unknown_places(self._template):
            raise QuinticError(
                f"--messages is {self.messages!r}: {unknown} stands for nothing, only {{role}} and "
                f"{{content}} do; other text may have no word in braces"
            )
        if self.tokenizer.startswith("train:") and self.trained_size is None:
            raise QuinticError(
                f"--tokenizer is {self.tokenizer!r}: a new vocabulary is asked for as train:SIZE, "
                f"such as train:16384, or with GPT-2's cut of text as train:SIZE:gpt2"
            )
        if self.trained_size is not None and self.val_share == 1:
            raise QuinticError(
                f"--tokenizer {self.tokenizer} needs training documents, --val-share 1 leaves none"
            )

    @property
    def trained_size(self) -> int | None:
        """The size of the vocabulary to train; None where it is there already."""
        found = re.fullmatch(r"train:([1-9][\d_]*)(:gpt2)?", self.tokenizer)
        return int(found[1]) if found else None

    @property
    def cut_as_gpt2(self) -> bool:
        """True where the vocabulary to train cuts text as GPT-2 does."""
        return self.trained_size is not None and self.tokenizer.endswith(":gpt2")

    @property
    def _template(self) -> str:
        return TEMPLATES.get(self.messages or "", self.messages or "")

    @property
    def file_kind(self) -> FileKind | None:
        """The kind, as files have it."""
        return "lines" if self.kind == "json" else self.kind

    @property
    def format(self) -> DocumentFormat:
        """The way in which documents are found in the input."""
        separator = None if self.separator is None else self.separator.encode()
        return DocumentFormat(self.field, separator, self._template or None)


def check_shards(name: str, shard_tokens: int, val_share: float) -> None:
    """Raise `QuinticError` for values out of their range, of which shards are to be made."""
    if not re.fullmatch(r"[^/\\\s.][^/\\\s]*", name):
        raise QuinticError(
            f"--name is {name!r}: it begins the names of the shards, and must be a word "
            f"without blanks and slashes"
        )
    if not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
        raise QuinticError(f"--shard-tokens is {shard_tokens}: it must be 1 to {MAX_SHARD_TOKENS}")
    if not 0 <= val_share <= 1:
        raise QuinticError(f"--val-share is {val_share}: it must be 0 to 1")


def default_name(out: Path) -> str:
    """Return the name that the shards of a folder begin with unless told otherwise."""
    return re.sub(r"\s+", "_", out.resolve().name.lstrip(".")) or "data"

"""Where the tokens come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from quintic.config.schema import OTHER_TEXT, Rule, Section, require, setting

EMBEDDED = "embedded"
"""The value of `data.path` that stands for the corpus every Python installation carries."""


@dataclass(frozen=True)
class DataConfig(Section, name="data"):
    """Where the tokens come from and in which order."""

    path: str = setting(EMBEDDED, resume="free", ranks="own", not_swept=OTHER_TEXT)
    """Folder of shards, or `embedded`: the text that every Python installation carries."""
    tokenizer: str | None = setting(None, resume="free", ranks="own", not_swept=OTHER_TEXT)
    """`gpt2` or a tokenizer.json, for folders without a manifest; None: the manifest's."""
    order: Literal["stream", "shuffle"] = "stream"
    """stream: as the shards lie; shuffle: each epoch a permutation of its samples by the seed."""
    embedded_vocab: Annotated[
        int, Rule(lambda size: 512 <= size <= 65536, "it must be from 512 to 65,536")
    ] = setting(4096, not_swept=OTHER_TEXT, part_of={"data.path": EMBEDDED})
    """Vocabulary trained on the embedded corpus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.path != "", "data.path is empty: name a folder of shards, or `embedded`")

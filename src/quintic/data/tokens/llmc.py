"""Shards of llm.c and modded-nanogpt under any name, such as tiny_shakespeare_train.bin."""

from functools import partial
from pathlib import Path

from quintic.data.shards import has_header, open_shard
from quintic.data.tokens.token_file import TokenFile, stream_blocks


def find_llmc(folder: Path, names: list[str]) -> list[TokenFile]:
    """Return the shards of a folder; raises `QuinticError` as `open_shard` does."""
    paths = [folder / name for name in names if name.endswith(".bin")]
    shards = [open_shard(path) for path in paths if has_header(path)]
    return [TokenFile(s.path, s.count, partial(stream_blocks, s.tokens)) for s in shards]

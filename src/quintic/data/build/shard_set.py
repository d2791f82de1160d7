"""The shards of a dataset that is being built: one of each split is open, filled from the front."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.cores import available_cores
from quintic.data.manifest import SPLITS, ShardRecord, Split
from quintic.data.shard_stats import TokenCounter, record_shard
from quintic.data.shards import ShardWriter, TokenStream, open_shard, part_of
from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError

_BLOCK_TOKENS = 1 << 20
_FIRST_NUMBER: dict[Split, int] = {"train": 1, "val": 0}  # as llm.c and modded-nanogpt count


class ShardSet:
    """The shards of both splits, filled one after another.

    The last shard of a split has what is left of its tokens.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, tokenizer: Tokenizer) -> None:
        self._folder, self._name = folder, name
        self._shard_tokens, self._tokenizer = shard_tokens, tokenizer
        self._open: dict[Split, ShardWriter] = {}
        self._full: dict[Split, int] = dict.fromkeys(SPLITS, 0)

    def append(self, split: Split, tokens: npt.NDArray[np.unsignedinteger]) -> None:
        """Write tokens, [count], over as many shards as they need."""
        while len(tokens):
            if split not in self._open:
                path = self._path(split, self._full[split])
                self._open[split] = ShardWriter(path, self._tokenizer.vocab_size)
            writer = self._open[split]
            room = self._shard_tokens - writer.count
            writer.append(tokens[:room])
            tokens = tokens[room:]
            if writer.count == self._shard_tokens:
                self._end_shard(split)

    def flush(self) -> dict[str, Any]:
        """Put on disk what was written, and return what `restore` needs to come back to here."""
        for writer in self._open.values():
            writer.flush()
        return {
            split: {
                "full": self._full[split],
                "tokens": self._open[split].count if split in self._open else 0,
            }
            for split in SPLITS
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Come back to where `flush` returned this state, or to the beginning.

        What was written since is dropped.
        """
        for split in SPLITS:
            full, tokens = (state[split]["full"], state[split]["tokens"]) if state else (0, 0)
            self._back_to(split, full, tokens)

    def hold_out(self, tokens: int) -> None:
        """Move the last training documents, of so many tokens or a little more, to validation,
        which must be empty.

        Raises `QuinticError` where no document would be left for training.
        """
        for split in list(self._open):
            self._end_shard(split)
        shards = [open_shard(self._path("train", index)) for index in range(self._full["train"])]
        stream = TokenStream(shards)
        begin = self._last_start(stream, len(stream) - tokens)
        if not begin:
            raise QuinticError(
                f"--val-tokens is {tokens}: of {len(stream)} tokens in all no document but the "
                f"first begins so many before the end; name fewer"
            )
        for position in range(begin, len(stream), _BLOCK_TOKENS):
            ids = stream.read(position, min(_BLOCK_TOKENS, len(stream) - position))
            self.append("val", ids.astype(shards[0].dtype))
        self._back_to("train", *divmod(begin, self._shard_tokens))

    def _last_start(self, stream: TokenStream, end: int) -> int:
        """Return where the last document begins that does so at a position up to `end`, 0 where
        there is none."""
        while end > 0:
            first = max(0, end + 1 - _BLOCK_TOKENS)
            ids = stream.read(first, end + 1 - first)
            if len(starts := np.flatnonzero(ids == self._tokenizer.eot_id)):
                return first + int(starts[-1])
            end = first - 1
        return 0

    def _back_to(self, split: Split, full: int, tokens: int) -> None:
        """Keep so many full shards of a split, and so many tokens of the next."""
        number = full + (tokens > 0)
        while self._drop(split, number):
            number += 1
        self._full[split] = full
        if tokens:
            path = self._path(split, full)
            self._open[split] = ShardWriter(path, self._tokenizer.vocab_size, kept=tokens)

    def finish(self, on_counted: Callable[[float], None]) -> tuple[ShardRecord, ...]:
        """End the last shards, read all of them, and return what the manifest says of each.

        `on_counted` is called with the fraction of the shards that is read.
        """
        for split in list(self._open):
            self._end_shard(split)
        counter = TokenCounter(self._tokenizer.eot_id, self._tokenizer.byte_lengths)
        shards = [
            (split, self._path(split, number))
            for split in SPLITS
            for number in range(self._full[split])
        ]
        records: list[ShardRecord] = []
        # A thread holds about 20 MB.
        with ThreadPoolExecutor(min(8, available_cores())) as pool:
            for record in pool.map(lambda s: record_shard(open_shard(s[1]), s[0], counter), shards):
                records.append(record)
                on_counted(len(records) / len(shards))
        return tuple(records)

    def close(self) -> None:
        """Leave what is not finished for another process."""
        for writer in self._open.values():
            writer.close()

    def _path(self, split: Split, index: int) -> Path:
        return self._folder / f"{self._name}_{split}_{_FIRST_NUMBER[split] + index:06d}.bin"

    def _end_shard(self, split: Split) -> None:
        self._open.pop(split).finish()
        self._full[split] += 1

    def _drop(self, split: Split, index: int) -> bool:
        """Remove a shard, finished or not; return whether there was one."""
        path = self._path(split, index)
        there = [file for file in (path, part_of(path)) if file.exists()]
        for file in there:
            file.unlink()
        return bool(there)

"""The shards of a dataset that is being built: one of each split is open, filled from the front."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.manifest import SPLITS, ShardRecord, Split
from quintic.data.shard_stats import TokenCounter, record_shard
from quintic.data.shards import Shard, ShardWriter, open_shard, part_of
from quintic.data.tokenizer import Tokenizer

_FIRST_NUMBER: dict[Split, int] = {"train": 1, "val": 0}  # as llm.c and modded-nanogpt count


class ShardSet:
    """The shards of both splits, filled one after another.

    What the manifest says of a finished shard is found out by reading it again, in a thread: the
    library that counts lets go of the interpreter.

    Args:
        folder: of the dataset.
        name: what the names of the shards begin with.
        shard_tokens: tokens of a shard; the last of a split has what is left.
        tokenizer: the tokens are of its vocabulary.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, tokenizer: Tokenizer) -> None:
        self._folder, self._name = folder, name
        self._shard_tokens, self._tokenizer = shard_tokens, tokenizer
        self._recorder = ThreadPoolExecutor(1, "recorder")
        self._open: dict[Split, ShardWriter] = {}
        self._records: dict[Split, list[Future[ShardRecord]]] = {split: [] for split in SPLITS}

    def append(self, split: Split, tokens: npt.NDArray[np.unsignedinteger]) -> None:
        """Write tokens, [count], over as many shards as they need."""
        while len(tokens):
            if split not in self._open:
                number = len(self._records[split])
                self._open[split] = ShardWriter(
                    self._path(split, number), self._tokenizer.vocab_size
                )
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
                "records": [asdict(f.result()) if f.done() else None for f in self._records[split]],
                "tokens": self._open[split].count if split in self._open else 0,
            }
            for split in SPLITS
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Come back to where `flush` returned this state; what was written since is dropped."""
        for split in SPLITS:
            records = state[split]["records"] if state else []
            tokens = state[split]["tokens"] if state else 0
            number = len(records) + (tokens > 0)
            while self._drop(split, number):
                number += 1
            for record in records:
                self._records[split].append(self._known(split, record))
            if tokens:
                path = self._path(split, len(records))
                self._open[split] = ShardWriter(path, self._tokenizer.vocab_size, kept=tokens)

    def finish(self) -> tuple[ShardRecord, ...]:
        """End the last shards, and return what the manifest says of all."""
        for split in list(self._open):
            self._end_shard(split)
        return tuple(future.result() for split in SPLITS for future in self._records[split])

    def close(self) -> None:
        """Leave what is not finished for another process."""
        for writer in self._open.values():
            writer.close()
        self._recorder.shutdown(cancel_futures=True)

    def _path(self, split: Split, index: int) -> Path:
        return self._folder / f"{self._name}_{split}_{_FIRST_NUMBER[split] + index:06d}.bin"

    def _end_shard(self, split: Split) -> None:
        shard = self._open.pop(split).finish()
        self._records[split].append(self._record(shard, split))

    def _drop(self, split: Split, index: int) -> bool:
        """Remove a shard, finished or not; False if there is none."""
        path = self._path(split, index)
        there = [file for file in (path, part_of(path)) if file.exists()]
        for file in there:
            file.unlink()
        return bool(there)

    def _known(self, split: Split, record: dict[str, Any] | None) -> Future[ShardRecord]:
        if record is None:  # it was still being read
            shard = open_shard(self._path(split, len(self._records[split])))
            return self._record(shard, split)
        known: Future[ShardRecord] = Future()
        known.set_result(ShardRecord(**record))
        return known

    def _record(self, shard: Shard, split: Split) -> Future[ShardRecord]:
        return self._recorder.submit(lambda: record_shard(shard, split, self._counter))

    @cached_property
    def _counter(self) -> TokenCounter:
        return TokenCounter(self._tokenizer.eot_id, self._tokenizer.byte_lengths)

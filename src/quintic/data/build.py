"""Text to a dataset: documents are found, tokenized in many processes, and written to shards.

The parent reads and cuts, orders what comes back, and writes; it never parses or tokenizes. The
dataset is the same byte for byte for any number of processes, and however often the build was
interrupted: everything is in the order of the input, or of a seeded shuffle.
"""

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.buildfolder import SKIPPED_FILE, BuildFolder
from quintic.data.documents import Bad
from quintic.data.encode import Encoded, Encoders, Encoding
from quintic.data.manifest import SPLITS, Manifest, ShardRecord, Split
from quintic.data.sample import sample_texts
from quintic.data.shards import MAX_SHARD_TOKENS, ShardWriter, open_shard, part_of, token_dtype
from quintic.data.sources import (
    FIRST,
    PIECE_BYTES,
    Piece,
    Position,
    Reading,
    Source,
    find_sources,
    read_pieces,
)
from quintic.data.spill import Spill, bucket_count
from quintic.data.tokenizer import (
    GPT2,
    TOKENIZER_FILE,
    BpeTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)
from quintic.errors import QuinticError

# Part of the plan: to be raised when the same input gives other bytes.
_BUILD_VERSION = 1

# Progress is kept this often: what is lost when a build is killed.
COMMIT_EVERY_S = 10.0

_FIRST_NUMBER: dict[Split, int] = {"train": 1, "val": 0}  # as llm.c and modded-nanogpt count


@dataclass(frozen=True)
class BuildSettings:
    """What decides about the bytes of a dataset.

    Attributes:
        inputs: as `find_sources` takes them.
        name: shards are named NAME_train_000001.bin, NAME_val_000000.bin.
        field: of JSON objects or parquet columns, the one that holds the text.
        separator: what stands between the documents of a text file; None if it is one document.
        tokenizer: "gpt2", the path of a `tokenizer.json`, or "train:SIZE".
        shard_tokens: tokens of a shard; the last of a split has what is left.
        val_share: share of the documents that is for validation, 0 to 1.
        shuffle: seed of a shuffle of the documents; None keeps their order.

    Raises:
        QuinticError: a value out of its range.
    """

    inputs: tuple[str, ...]
    name: str
    field: str = "text"
    separator: str | None = None
    tokenizer: str = GPT2.name
    shard_tokens: int = 100_000_000
    val_share: float = 0.01
    shuffle: int | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise QuinticError("data build needs an INPUT: a file, a folder or a pattern")
        if not re.fullmatch(r"[^/\\\s.][^/\\\s]*", self.name):
            raise QuinticError(
                f"--name is {self.name!r}: it begins the names of the shards, and must be a word "
                f"without blanks and slashes"
            )
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            raise QuinticError(
                f"--shard-tokens is {self.shard_tokens}: it must be 1 to {MAX_SHARD_TOKENS}"
            )
        if not 0 <= self.val_share <= 1:
            raise QuinticError(f"--val-share is {self.val_share}: it must be 0 to 1")
        if self.separator == "":
            raise QuinticError("--separator is empty: leave it out, or name a text")
        if self.tokenizer.startswith("train:") and self.trained_size is None:
            raise QuinticError(
                f"--tokenizer is {self.tokenizer!r}: a new vocabulary is asked for as train:SIZE, "
                f"such as train:16384"
            )
        if self.trained_size is not None and self.val_share == 1:
            raise QuinticError(
                f"--tokenizer {self.tokenizer} needs training documents, --val-share 1 leaves none"
            )

    @property
    def trained_size(self) -> int | None:
        """Size of the vocabulary to train; None if it is there already."""
        found = re.fullmatch(r"train:(\d[\d_]*)", self.tokenizer)
        return int(found[1]) if found else None

    @property
    def reading(self) -> Reading:
        separator = None if self.separator is None else self.separator.encode()
        return Reading(self.field, separator)


@dataclass(frozen=True)
class BuildStatus:
    """How far a build has come.

    Attributes:
        stage: "vocabulary", "tokens" or "shuffle".
        fraction: of the stage.
        documents: so far, of both splits.
        tokens: so far, of both splits.
        skipped: bad documents so far.
    """

    stage: str
    fraction: float
    documents: int = 0
    tokens: int = 0
    skipped: int = 0


Progress = Callable[[BuildStatus], None]


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        path: the dataset.
        shards: its shards.
        skipped: number of bad documents, listed in SKIPPED_FILE.
        notes: what a user should know besides.
        built: False if an earlier command had finished it.
    """

    path: Path
    shards: tuple[ShardRecord, ...]
    skipped: int
    notes: list[str]
    built: bool


def default_name(out: Path) -> str:
    """What the shards of a folder are named after unless told otherwise."""
    return re.sub(r"\s+", "_", out.resolve().name.lstrip(".")) or "data"


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build_dataset(
    settings: BuildSettings,
    out: Path,
    *,
    workers: int | None = None,
    max_bad: int = 0,
    progress: Progress | None = None,
) -> BuildReport:
    """Build a dataset, or go on with one that was interrupted.

    Args:
        settings: what to build.
        out: the folder; absent, empty, or of the same build.
        workers: number of processes that tokenize; all cores if None.
        max_bad: how many bad documents may be skipped. Invalid UTF-8, broken JSON, a missing field
            and a document without text are bad.
        progress: called as the build goes on.

    Raises:
        QuinticError: settings, input or folder that cannot be used, more bad documents than
            allowed, a full disk, or a process that was killed.
    """
    if workers is not None and workers < 1:
        raise QuinticError(f"--workers is {workers}: it must be at least 1")
    if max_bad < 0:
        raise QuinticError(f"--max-bad is {max_bad}: it must be 0 or more")
    sources, notes = find_sources(settings.inputs, leave_out=out)
    given = None if settings.trained_size else load_tokenizer(settings.tokenizer)
    input_bytes = sum(source.size for source in sources)
    # A process takes longer to start than a piece or two to tokenize.
    workers = min(workers or available_cores(), 1 + input_bytes // (2 * PIECE_BYTES))
    try:
        with BuildFolder(out, _plan(settings, sources, given)) as folder:
            if folder.finished:
                return _report(out, notes, built=False)
            tokenizer = given or _trained(settings, sources, out, progress)
            if isinstance(tokenizer, BpeTokenizer):
                tokenizer.save(out)
            spec = str(out / TOKENIZER_FILE) if tokenizer.name != GPT2.name else GPT2.name
            encoding = Encoding(spec, settings.reading, settings.val_share)
            with Encoders(encoding, tokenizer, workers) as encoders:
                build = _Build(settings, sources, folder, tokenizer, encoders, max_bad, progress)
                build.run(ahead=2 * workers)
        return _report(out, notes, built=True)
    except BrokenProcessPool as error:
        raise QuinticError(
            "a process that tokenizes was killed, perhaps for want of memory: run the same command "
            "again, with fewer --workers, and it continues"
        ) from error
    except OSError as error:
        raise QuinticError(
            f"--out {out} cannot be written ({error.strerror or error}): make room or check its "
            f"permissions, and run the same command again"
        ) from error


def _plan(
    settings: BuildSettings, sources: Sequence[Source], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What must be the same for a build to go on."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.name}\0{source.size}\n".encode("utf-8", "surrogateescape"))
    return {
        "format_version": _BUILD_VERSION,
        **asdict(settings),
        "inputs": list(settings.inputs),
        "input_files": len(sources),
        "input_bytes": sum(source.size for source in sources),
        "input_sha256": digest.hexdigest(),
        "tokenizer_fingerprint": tokenizer.fingerprint if tokenizer else "trained here",
    }


def _trained(
    settings: BuildSettings, sources: Sequence[Source], out: Path, progress: Progress | None
) -> Tokenizer:
    """The vocabulary trained on the input; an interrupted build finds its own."""
    if (out / TOKENIZER_FILE).exists():
        return load_tokenizer(str(out / TOKENIZER_FILE))
    assert settings.trained_size is not None

    def texts() -> Iterator[str]:
        for text, fraction in sample_texts(sources, settings.reading, settings.val_share):
            if progress:
                progress(BuildStatus("vocabulary", fraction))
            yield text

    return train_bpe(texts(), settings.trained_size)


def _report(out: Path, notes: list[str], built: bool) -> BuildReport:
    manifest = Manifest.read(out)
    there = {record.split for record in manifest.shards}
    notes = notes + [
        f"no document is in the {split} split" for split in SPLITS if split not in there
    ]
    skipped = out / SKIPPED_FILE
    count = skipped.read_bytes().count(b"\n") if skipped.exists() else 0
    return BuildReport(out, manifest.shards, count, notes, built)


class _Build:
    """One process's work on a build."""

    def __init__(
        self,
        settings: BuildSettings,
        sources: Sequence[Source],
        folder: BuildFolder,
        tokenizer: Tokenizer,
        encoders: Encoders,
        max_bad: int,
        progress: Progress | None,
    ) -> None:
        self._settings, self._sources, self._folder = settings, sources, folder
        self._tokenizer, self._encoders = tokenizer, encoders
        self._max_bad, self._progress = max_bad, progress
        self._sizes = np.cumsum([0, *(source.size for source in sources)]).tolist()
        self._shards = _ShardSet(folder.path, settings, tokenizer, encoders)
        self._spill: Spill | None = None
        if settings.shuffle is not None:
            buckets = bucket_count(self._sizes[-1])
            self._spill = Spill(
                folder.work / "spill", settings.shuffle, buckets, token_dtype(tokenizer.vocab_size)
            )
        self._position = FIRST
        self._bucket = 0  # the next one to be written
        self._documents, self._tokens, self._bad, self._skipped_bytes = 0, 0, 0, 0
        self._committed_s = time.monotonic()

    def run(self, ahead: int) -> None:
        """Do what is left to do.

        Args:
            ahead: how many tasks may wait or be in work, which bounds memory.
        """
        try:
            self._restore(self._folder.read_state())
            self._read(ahead)
            self._commit()
            if self._spill is not None:
                self._write_shuffled(self._spill)
            self._finish()
        finally:
            self._shards.close()

    def _read(self, ahead: int) -> None:
        """From the input to the shards, or to the buckets of the shuffle."""
        waiting: deque[tuple[Piece, Future[Encoded]]] = deque()
        for pieces in self._tasks():
            # Only what is needed of the last piece is kept, not its text.
            waiting.append((pieces[-1]._replace(content=b""), self._encoders.encode(pieces)))
            if len(waiting) > ahead:
                self._take(*waiting.popleft())
        while waiting:
            self._take(*waiting.popleft())
        if not self._documents:
            raise QuinticError(
                f"the input has no documents: {len(self._sources)} files, {self._bad} bad documents"
            )

    def _tasks(self) -> Iterator[list[Piece]]:
        """Pieces from where the build is, several small ones together."""
        pieces: list[Piece] = []
        size = 0
        for piece in read_pieces(self._sources, self._settings.reading, self._position):
            pieces.append(piece)
            size += piece.size
            if size >= PIECE_BYTES // 2 or len(pieces) >= 1000:
                yield pieces
                pieces, size = [], 0
        if pieces:
            yield pieces

    def _take(self, last: Piece, future: Future[Encoded]) -> None:
        """Write what came of a task."""
        encoded = future.result()
        self._note_bad(encoded.bad)
        for split, (tokens, lengths) in encoded.splits.items():
            self._documents += len(lengths)
            self._tokens += len(tokens)
            if self._spill is not None:
                self._spill.append(split, tokens, lengths)
            else:
                self._shards.append(split, tokens)
        self._position = last.after
        # Keeping progress of a shuffle touches every bucket: only when they must be written.
        if self._spill.full if self._spill is not None else self._commit_is_due():
            self._commit()
        read_bytes = self._sizes[last.begin.source] + last.read_bytes
        self._show("tokens", read_bytes / max(1, self._sizes[-1]))

    def _note_bad(self, found: Sequence[Bad]) -> None:
        if not found:
            return
        lines = []
        for bad in found:
            self._bad += 1
            lines.append(f"{self._sources[bad.source].name}:{bad.line}: {bad.reason}")
            if self._bad > self._max_bad:
                raise QuinticError(
                    f"{lines[-1]}; --max-bad allows {self._max_bad} bad documents: mend the input, "
                    f"or give a larger --max-bad to skip them"
                )
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        with (self._folder.path / SKIPPED_FILE).open("ab") as file:
            file.write(content)
        self._skipped_bytes += len(content)

    def _write_shuffled(self, spill: Spill) -> None:
        """Bucket by bucket to shards, both splits."""
        while self._bucket < spill.buckets:
            for split in SPLITS:
                self._shards.append(split, spill.read(split, self._bucket))
            self._bucket += 1
            if self._commit_is_due():
                self._commit()
            self._show("shuffle", self._bucket / spill.buckets)

    def _finish(self) -> None:
        records = self._shards.finish()
        if self._tokens != sum(record.tokens for record in records):
            # The state of an interrupted build and what it wrote do not belong together.
            raise QuinticError(
                f"--out {self._folder.path} does not hold the {self._tokens} tokens that were "
                f"written to it: delete the folder and build again"
            )
        Manifest(
            tokenizer=GPT2.name if self._tokenizer.name == GPT2.name else TOKENIZER_FILE,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            vocab_size=self._tokenizer.vocab_size,
            eot_id=self._tokenizer.eot_id,
            shards=records,
        ).write(self._folder.path)

    def _commit_is_due(self) -> bool:
        return time.monotonic() - self._committed_s >= COMMIT_EVERY_S

    def _commit(self) -> None:
        """Keep what was done: an interrupted build goes on from here."""
        self._folder.write_state(
            {
                "shards": self._shards.flush(),
                "spill": self._spill.flush() if self._spill is not None else None,
                "position": list(self._position),
                "bucket": self._bucket,
                "documents": self._documents,
                "tokens": self._tokens,
                "bad": self._bad,
                "skipped_bytes": self._skipped_bytes,
            }
        )
        self._committed_s = time.monotonic()

    def _restore(self, state: dict[str, Any] | None) -> None:
        skipped = self._folder.path / SKIPPED_FILE
        if state is None:
            self._shards.restore({})
            skipped.unlink(missing_ok=True)
            if self._spill is not None:
                self._spill.restore(None)
            return
        self._shards.restore(state["shards"])
        if self._spill is not None:
            self._spill.restore(state["spill"])
        self._position = Position(*state["position"])
        self._bucket = state["bucket"]
        self._documents, self._tokens = state["documents"], state["tokens"]
        self._bad, self._skipped_bytes = state["bad"], state["skipped_bytes"]
        if self._skipped_bytes:
            os.truncate(skipped, self._skipped_bytes)
        else:
            skipped.unlink(missing_ok=True)

    def _show(self, stage: str, fraction: float) -> None:
        if self._progress:
            self._progress(BuildStatus(stage, fraction, self._documents, self._tokens, self._bad))


class _ShardSet:
    """The shards of both splits, filled one after another."""

    def __init__(
        self, folder: Path, settings: BuildSettings, tokenizer: Tokenizer, encoders: Encoders
    ) -> None:
        self._folder, self._name = folder, settings.name
        self._shard_tokens, self._vocab_size = settings.shard_tokens, tokenizer.vocab_size
        self._encoders = encoders
        self._open: dict[Split, ShardWriter] = {}
        self._records: dict[Split, list[Future[ShardRecord]]] = {split: [] for split in SPLITS}

    def append(self, split: Split, tokens: npt.NDArray[np.unsignedinteger]) -> None:
        """Write tokens, [count], over as many shards as they need."""
        while len(tokens):
            if split not in self._open:
                number = len(self._records[split])
                self._open[split] = ShardWriter(self._path(split, number), self._vocab_size)
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
                self._open[split] = ShardWriter(path, self._vocab_size, kept=tokens)

    def finish(self) -> tuple[ShardRecord, ...]:
        """End the last shards, and return what the manifest says of all."""
        for split in list(self._open):
            self._end_shard(split)
        return tuple(future.result() for split in SPLITS for future in self._records[split])

    def close(self) -> None:
        """Leave what is not finished for another process."""
        for writer in self._open.values():
            writer.close()

    def _path(self, split: Split, index: int) -> Path:
        return self._folder / f"{self._name}_{split}_{_FIRST_NUMBER[split] + index:06d}.bin"

    def _end_shard(self, split: Split) -> None:
        shard = self._open.pop(split).finish()
        self._records[split].append(self._encoders.record(shard, split))

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
            return self._encoders.record(shard, split)
        known: Future[ShardRecord] = Future()
        known.set_result(ShardRecord(**record))
        return known

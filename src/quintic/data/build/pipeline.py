"""Text to a dataset: documents are found, tokenized in many processes, and written to shards.

The parent reads and cuts, orders what comes back, and writes; it never parses or tokenizes. The
dataset is the same byte for byte for any number of processes, and however often the build was
interrupted: everything is in the order of the input, or of a seeded shuffle.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quintic.cores import available_cores
from quintic.data.build.chunks import FIRST, PIECE_BYTES, Piece, Position, read_pieces
from quintic.data.build.documents import Bad
from quintic.data.build.encode import Encoded, Encoders, Encoding
from quintic.data.build.folder import SKIPPED_FILE, BuildFolder
from quintic.data.build.inputs import find_sources
from quintic.data.build.sample import sample_texts
from quintic.data.build.settings import BuildSettings
from quintic.data.build.shard_set import ShardSet
from quintic.data.build.shuffle import DocumentShuffle, bucket_count
from quintic.data.build.text_files import Source
from quintic.data.manifest import SPLITS, Manifest, ShardRecord
from quintic.data.shards import token_dtype
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


@dataclass(frozen=True)
class BuildStatus:
    """How far a build has come.

    Attributes:
        stage: "vocabulary", "download", "tokens" or "shuffle"; a download is of one source.
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

    def arriving(fraction: float) -> None:
        if progress:
            progress(BuildStatus("download", fraction))

    def texts() -> Iterator[str]:
        reading, val_share = settings.reading, settings.val_share
        for text, fraction in sample_texts(sources, reading, val_share, arriving):
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
        self._shards = ShardSet(folder.path, settings.name, settings.shard_tokens, tokenizer)
        self._spill: DocumentShuffle | None = None
        if settings.shuffle is not None:
            buckets = bucket_count(self._sizes[-1])
            self._spill = DocumentShuffle(
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
        reading, position = self._settings.reading, self._position
        for piece in read_pieces(self._sources, reading, position, self._arriving):
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

    def _write_shuffled(self, spill: DocumentShuffle) -> None:
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

    def _arriving(self, fraction: float) -> None:
        """The next source is being fetched."""
        self._show("download", fraction)

    def _show(self, stage: str, fraction: float) -> None:
        if self._progress:
            self._progress(BuildStatus(stage, fraction, self._documents, self._tokens, self._bad))

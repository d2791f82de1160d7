"""Text to a dataset: documents are found, tokenized in many processes, and written to shards.

The parent reads and cuts, orders what comes back, and writes; it parses and tokenizes only what the
other processes have no room for.
"""

import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from quintic.cores import available_cores
from quintic.data.bpe_tokenizer import TOKENIZER_FILE, BpeTokenizer
from quintic.data.build.build_input import BuildInput
from quintic.data.build.chunks import CHUNK_BYTES, FIRST, Chunk, Position, read_chunks
from quintic.data.build.documents import BadDocument, is_separated
from quintic.data.build.encode import EncodedChunks
from quintic.data.build.encoder_pool import TASKS_UNDER_WAY, EncoderPool
from quintic.data.build.fast_encoder import fast_encoder_name
from quintic.data.build.folder import SKIPPED_FILE, BuildFolder
from quintic.data.build.inputs import find_text_files
from quintic.data.build.settings import BuildSettings
from quintic.data.build.shard_set import ShardSet
from quintic.data.build.shuffle import DocumentShuffle, bucket_count
from quintic.data.build.text_files import TextFile
from quintic.data.build.vocabulary import train_vocabulary
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.manifest import MANIFEST_FILE, SPLITS, Manifest, ShardRecord
from quintic.data.shards import token_dtype
from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError, counted, reason, way_out

# Part of the plan: to be raised when the same input gives other bytes.
_BUILD_VERSION = 1

# Progress is kept this often: what is lost when a build is killed.
COMMIT_EVERY_S = 10.0

# So much text, most of it as tokens, may wait for what was read before it: enough to keep the
# parent at work while the other processes start.
_WAITING_BYTES = 1 << 25

_NAMED = 3  # files in a note


@dataclass(frozen=True)
class BuildStatus:
    """The progress of a build; documents, tokens and bad documents are of both splits.

    `stage` is "vocabulary", "download", which is of one file, "tokens", "shuffle" or "checksums",
    and `fraction` is the part of it that is done.
    """

    stage: str
    fraction: float
    documents: int = 0
    tokens: int = 0
    skipped: int = 0


OnProgress = Callable[[BuildStatus], None]
Log = Callable[[str], None]


@dataclass(frozen=True)
class BuildReport:
    """The outcome of a build: the folder, its shards, and how many bad documents were skipped.

    `notes` say what a user should know besides; `built` is False where an earlier command had
    finished it.
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
    on_progress: OnProgress | None = None,
    log: Log = lambda line: None,
) -> BuildReport:
    """Build a dataset, or go on with one that was interrupted.

    `out` is absent, empty, or of the same build; `workers` is the number of processes that
    tokenize, all cores if None; `max_bad` is how many bad documents may be skipped: invalid UTF-8,
    broken JSON, a missing field, a document without text; `log` is called with a line where the
    fast encoder is installed and not used, or no longer.

    Raises `QuinticError` for settings, input or a folder that cannot be used, more bad documents
    than allowed, a full disk, and a process that was killed.
    """
    if workers is not None and workers < 1:
        raise QuinticError(f"--workers is {workers}: it must be at least 1")
    if max_bad < 0:
        raise QuinticError(f"--max-bad is {max_bad}: it must be 0 or more")
    on_progress = on_progress or (lambda status: None)
    files, notes = find_text_files(settings.inputs, out, settings.file_kind)
    input_bytes = sum(file.size for file in files)
    # A process takes longer to start than a chunk or two to tokenize.
    workers = min(workers or available_cores(), 1 + input_bytes // (2 * CHUNK_BYTES))
    if (out / MANIFEST_FILE).exists():
        workers = 1  # nothing is left to tokenize
    with EncoderPool(workers) as pool:  # they start while this one does
        given = None if settings.trained_size else load_tokenizer(settings.tokenizer)
        if isinstance(given, BpeTokenizer) and given.switched_off:
            switched_off = " and ".join(given.switched_off)
            notes.append(f"{switched_off} of {settings.tokenizer} left out: documents stay whole")
        try:
            input = BuildInput(files, needed_whole=settings.trained_size is not None)
            with BuildFolder(out, _plan(settings, given), input) as folder:
                if folder.finished:
                    return _report(out, notes, built=False)
                tokenizer = given or _trained(settings, files, out, on_progress)
                spec = GPT2.name
                if isinstance(tokenizer, BpeTokenizer):
                    spec = str(tokenizer.save(out).absolute())

                def run(fast: str | None) -> None:
                    pool.use(replace(settings, tokenizer=spec), tokenizer, fast is not None)
                    encoder = fast or tokenizer.package
                    build = _Build(
                        settings, files, folder, tokenizer, pool, encoder, max_bad, on_progress
                    )
                    build.run(max_tasks=TASKS_UNDER_WAY * workers)
                    notes.extend(build.notes())

                only_reference = (folder.read_state() or {}).get("only_reference", False)
                try:
                    run(None if only_reference else fast_encoder_name(tokenizer, log))
                except _MistakenError as mistake:
                    log(f"{mistake}: all is encoded again by {tokenizer.package}; please report it")
                    # What it wrote may be wrong too: back to the beginning.
                    folder.write_state({"only_reference": True})
                    run(None)
            return _report(out, notes, built=True)
        except BrokenProcessPool as error:
            raise QuinticError(
                "a process that tokenizes was killed, perhaps for want of memory: run the same "
                "command again, with fewer --workers, and it continues"
            ) from error
        except OSError as error:
            raise QuinticError(
                f"--out {out} cannot be written ({reason(error)}): {way_out(error)}, and run the "
                f"same command again"
            ) from error


def _plan(settings: BuildSettings, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return what must be the same for a build to go on, besides its input."""
    chosen = asdict(settings)
    # Came later than the others: builds without them have the plan that they always had.
    for name in ("messages", "kind"):
        if chosen[name] is None:
            del chosen[name]
    return {
        "format_version": _BUILD_VERSION,
        **chosen,
        "inputs": list(settings.inputs),
        "tokenizer_fingerprint": tokenizer.fingerprint if tokenizer else "trained here",
    }


def _trained(
    settings: BuildSettings, files: Sequence[TextFile], out: Path, on_progress: OnProgress
) -> Tokenizer:
    """Train a vocabulary on the input; an interrupted build finds its own."""
    if (out / TOKENIZER_FILE).exists():
        return load_tokenizer(str(out / TOKENIZER_FILE))
    return train_vocabulary(
        files, settings, lambda stage, fraction: on_progress(BuildStatus(stage, fraction))
    )


def _report(out: Path, notes: list[str], built: bool) -> BuildReport:
    manifest = Manifest.read(out)
    there = {record.split for record in manifest.shards}
    notes = notes + [
        f"no document is in the {split} split" for split in SPLITS if split not in there
    ]
    skipped = out / SKIPPED_FILE
    count = skipped.read_bytes().count(b"\n") if skipped.exists() else 0
    return BuildReport(out, manifest.shards, count, notes, built)


@dataclass
class _Done:
    """The state of a build: the next chunk to read and bucket to write, and counts so far."""

    position: Position = FIRST
    bucket: int = 0
    documents: int = 0
    tokens: int = 0
    bad: int = 0
    skipped_bytes: int = 0
    encoders: list[str] = field(default_factory=list)
    only_reference: bool = False
    # Files of text, by their number, in which the separator was not seen so far.
    whole: list[int] = field(default_factory=list)


class _MistakenError(Exception):
    """The fast encoder was found wrong about a document."""


class _Build:
    """One process's work on a build."""

    def __init__(
        self,
        settings: BuildSettings,
        files: Sequence[TextFile],
        folder: BuildFolder,
        tokenizer: Tokenizer,
        pool: EncoderPool,
        encoder: str,
        max_bad: int,
        on_progress: OnProgress,
    ) -> None:
        self._settings, self._files, self._folder = settings, files, folder
        self._tokenizer, self._pool, self._encoder = tokenizer, pool, encoder
        self._max_bad, self._on_progress = max_bad, on_progress
        self._sizes = np.cumsum([0, *(file.size for file in files)]).tolist()
        self._shards = ShardSet(folder.path, settings.name, settings.shard_tokens, tokenizer)
        self._shuffle: DocumentShuffle | None = None
        if settings.shuffle is not None:
            buckets = bucket_count(self._sizes[-1])
            self._shuffle = DocumentShuffle(
                folder.work / "spill", settings.shuffle, buckets, token_dtype(tokenizer.vocab_size)
            )
        self._done = _Done()
        self._committed_s = time.monotonic()

    def run(self, max_tasks: int) -> None:
        """Do what is left to do; no more is read while more than so many tasks, and as much text as
        may wait, are under way, which bounds memory."""
        try:
            self._restore(self._folder.read_state() or {})
            self._read(max_tasks)
            self._pool.end()
            self._commit()
            if self._shuffle is not None:
                self._write_shuffled(self._shuffle)
            self._finish()
        finally:
            self._shards.close()

    def notes(self) -> list[str]:
        """Return what a user should know of the input once it is read."""
        texts = [file.name for file in self._files if file.kind == "text"]
        notes = []
        if self._settings.messages is not None and texts:
            notes.append(f"--messages is for lists: {texts[0]} is text, which stays as it is")
        if self._settings.separator is None:
            return notes
        if not texts:
            return [*notes, "--separator is for text (.txt, .md), of which the input has none"]
        whole = [self._files[index].name for index in self._done.whole]
        if not whole:
            return notes
        where = ", ".join(whole[:_NAMED]) + ", ..." * (len(whole) > _NAMED)
        if len(texts) > 1:
            where = f"{len(whole):,} of {len(texts):,} files of text ({where})"
        one = "which is one document" if len(whole) == 1 else "each of which is one document"
        return [*notes, f"--separator {self._settings.separator!r} is nowhere in {where}, {one}"]

    def _read(self, max_tasks: int) -> None:
        """Go from the input to the shards, or to the buckets of the shuffle."""
        tasks: deque[tuple[Chunk, Future[EncodedChunks]]] = deque()
        sizes: deque[int] = deque()
        for chunks, size in self._tasks():
            # Only what is needed of the last chunk is kept, not its text.
            tasks.append((chunks[-1]._replace(content=b""), self._pool.encode(chunks)))
            sizes.append(size)
            del chunks
            while tasks and (
                tasks[0][1].done() or (len(tasks) > max_tasks and sum(sizes) > _WAITING_BYTES)
            ):
                sizes.popleft()
                self._write(*tasks.popleft())
        while tasks:
            self._write(*tasks.popleft())
        if not self._done.documents:
            raise QuinticError(
                f"the input has no documents: {counted(len(self._files), 'file')}, "
                f"{counted(self._done.bad, 'bad document')}; name others"
            )

    def _tasks(self) -> Iterator[tuple[list[Chunk], int]]:
        """Yield chunks from where the build is, several small ones together, and their size."""
        chunks: list[Chunk] = []
        size = 0
        for chunk in read_chunks(
            self._files,
            self._settings.format,
            self._done.position,
            lambda fraction: self._report("download", fraction),
        ):
            chunks.append(chunk)
            size += chunk.size
            if chunk.kind == "text" and self._settings.separator and not chunk.problem:
                self._look_for_separator(chunk)
            del chunk
            if size >= CHUNK_BYTES // 2 or len(chunks) >= 1000:
                yield chunks, size
                chunks, size = [], 0
        if chunks:
            yield chunks, size

    def _look_for_separator(self, chunk: Chunk) -> None:
        """Note that the separator is in a file, or not in its first chunk."""
        file, whole = chunk.begin.file, self._done.whole
        # In order: what is read again after an interruption is noted once.
        place = bisect_left(whole, file)
        noted = whole[place : place + 1] == [file]
        if not noted and chunk.begin.offset:
            return
        separated = is_separated(chunk, self._settings.format)
        if separated and noted:
            del whole[place]
        elif not separated and not noted:
            whole.insert(place, file)

    def _write(self, last: Chunk, future: Future[EncodedChunks]) -> None:
        """Write what came of a task that ended with the chunk `last`."""
        encoded = future.result()
        if encoded.mistaken is not None:
            file, line = encoded.mistaken
            raise _MistakenError(f"{self._encoder} is wrong at {self._files[file].name}:{line}")
        if encoded.changed is not None:
            file, line = encoded.changed
            raise QuinticError(
                f"{self._files[file].name}:{line}: the tokenizer {self._settings.tokenizer} does "
                f"not give this document back unchanged: use a byte-level BPE that loses nothing, "
                f"or gpt2"
            )
        self._note_bad(encoded.bad)
        for split, (tokens, lengths) in encoded.splits.items():
            self._done.documents += len(lengths)
            self._done.tokens += len(tokens)
            if self._shuffle is not None:
                self._shuffle.append(split, tokens, lengths)
            else:
                self._shards.append(split, tokens)
        self._done.position = last.end
        if self._encoder not in self._done.encoders:
            self._done.encoders.append(self._encoder)
        # Keeping progress of a shuffle touches every bucket: only when they must be written.
        if self._shuffle.full if self._shuffle is not None else self._commit_is_due():
            self._commit()
        read_bytes = self._sizes[last.begin.file] + last.read_bytes
        self._report("tokens", read_bytes / max(1, self._sizes[-1]))

    def _note_bad(self, found: Sequence[BadDocument]) -> None:
        if not found:
            return
        lines = []
        for bad in found:
            self._done.bad += 1
            lines.append(f"{self._files[bad.file].name}:{bad.line}: {bad.reason}")
            if self._done.bad > self._max_bad:
                raise QuinticError(
                    f"{lines[-1]}; --max-bad allows {counted(self._max_bad, 'bad document')}: mend "
                    "the input, or give a larger --max-bad to skip them"
                )
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        with (self._folder.path / SKIPPED_FILE).open("ab") as file:
            file.write(content)
        self._done.skipped_bytes += len(content)

    def _write_shuffled(self, shuffle: DocumentShuffle) -> None:
        """Write both splits to shards, bucket by bucket."""
        while self._done.bucket < shuffle.buckets:
            for split in SPLITS:
                self._shards.append(split, shuffle.read(split, self._done.bucket))
            self._done.bucket += 1
            if self._commit_is_due():
                self._commit()
            self._report("shuffle", self._done.bucket / shuffle.buckets)

    def _finish(self) -> None:
        records = self._shards.finish(lambda fraction: self._report("checksums", fraction))
        if self._done.tokens != sum(record.tokens for record in records):
            # The state of an interrupted build and what it wrote do not belong together.
            raise QuinticError(
                f"--out {self._folder.path} does not hold the {self._done.tokens} tokens that were "
                f"written to it: delete the folder and build again"
            )
        Manifest(
            tokenizer=GPT2.name if self._tokenizer.name == GPT2.name else TOKENIZER_FILE,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            vocab_size=self._tokenizer.vocab_size,
            eot_id=self._tokenizer.eot_id,
            shards=records,
            encoder=", ".join(self._done.encoders),
        ).write(self._folder.path)

    def _commit_is_due(self) -> bool:
        return time.monotonic() - self._committed_s >= COMMIT_EVERY_S

    def _commit(self) -> None:
        """Keep what was done: an interrupted build goes on from here."""
        shards = self._shards.flush()
        spill = self._shuffle.flush() if self._shuffle is not None else None
        self._folder.write_state({"shards": shards, "spill": spill, **asdict(self._done)})
        self._committed_s = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        """Come back to where `_commit` kept this state, or to the beginning where it is empty."""
        self._shards.restore(state.pop("shards", None))
        spill = state.pop("spill", None)
        if self._shuffle is not None:
            self._shuffle.restore(spill)
        self._done = _Done(**state)
        self._done.position = Position(*self._done.position)
        skipped = self._folder.path / SKIPPED_FILE
        if self._done.skipped_bytes:
            os.truncate(skipped, self._done.skipped_bytes)
        else:
            skipped.unlink(missing_ok=True)

    def _report(self, stage: str, fraction: float) -> None:
        done = self._done
        self._on_progress(BuildStatus(stage, fraction, done.documents, done.tokens, done.bad))

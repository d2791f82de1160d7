"""A look into a dataset: a check against its manifest, and counts and samples of what is in it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quintic.cores import available_cores
from quintic.data.dataset import Dataset, open_dataset
from quintic.data.manifest import SPLITS, ShardRecord, Split
from quintic.data.shard_stats import ShardStats, TokenCounter, shard_stats
from quintic.data.shards import Shard, TokenStream
from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError

PERCENTILES = (5, 25, 50, 75, 95, 100)

_COUNTED = {
    "max_id": "max_id",
    "documents": "documents",
    "text_bytes": "text_bytes",
    "sha256": "the checksum",
}

_SAMPLES = 3
_SAMPLE_TOKENS = 80
_BYTES_SAMPLE_TOKENS = 4_000_000


@dataclass(frozen=True)
class CheckReport:
    """The outcome of `check_dataset`: how many shards and tokens were read, and what was found.

    A line of `problems` makes the dataset unfit for training, one of `notes` is no fault.
    """

    path: Path
    shards: int = 0
    tokens: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def check_dataset(
    path: Path,
    tokenizer: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> CheckReport:
    """Read every token of a dataset and compare it with its manifest and tokenizer.

    Checked are the checksums, the counts of tokens, documents and bytes of text, that ids are of
    the vocabulary, and that each split begins with end of text. A foreign dataset has no manifest
    to compare with, and may begin in the middle of a document; that is noted. Shards are read in
    parallel. `tokenizer` is as in `open_dataset`; `on_progress` is called with the fraction of all
    tokens that is done.
    """
    try:
        dataset = open_dataset(path, tokenizer, splits=())
    except QuinticError as error:
        return CheckReport(path, problems=[str(error)])
    problems: list[str] = []
    notes: list[str] = []
    if dataset.manifest is None:
        notes.append("no manifest: checksums and counts cannot be checked")
    notes += [f"no {split} shards" for split in SPLITS if split not in dataset.streams]
    vocabulary = _tokenizer_or_note(dataset, notes)
    records = (
        {record.file: record for record in dataset.manifest.shards} if dataset.manifest else {}
    )
    shards = [shard for stream in dataset.streams.values() for shard in stream.shards]
    total = sum(shard.count for shard in shards)
    done = 0
    counter = TokenCounter(dataset.eot_id, vocabulary.byte_lengths if vocabulary else None)
    cores = available_cores()
    # Twice the cores, so that some read while others compute. A second thread for a shard gains
    # only where there are fewer shards than cores: its processor's cache does not hold the block.
    with ThreadPoolExecutor(2 * cores) as readers, ThreadPoolExecutor(cores) as helpers:
        helper = helpers if len(shards) < cores else None
        counting = [readers.submit(shard_stats, shard, counter, helper) for shard in shards]
        for shard, counted in zip(shards, counting, strict=True):
            if on_progress:
                on_progress(done / total)
            problems += _problems(dataset, shard, counted.result(), records, vocabulary is not None)
            done += shard.count
    if on_progress:
        on_progress(1.0)
    for split, stream in dataset.streams.items():
        if dataset.eot_id is not None and stream.read(0, 1)[0] != dataset.eot_id:
            line = f"the {split} split begins in the middle of a document"
            (problems if dataset.manifest else notes).append(line)
    return CheckReport(path, len(shards), total, problems, notes)


def _tokenizer_or_note(dataset: Dataset, notes: list[str]) -> Tokenizer | None:
    try:
        return dataset.load_tokenizer()
    except QuinticError as error:
        notes.append(str(error))
        return None


def _problems(
    dataset: Dataset,
    shard: Shard,
    counts: ShardStats,
    records: dict[str, ShardRecord],
    counted_text: bool,
) -> list[str]:
    """Return what is wrong with a shard, one line each."""
    name, vocab_size, max_id = shard.path.name, dataset.vocab_size, counts.max_id
    problems = []
    if vocab_size is not None and max_id >= vocab_size:
        problems.append(f"{name} holds the token id {max_id}, the vocabulary has {vocab_size} ids")
    if name not in records:
        return problems
    found, said = counts._asdict(), asdict(records[name])
    if not counted_text:
        del found["text_bytes"]
    return problems + [
        f"{name} has {_COUNTED[key]} {value}, its manifest says {said[key]}"
        for key, value in found.items()
        if value != said[key]
    ]


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split.

    `documents` counts end-of-text tokens, None without a tokenizer named; `bytes_per_token` is over
    the first four million tokens at most, None without a tokenizer; `document_tokens` has the
    lengths of whole documents, end of text included, at PERCENTILES, and is empty without any.
    """

    shards: int
    tokens: int
    documents: int | None
    bytes_per_token: float | None
    document_tokens: dict[int, int]


@dataclass(frozen=True)
class DatasetSummary:
    """Counts and samples of a dataset; `tokenizer` is as `Dataset.tokenizer_spec`.

    `samples` are the beginnings of a few training documents, or else of validation documents, and
    empty without a tokenizer; `notes` say what could not be found out, and why.
    """

    path: Path
    fingerprint: str
    tokenizer: str | None
    vocab_size: int | None
    splits: dict[Split, SplitSummary]
    samples: list[str]
    notes: list[str]


def describe_dataset(path: Path, tokenizer: str | None = None) -> DatasetSummary:
    """Count and sample what is in a dataset; reads every token once.

    Raises `QuinticError` as `open_dataset` does, which also says what `tokenizer` may be.
    """
    dataset = open_dataset(path, tokenizer, splits=())
    notes: list[str] = []
    vocabulary = _tokenizer_or_note(dataset, notes)
    starts = {split: _document_starts(dataset, split) for split in dataset.streams}
    sampled: Split = "train" if "train" in starts else "val"
    return DatasetSummary(
        path=path,
        fingerprint=dataset.fingerprint,
        tokenizer=dataset.tokenizer_spec,
        vocab_size=dataset.vocab_size,
        splits={
            split: _describe_split(stream, starts[split], vocabulary)
            for split, stream in dataset.streams.items()
        },
        samples=list(_samples(dataset.streams[sampled], starts[sampled], vocabulary)),
        notes=notes,
    )


def _document_starts(dataset: Dataset, split: Split) -> npt.NDArray[np.int64] | None:
    """Return the positions of the end-of-text tokens, [documents]; None without their id."""
    if dataset.eot_id is None:
        return None
    found, position = [], 0
    for ids in dataset.streams[split].blocks():
        found.append(np.flatnonzero(ids == dataset.eot_id) + position)
        position += len(ids)
    return np.concatenate(found)


def _describe_split(
    stream: TokenStream, starts: npt.NDArray[np.int64] | None, tokenizer: Tokenizer | None
) -> SplitSummary:
    percentiles: list[int] = []
    if starts is not None and len(starts):
        lengths = np.diff(starts, append=len(stream))
        percentiles = np.percentile(lengths, PERCENTILES, method="lower").tolist()
    bytes_per_token = None
    if tokenizer is not None:
        ids = stream.read(0, min(len(stream), _BYTES_SAMPLE_TOKENS))
        ids = ids[ids < tokenizer.vocab_size]
        bytes_per_token = float(tokenizer.byte_lengths[ids].mean())
    return SplitSummary(
        shards=len(stream.shards),
        tokens=len(stream),
        documents=None if starts is None else len(starts),
        bytes_per_token=bytes_per_token,
        document_tokens=dict(zip(PERCENTILES, percentiles, strict=False)),
    )


def _samples(
    stream: TokenStream, starts: npt.NDArray[np.int64] | None, tokenizer: Tokenizer | None
) -> Iterator[str]:
    """Yield the beginnings of documents, evenly spaced over the stream."""
    if tokenizer is None or starts is None:
        return
    for start in starts[:: max(1, len(starts) // _SAMPLES)][:_SAMPLES]:
        count = min(_SAMPLE_TOKENS, len(stream) - int(start) - 1)
        yield tokenizer.decode(stream.read(int(start) + 1, count).tolist())

"""A check of a dataset against its manifest and its tokenizer."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from quintic.cores import available_cores
from quintic.data.dataset import Dataset, open_dataset, tokenizer_or_note
from quintic.data.manifest import SPLITS, ShardRecord
from quintic.data.shard_stats import ShardStats, TokenCounter, shard_stats
from quintic.data.shards import Shard
from quintic.errors import QuinticError

_COUNTED = {
    "max_id": "max_id",
    "documents": "documents",
    "text_bytes": "text_bytes",
    "sha256": "the checksum",
}


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
    vocabulary = tokenizer_or_note(dataset, notes)
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
    files = sum(stream.files for stream in dataset.streams.values())
    return CheckReport(path, files, total, problems, notes)


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

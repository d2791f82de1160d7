"""What a shard adds up to, against plain Python."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from quintic.data import shard_stats as counting
from quintic.data.shard_stats import ShardStats, TokenCounter, shard_stats
from quintic.data.shards import write_shard

EOT = 7


def expected(ids: list[int], lengths: list[int], path: Path) -> ShardStats:
    return ShardStats(
        documents=ids.count(EOT),
        text_bytes=sum(lengths[index] for index in ids if index < len(lengths)),
        max_id=max(ids),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@pytest.mark.parametrize("longest", [200, 1000])
@pytest.mark.parametrize("vocabulary", [300, 2**16, 100_000])
@pytest.mark.parametrize("beyond", [0, 1000])
def test_counts_are_those_of_plain_python(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: int,
    longest: int,
    beyond: int,
) -> None:
    """In several blocks, with a last one that is short, and with ids that have no text."""
    monkeypatch.setattr(counting, "_BLOCK_TOKENS", 1000)
    random = np.random.default_rng(0)
    lengths = random.integers(0, longest + 1, vocabulary)
    ids = random.integers(0, vocabulary + beyond, 4321)
    ids[::50] = EOT
    shard = write_shard(tmp_path / "a_train_0.bin", ids)
    wanted = expected(ids.tolist(), lengths.tolist(), shard.path)
    counter = TokenCounter(EOT, lengths)
    assert shard_stats(shard, counter) == wanted
    with ThreadPoolExecutor(2) as helper:
        assert shard_stats(shard, counter, helper) == wanted


def test_without_a_vocabulary_neither_documents_nor_text_are_counted(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a_train_0.bin", [EOT, 1, 2, EOT])
    counts = shard_stats(shard, TokenCounter(None, None))
    assert (counts.documents, counts.text_bytes, counts.max_id) == (0, 0, EOT)


def test_a_shard_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a_train_0.bin", list(range(500)))
    shard.path.write_bytes(shard.path.read_bytes()[:-2])
    with pytest.raises(OSError, match="shorter"):
        shard_stats(shard, TokenCounter(None, None))

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quintic.data import description
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.dataset import open_dataset
from quintic.data.description import (
    DatasetSummary,
    Excerpt,
    LengthGroup,
    Source,
    TokenCount,
    describe_dataset,
)
from quintic.data.shards import write_shard
from quintic.errors import QuinticError

MakeForeign = Callable[[Sequence[int], Sequence[int]], Path]

# Of a vocabulary of bytes alone: end of text and the letters.
END, A, B, C = 0, 65, 66, 67
# The piece before the first end of text is no whole document; the last reaches to the end.
TRAIN = [C, C, END, A, END, A, B, C, END, A, B]


@pytest.fixture
def folder(make_foreign: MakeForeign) -> Path:
    folder = make_foreign(TRAIN, [B, B])
    tokenizer = train_bpe(["abc"], 257)
    assert tokenizer.encode("abc") == [A, B, C]
    tokenizer.save(folder)
    return folder


def test_description(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    assert dataset.manifest is not None
    train, val = dataset.manifest.shards
    info = describe_dataset(small_dataset)
    assert info.fingerprint == dataset.fingerprint
    assert (info.splits["train"].tokens, info.splits["train"].documents) == (
        train.tokens,
        train.documents,
    )
    assert (info.splits["val"].tokens, info.splits["val"].documents) == (val.tokens, val.documents)
    assert info.splits["train"].bytes_per_token == pytest.approx(train.text_bytes / train.tokens)
    assert info.notes == []
    assert len(info.samples) == 5
    tokenizer = dataset.load_tokenizer()
    for sample in info.samples:
        assert sample.text.startswith("def function_")
        assert "".join(text for text, _ in sample.pieces) == sample.text
        ids = dataset.train.read(sample.start, sample.tokens).tolist()
        assert ids[0] == tokenizer.eot_id not in ids[1:]
        assert tokenizer.decode(ids[1:]).startswith(sample.text)


def test_counts_are_right(folder: Path) -> None:
    info = describe_dataset(folder)
    train = info.splits["train"]
    assert (train.shards, train.tokens, train.documents, train.read_tokens) == (1, 11, 3, 11)
    assert train.document_tokens == {5: 2, 25: 2, 50: 3, 75: 3, 95: 3, 100: 4}
    assert train.lengths == [LengthGroup(2, 2, 5), LengthGroup(4, 1, 4)]
    assert train.token_bytes == [3, 8]
    assert train.bytes_per_token == pytest.approx(8 / 11)
    assert train.frequent == [
        TokenCount(END, "<|endoftext|>", 3),
        TokenCount(A, "a", 3),
        TokenCount(C, "c", 3),
        TokenCount(B, "b", 2),
    ]
    longest = [
        Excerpt(4, 4, "abc", [("a", True), ("b", True), ("c", True)]),
        Excerpt(8, 3, "ab", [("a", True), ("b", True)]),
        Excerpt(2, 2, "a", [("a", True)]),
    ]
    assert train.longest == longest
    assert info.samples == sorted(longest, key=lambda excerpt: excerpt.start)
    assert info.sources == [Source("fineweb", "train", 1, 11), Source("fineweb", "val", 1, 2)]
    val = info.splits["val"]
    assert (val.documents, val.document_tokens, val.lengths, val.longest) == (0, {}, [], [])


def test_percentiles_are_those_of_numpy() -> None:
    draw = np.random.default_rng(1)
    for count in (1, 2, 7, 100, 321):
        lengths = draw.integers(1, 50, count)
        wanted = np.percentile(lengths, description.PERCENTILES, method="lower").tolist()
        found = description._percentiles(Counter(lengths.tolist()))
        assert list(found.values()) == wanted


def test_blocks_change_nothing(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = describe_dataset(small_dataset, seed=3)
    monkeypatch.setattr(description, "_BLOCK_TOKENS", 61)
    assert describe_dataset(small_dataset, seed=3) == whole
    others = describe_dataset(small_dataset, seed=4)
    assert others.samples != whole.samples
    assert replace(others, samples=whole.samples) == whole
    with pytest.raises(QuinticError, match="--seed is -1: it must be 0 or more"):
        describe_dataset(small_dataset, seed=-1)


def test_a_long_split_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "READ_TOKENS", 400)
    monkeypatch.setattr(description, "_PIECE_TOKENS", 100)
    monkeypatch.setattr(description, "_BLOCK_TOKENS", 32)
    train_bpe(["abc"], 257).save(tmp_path)
    # Documents of 10 tokens, but for one of 151, which no piece holds.
    tokens = [END, *[A] * 9] * 50 + [END, *[B] * 150] + [END, *[A] * 9] * 50
    write_shard(tmp_path / "x_train_0.bin", tokens)
    info = describe_dataset(tmp_path)
    train = info.splits["train"]
    assert (train.tokens, train.read_tokens) == (1151, 400)
    # Pieces begin at 0, 350, 700, within a document, and 1,051; a document that ends with a
    # piece is not known to end there.
    assert set(train.document_tokens.values()) == {10}
    assert sum(group.documents for group in train.lengths) == 9 + 9 + 9 + 10
    assert [token.count for token in train.frequent] == [360, 40]
    assert train.documents == round(40 * 1151 / 400)
    assert [note.split(":")[0] for note in info.notes] == [
        "of the 1,151 train tokens 400 were read, in 4 evenly spaced pieces",
        "the number of train documents is an estimate",
    ]


def test_ids_beyond_the_vocabulary_are_said_and_not_decoded(tmp_path: Path) -> None:
    train_bpe(["abc"], 257).save(tmp_path)
    write_shard(tmp_path / "x_val_0.bin", [END, A, 900, B, 300])
    info = describe_dataset(tmp_path)
    assert info.notes == ["2 val tokens beyond the vocabulary: see them with quintic data check"]
    assert [sample.text for sample in info.samples] == ["ab"]
    assert info.sampled == "val"
    assert info.splits["val"].bytes_per_token == pytest.approx(2 / 3)


def test_without_a_tokenizer(make_foreign: MakeForeign) -> None:
    info: DatasetSummary = describe_dataset(make_foreign([1, 0, 2, 2**20, 1], [0, 3]))
    train = info.splits["train"]
    assert (train.tokens, train.documents, train.bytes_per_token) == (5, None, None)
    assert (info.samples, info.vocab_size, train.longest, train.token_bytes) == ([], None, [], [])
    assert train.frequent[0] == TokenCount(1, "id 1", 2)
    assert any("--data.tokenizer" in note for note in info.notes)


def test_sources_are_the_beginnings_of_names(tmp_path: Path) -> None:
    for name, count in {
        "books_train_000001": 2,
        "web_train_000001": 4,
        "web_train_000002": 5,
        "a_train_of_val_000000": 3,
        "tiny_train": 1,
    }.items():
        write_shard(tmp_path / f"{name}.bin", [1] * count)
    assert describe_dataset(tmp_path).sources == [
        Source("web", "train", 2, 9),
        Source("a_train_of", "val", 1, 3),
        Source("books", "train", 1, 2),
        Source("tiny", "train", 1, 1),
    ]


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_benchmark_corpus(bench_val_shard: Path) -> None:
    write_shard(bench_val_shard.parent / "corpus_train_000001.bin", [50256, *[1] * 9])
    info = describe_dataset(bench_val_shard.parent, "gpt2")
    assert info.splits["val"].tokens == 1_994_019
    assert info.splits["val"].bytes_per_token is not None
    assert np.round(info.splits["val"].bytes_per_token * info.splits["val"].tokens) == 8_934_877

"""A description of a dataset: counts, lengths of documents, frequent tokens, and samples.

Every token is read once, or of a long split evenly spaced pieces. Memory is bounded by a block of
tokens, the vocabulary and the number of different lengths; nothing is held for each document.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quintic.data.dataset import Dataset, open_dataset, tokenizer_or_note
from quintic.data.manifest import Split
from quintic.data.shards import TokenStream
from quintic.data.token_text import pieces, token_name
from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError, counted

PERCENTILES = (5, 25, 50, 75, 95, 100)

READ_TOKENS = 1 << 28
"""Tokens of a split that are read, at most."""
_PIECE_TOKENS = 1 << 22
_BLOCK_TOKENS = 1 << 20

_LONGEST, _FREQUENT, _SAMPLES = 8, 32, 5
_SAMPLE_TOKENS, _BEGINNING_TOKENS = 200, 24

# Without a tokenizer ids beyond this are not told apart, which bounds memory.
_UNNAMED_IDS = 1 << 18

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LengthGroup:
    """The documents of at least `shortest` tokens, end of text included, and less than twice as
    many, and the tokens of all of them."""

    shortest: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class TokenCount:
    """How often a token occurs; `name` is as `token_name` returns it."""

    id: int
    name: str
    count: int


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a document.

    `start` is the position of its end of text in the split, `tokens` its length with that; `text`
    is the beginning without it, and `pieces` the same token by token, as `token_text.pieces` yields
    them.
    """

    start: int
    tokens: int
    text: str
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split; all but the first three are of the `read_tokens` tokens that were read.

    `documents` counts end-of-text tokens, None without a tokenizer named; `bytes_per_token` is None
    without a tokenizer; `document_tokens` has the lengths of whole documents, end of text included,
    at PERCENTILES, and is empty without any; `token_bytes` counts the tokens by the bytes of text
    behind them, from 0 on, and is empty without a tokenizer; `frequent` and `longest` have the most
    first.
    """

    shards: int
    tokens: int
    documents: int | None
    read_tokens: int
    bytes_per_token: float | None
    document_tokens: dict[int, int]
    lengths: list[LengthGroup]
    token_bytes: list[int]
    frequent: list[TokenCount]
    longest: list[Excerpt]


@dataclass(frozen=True)
class Source:
    """Shards of a split that have the same word before the split in their names."""

    name: str
    split: Split
    shards: int
    tokens: int


@dataclass(frozen=True)
class DatasetSummary:
    """Counts and samples of a dataset; `tokenizer` is as `Dataset.tokenizer_spec`.

    `samples` are a few training documents, or else validation documents, in the order of the
    stream, and empty without a tokenizer; `notes` say what could not be found out, and why.
    """

    path: Path
    fingerprint: str
    tokenizer: str | None
    vocab_size: int | None
    splits: dict[Split, SplitSummary]
    sources: list[Source]
    samples: list[Excerpt]
    notes: list[str]

    @property
    def sampled(self) -> Split:
        """The split that `samples` are of."""
        return "train" if "train" in self.splits else "val"


def describe_dataset(path: Path, tokenizer: str | None = None, seed: int = 0) -> DatasetSummary:
    """Count and sample what is in a dataset; the seed chooses the sampled documents.

    Of a split of more than READ_TOKENS tokens so many are read, and a note says so. Raises
    `QuinticError` as `open_dataset` does, which also says what `tokenizer` may be, and for a
    negative seed.
    """
    if seed < 0:
        raise QuinticError(f"--seed is {seed}: it must be 0 or more")
    dataset = open_dataset(path, tokenizer, splits=())
    notes: list[str] = []
    vocabulary = tokenizer_or_note(dataset, notes)
    surveys = {
        split: _Survey(stream, dataset.eot_id, dataset.vocab_size, seed)
        for split, stream in dataset.streams.items()
    }
    splits = {
        split: _split_summary(dataset, split, survey, vocabulary, notes)
        for split, survey in surveys.items()
    }
    sampled: Split = "train" if "train" in surveys else "val"
    samples = surveys[sampled].samples.tolist()
    return DatasetSummary(
        path=path,
        fingerprint=dataset.fingerprint,
        tokenizer=dataset.tokenizer_spec,
        vocab_size=dataset.vocab_size,
        splits=splits,
        sources=_sources(dataset),
        samples=list(
            _excerpts(dataset.streams[sampled], sorted(samples), vocabulary, _SAMPLE_TOKENS)
        ),
        notes=notes,
    )


class _Survey:
    """What was counted in a split: `counts_V` how often each id occurs, and the last place all ids
    beyond; `lengths` how many whole documents have which length; `longest` and `samples` the starts
    and lengths of some, [documents, 2]."""

    def __init__(
        self, stream: TokenStream, eot_id: int | None, vocab_size: int | None, seed: int
    ) -> None:
        self.read_tokens, self.pieces, self.starts = 0, 0, 0
        self.counts_V = np.zeros(1 + (vocab_size or _UNNAMED_IDS), dtype=np.int64)
        self.lengths: Counter[int] = Counter()
        self.longest = self.samples = np.empty((0, 2), dtype=np.int64)
        self._drawn = np.empty(0)
        self._draw = np.random.default_rng(seed)
        for begin, end in _pieces_to_read(len(stream)):
            self._read(stream, begin, end, eot_id)

    def _read(self, stream: TokenStream, begin: int, end: int, eot_id: int | None) -> None:
        """Read a piece of the stream; of documents only what begins and ends in it is whole."""
        self.pieces += 1
        self.read_tokens += end - begin
        last = np.empty(0, dtype=np.int64)
        size = len(self.counts_V)
        for position in range(begin, end, _BLOCK_TOKENS):
            ids = stream.read(position, min(_BLOCK_TOKENS, end - position))
            self.counts_V += np.bincount(np.minimum(ids, size - 1), minlength=size)
            if eot_id is not None:
                found = np.flatnonzero(ids == eot_id) + position
                self.starts += len(found)
                starts = np.concatenate([last, found])
                self._add(starts[:-1], np.diff(starts))
                last = starts[-1:]
        if end == len(stream):
            self._add(last, end - last)

    def _add(self, starts: Ids, lengths: Ids) -> None:
        """Count whole documents, which begin at `starts` and have `lengths`, [documents]."""
        values, counts = np.unique(lengths, return_counts=True)
        self.lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        found = np.column_stack([starts, lengths])
        longest = np.concatenate([self.longest, found])
        order = np.argsort(-longest[:, 1], kind="stable")
        self.longest = longest[order[:_LONGEST]]
        drawn = np.concatenate([self._drawn, self._draw.random(len(found))])
        order = np.argsort(drawn)[:_SAMPLES]
        self._drawn = drawn[order]
        self.samples = np.concatenate([self.samples, found])[order]


def _pieces_to_read(tokens: int) -> list[tuple[int, int]]:
    """Return what is read of a stream, from where to where: all, or evenly spaced pieces."""
    if tokens <= READ_TOKENS:
        return [(0, tokens)]
    count = READ_TOKENS // _PIECE_TOKENS
    begins = [index * (tokens - _PIECE_TOKENS) // (count - 1) for index in range(count)]
    return [(begin, begin + _PIECE_TOKENS) for begin in begins]


def _split_summary(
    dataset: Dataset,
    split: Split,
    survey: _Survey,
    tokenizer: Tokenizer | None,
    notes: list[str],
) -> SplitSummary:
    stream = dataset.streams[split]
    documents = None if dataset.eot_id is None else survey.starts
    if survey.read_tokens < len(stream):
        notes.append(
            f"of the {len(stream):,} {split} tokens {survey.read_tokens:,} were read, in "
            f"{survey.pieces} evenly spaced pieces: all but the counts is of these, and a document "
            f"that is not within one piece is not among the lengths"
        )
        if documents is not None and dataset.manifest is not None:
            documents = sum(r.documents for r in dataset.manifest.shards if r.split == split)
        elif documents is not None:
            documents = round(documents * len(stream) / survey.read_tokens)
            notes.append(f"the number of {split} documents is an estimate")
    *counts, beyond = survey.counts_V.tolist()
    if beyond and dataset.vocab_size is not None:
        notes.append(
            f"{counted(beyond, f'{split} token')} beyond the vocabulary: see them with quintic "
            f"data check"
        )
    counts_V = np.array(counts)
    token_bytes: list[int] = []
    bytes_per_token = None
    if tokenizer is not None and counts_V.any():
        token_bytes = np.bincount(tokenizer.byte_lengths, counts_V).astype(int).tolist()
        bytes_per_token = float(np.average(tokenizer.byte_lengths, weights=counts_V))
    order = np.argsort(-counts_V, kind="stable")[:_FREQUENT].tolist()
    return SplitSummary(
        shards=stream.files,
        tokens=len(stream),
        documents=documents,
        read_tokens=survey.read_tokens,
        bytes_per_token=bytes_per_token,
        document_tokens=_percentiles(survey.lengths),
        lengths=_length_groups(survey.lengths),
        token_bytes=token_bytes,
        frequent=[
            TokenCount(index, token_name(tokenizer, index), counts[index])
            for index in order
            if counts[index]
        ],
        longest=list(_excerpts(stream, survey.longest.tolist(), tokenizer, _BEGINNING_TOKENS)),
    )


def _percentiles(lengths: Counter[int]) -> dict[int, int]:
    """Return the lengths at PERCENTILES, each the length of a document; empty without any."""
    if not lengths:
        return {}
    values = sorted(lengths)
    ends = np.cumsum([lengths[value] for value in values])
    places = np.array(PERCENTILES) * (ends[-1] - 1) // 100
    found = np.searchsorted(ends, places, side="right").tolist()
    return {p: values[index] for p, index in zip(PERCENTILES, found, strict=True)}


def _length_groups(lengths: Counter[int]) -> list[LengthGroup]:
    """Return the documents by the power of two that their length reaches, without a gap."""
    documents: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    for length, count in lengths.items():
        documents[length.bit_length()] += count
        tokens[length.bit_length()] += length * count
    return [
        LengthGroup(1 << bits >> 1, documents[bits], tokens[bits])
        for bits in range(min(documents, default=1), 1 + max(documents, default=0))
    ]


def _excerpts(
    stream: TokenStream,
    documents: list[list[int]],
    tokenizer: Tokenizer | None,
    most_tokens: int,
) -> Iterator[Excerpt]:
    """Yield the beginnings of documents, given as start and length."""
    if tokenizer is None:
        return
    for start, length in documents:
        ids = stream.read(start + 1, min(most_tokens, length - 1))
        known = ids[ids < tokenizer.vocab_size].tolist()
        yield Excerpt(start, length, tokenizer.decode(known), list(pieces(tokenizer, known)))


def _sources(dataset: Dataset) -> list[Source]:
    """Return the sources that the names of the shards tell, those of the most tokens first."""
    found: dict[tuple[str, Split], list[int]] = {}
    for split, stream in dataset.streams.items():
        for shard in stream.shards:
            name = f"{shard.path.stem}_".rpartition(f"_{split}_")[0] or shard.path.stem
            found.setdefault((name, split), []).append(shard.count)
    sources = [Source(*key, len(counts), sum(counts)) for key, counts in found.items()]
    return sorted(sources, key=lambda source: -source.tokens)

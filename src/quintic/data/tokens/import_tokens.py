"""Token files of other tools to a dataset: checked, split and written with a manifest."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from quintic.data.bpe_tokenizer import TOKENIZER_FILE, BpeTokenizer
from quintic.data.build.settings import check_shards
from quintic.data.build.shard_set import ShardSet
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.manifest import SPLITS, Manifest, ShardRecord, Split
from quintic.data.shards import token_dtype
from quintic.data.tokenizer import Tokenizer
from quintic.data.tokens.find import ALL, find_tokens
from quintic.data.tokens.mds import IdType
from quintic.data.tokens.out_folder import check_out
from quintic.data.tokens.token_file import TokenBlock, TokenFile
from quintic.errors import QuinticError, counted, reason, way_out
from quintic.files import new_folder

OnProgress = Callable[[str, float], None]
"""Called with the name of a stage and the fraction of it that is done."""

Rows = Literal["documents", "pieces"]
_SHORTEST_PIECE = 64  # tokens

_Ids = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class ImportSettings:
    """The settings that decide about the bytes of an imported dataset.

    `tokenizer` is "gpt2" or the path of a `tokenizer.json`, which made the ids. `name`,
    `shard_tokens` and `val_share` are as in `BuildSettings`; the ids of a document decide about its
    split, and only where no file says what it is for. With `val_tokens` the last documents are held
    out instead, so many tokens or a little more, and no file may be for validation. `rows` says
    what a row, an item or a sample is, "documents" or "pieces" of a stream that has end of text
    between its documents; None for what their lengths say. `dtype` is the type of ids that lie as
    bytes.

    Raises `QuinticError` for a value out of its range.
    """

    tokenizer: str
    name: str
    shard_tokens: int = 100_000_000
    val_share: float = 0.01
    val_tokens: int | None = None
    rows: Rows | None = None
    dtype: IdType | None = None

    def __post_init__(self) -> None:
        check_shards(self.name, self.shard_tokens, self.val_share)
        if self.val_tokens is not None and self.val_tokens < 1:
            raise QuinticError(f"--val-tokens is {self.val_tokens}: it must be at least 1")


@dataclass(frozen=True)
class ImportReport:
    """The outcome of an import: the kind of the files, the shards, and notes for the user."""

    kind: str
    shards: tuple[ShardRecord, ...]
    notes: list[str]


def import_tokens(
    source: Path, out: Path, settings: ImportSettings, on_progress: OnProgress
) -> ImportReport:
    """Write the tokens of a folder as a dataset; `out` is absent or an empty folder.

    Every document has end of text before it, wherever the source had it. The folder takes its name
    when it is whole: an import that was killed begins again. Raises `QuinticError` as `find_tokens`
    and `load_tokenizer` do, for ids beyond the vocabulary, and where `out` cannot be written.
    """
    check_out(out)
    found = find_tokens(source, settings.dtype)
    if settings.val_tokens is not None and "val" in found.splits:
        raise QuinticError(
            f"--val-tokens holds out of what is for training, and {source} has files for "
            f"validation: leave it out, or name the training files alone"
        )
    tokenizer = load_tokenizer(settings.tokenizer)
    try:
        with new_folder(out) as folder:
            shards, notes = _Import(settings, tokenizer, folder, on_progress).run(found.splits)
            if not shards:
                raise QuinticError(f"{source} has no tokens, only empty documents: name others")
    except OSError as error:
        raise QuinticError(
            f"{error.filename or out} cannot be read or written ({reason(error)}): {way_out(error)}"
        ) from error
    for split in SPLITS:
        counts = [shard.documents for shard in shards if shard.split == split]
        if not counts:
            way = "name" if split == "train" else "--val-tokens N holds out the last N of"
            notes.append(
                f"no document is in the {split} split, and training needs both: {way} the tokens "
                f"for training"
            )
        elif sum(counts) == 1:
            notes.append(f"the {split} split is one document: it has no end of text within")
    return ImportReport(found.kind.name, shards, found.notes + notes)


class _Import:
    def __init__(
        self, settings: ImportSettings, tokenizer: Tokenizer, folder: Path, on_progress: OnProgress
    ) -> None:
        self._settings, self._tokenizer, self._folder = settings, tokenizer, folder
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._shards = ShardSet(folder, settings.name, settings.shard_tokens, tokenizer)
        self._on_progress = on_progress
        self._done, self._total, self._empty = 0, 1, 0
        self._notes: list[str] = []
        self._pieces = None if settings.rows is None else settings.rows == "pieces"

    def run(
        self, splits: dict[Split | str, list[TokenFile]]
    ) -> tuple[tuple[ShardRecord, ...], list[str]]:
        """Write the tokens of all files and the manifest; return what it says, and notes."""
        self._total = sum(file.tokens for files in splits.values() for file in files)
        try:
            for split, files in splits.items():
                blocks = self._blocks(files)
                for ids, lengths in blocks:
                    if lengths is not None:
                        self._write_documents(split, ids, lengths)
                        continue
                    for part in self._end_before(chain([ids], (more for more, _ in blocks))):
                        self._append(split, part)
                    if split == ALL and self._settings.val_tokens is None:
                        self._notes.append("no file says what it is for: all of it is for training")
            if self._settings.val_tokens is not None:
                self._shards.hold_out(self._settings.val_tokens)
            if self._empty:
                self._notes.append(f"{counted(self._empty, 'empty document')} left out")
            return self._write_manifest(), self._notes
        finally:
            self._shards.close()

    def _end_before(self, blocks: Iterator[_Ids]) -> Iterator[_Ids]:
        """Yield a stream of tokens with end of text before its documents, where it may stand behind
        them."""
        eot = self._tokenizer.eot_id
        first = next(blocks)
        if first[0] == eot:
            yield first
            yield from blocks
            return
        yield np.array([eot], self._dtype)
        last = first[:0]
        for ids in chain([first], blocks):
            yield last
            yield ids[:-1]
            last = ids[-1:]
        yield last[last != eot]

    def _write_manifest(self) -> tuple[ShardRecord, ...]:
        """End the shards, and write what is said of them."""
        records = self._shards.finish(lambda fraction: self._on_progress("checksums", fraction))
        name = GPT2.name
        if isinstance(self._tokenizer, BpeTokenizer):
            self._tokenizer.save(self._folder)
            name = TOKENIZER_FILE
        Manifest(
            tokenizer=name,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            vocab_size=self._tokenizer.vocab_size,
            eot_id=self._tokenizer.eot_id,
            shards=records,
        ).write(self._folder)
        return records

    def _blocks(
        self, files: Sequence[TokenFile]
    ) -> Iterator[tuple[_Ids, npt.NDArray[np.int64] | None]]:
        """Yield blocks with their ids checked, and of the type of the vocabulary."""
        for file in files:
            position = 0
            for block in file.read():
                if len(block.ids):
                    self._check(file, block, position)
                    yield self._documents(block.ids.astype(self._dtype), block.lengths)
                position += len(block.ids)
                self._done += len(block.ids)
                self._on_progress("tokens", min(1.0, self._done / max(1, self._total)))

    def _documents(
        self, ids: _Ids, lengths: npt.NDArray[np.int64] | None
    ) -> tuple[_Ids, npt.NDArray[np.int64] | None]:
        """Return a block without its lengths where these are those of pieces of a stream."""
        if self._pieces is None and lengths is not None:
            self._pieces = _are_pieces(ids, lengths, self._tokenizer.eot_id)
            if self._pieces:
                self._notes.append(
                    f"all rows have {lengths[0]:,} tokens, so they are taken for pieces of a "
                    f"stream that has end of text between documents; --rows documents if not"
                )
        return ids, None if self._pieces else lengths

    def _check(self, file: TokenFile, block: TokenBlock, position: int) -> None:
        size = self._tokenizer.vocab_size
        if block.ids.min() >= 0 and block.ids.max() < size:
            return
        first = int(np.argmax((block.ids < 0) | (block.ids >= size)))
        raise QuinticError(
            f"{file.path} holds the token id {block.ids[first]} as its token {position + first}, "
            f"counted from 0, the tokenizer {self._settings.tokenizer} has only the ids 0 to "
            f"{size - 1}: name the one that made the ids with --tokenizer"
        )

    def _write_documents(
        self, split: Split | str, ids: _Ids, lengths: npt.NDArray[np.int64]
    ) -> None:
        ids, lengths, empty = _with_end_before(ids, lengths, self._tokenizer.eot_id)
        self._empty += empty
        if split != ALL:
            self._append(split, ids)
            return
        is_val = np.repeat(self._is_val(ids, lengths), lengths)
        self._append("train", ids[~is_val])
        self._append("val", ids[is_val])

    def _is_val(self, ids: _Ids, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which documents are for validation, [documents], by a hash of their ids."""
        limit = round(self._settings.val_share * 2**64)
        if not limit or self._settings.val_tokens is not None:
            return np.zeros(len(lengths), dtype=bool)
        content, ends = ids.astype("<u4"), np.cumsum(lengths)
        digests = (
            hashlib.sha256(content[end - length + 1 : end].tobytes()).digest()
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        )
        return np.array([int.from_bytes(digest[:8]) < limit for digest in digests], dtype=bool)

    def _append(self, split: Split | str, ids: _Ids) -> None:
        self._shards.append("val" if split == "val" else "train", ids)


def _are_pieces(ids: _Ids, lengths: npt.NDArray[np.int64], eot_id: int) -> bool:
    """Return whether rows are all of one length but the last, and do not each begin or end with end
    of text."""
    if len(lengths) < 2 or lengths[0] < _SHORTEST_PIECE or (lengths[:-1] != lengths[0]).any():
        return False
    ends = np.cumsum(lengths)
    each = (ids[ends - lengths] == eot_id).all() or (ids[ends - 1] == eot_id).all()
    return bool(lengths[-1] <= lengths[0] and lengths[-1] and not each)


def _with_end_before(
    ids: _Ids, lengths: npt.NDArray[np.int64], eot_id: int
) -> tuple[_Ids, npt.NDArray[np.int64], int]:
    """Return documents with one end of text before each, and none behind; their new lengths; and
    how many were left out, since they had nothing else."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    keep = np.ones(len(ids), dtype=bool)
    some = lengths > 0
    keep[ends[some] - 1] = ids[ends[some] - 1] != eot_id
    keep[starts[some]] &= ids[starts[some]] != eot_id
    sums = np.concatenate([[0], np.cumsum(keep)])
    kept = sums[ends] - sums[starts]
    full = kept > 0
    # Where each document begins among what is kept.
    places: npt.NDArray[Any] = sums[starts[full]]
    return np.insert(ids[keep], places, eot_id), kept[full] + 1, int(len(lengths) - full.sum())

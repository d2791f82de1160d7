"""Chunks to token ids."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quintic.data.build.chunks import Chunk
from quintic.data.build.documents import BadDocument, Document, documents
from quintic.data.build.fast_encoder import FastEncoder
from quintic.data.build.settings import BuildSettings
from quintic.data.manifest import SPLITS, Split
from quintic.data.shards import token_dtype
from quintic.data.tokenizer import Tokenizer, without_lone_surrogates

# Every document's length is compared with its tokens', which costs little; the bytes of one in so
# many, and of so many of its tokens, are compared too.
_COMPARED_EVERY = 256
_COMPARED_TOKENS = 1024

_BLOCK_TOKENS = 1 << 20

# The fast encoder's ids are compared with the reference's for the first document of every process,
# and for one in so many, chosen by the hash of its text.
_REFERENCE_EVERY = 2048


class EncodedSplit(NamedTuple):
    """Documents of one split, one after another, each preceded by end of text.

    `tokens` has the ids of all, [tokens], and `lengths` the tokens of each, end of text included,
    [documents].
    """

    tokens: npt.NDArray[np.unsignedinteger]
    lengths: npt.NDArray[np.int64]


class EncodedChunks(NamedTuple):
    """The documents of chunks, and what was none, in the order of the input.

    `changed` is the file and the line of a document that the tokenizer does not give back as it
    was, and `mistaken` of one that the fast encoder fails on, or gives ids for that are not the
    reference's or do not give it back; None where there is none.
    """

    splits: dict[Split, EncodedSplit]
    bad: list[BadDocument]
    changed: tuple[int, int] | None
    mistaken: tuple[int, int] | None


def text_split(text: str, val_share: float) -> Split:
    """Return the split that a document belongs to, by a hash of its text.

    So it stays where it is whatever else is built with it, and equal texts are never on both sides.
    """
    return _split(_digest(text.encode("utf-8", "surrogatepass")), val_share)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _split(digest: bytes, val_share: float) -> Split:
    return "val" if int.from_bytes(digest[:8]) < round(val_share * 2**64) else "train"


class _MistakeError(Exception):
    """The fast encoder was wrong about a document."""


class _Encoded(NamedTuple):
    """A document's ids, [tokens], and its place: in the task, in the input, and bytes of text."""

    number: int
    place: tuple[int, int]
    text_bytes: int
    ids: npt.NDArray[np.uint32]


class Encoder:
    """Encodes chunks; the same chunks give the same result in every process.

    With `use_fast` the fast encoder is used where it is sure of its ids, and `tokenizer` for the
    rest.
    """

    def __init__(self, settings: BuildSettings, tokenizer: Tokenizer, use_fast: bool) -> None:
        self._settings, self._tokenizer, self._use_fast = settings, tokenizer, use_fast
        self._fast: FastEncoder | None = None
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._byte_lengths = tokenizer.byte_lengths.astype(np.uint32)
        self._compared = False

    def encode(self, chunks: Sequence[Chunk]) -> EncodedChunks:
        """Split into documents, tokenize and sort into splits."""
        bad: list[BadDocument] = []
        splits: dict[Split, list[_Encoded]] = {split: [] for split in SPLITS}
        changed: list[_Encoded] = []
        mistaken = self._encode_each(chunks, bad, splits, changed)
        if mistaken is not None:
            return EncodedChunks({}, [], None, mistaken)
        joined = {split: self._joined(documents) for split, documents in splits.items()}
        for split, documents_ in splits.items():
            changed += self._of_another_length(documents_, joined[split])
        first = min(changed, key=lambda encoded: encoded.number).place if changed else None
        return EncodedChunks(
            joined,
            sorted(bad, key=lambda bad: (bad.file, bad.line)),
            changed=None if self._use_fast else first,
            mistaken=first if self._use_fast else None,
        )

    def _encode_each(
        self,
        chunks: Sequence[Chunk],
        bad: list[BadDocument],
        splits: dict[Split, list[_Encoded]],
        changed: list[_Encoded],
    ) -> tuple[int, int] | None:
        """Add the documents to the lists that they belong to, and return the place of the one that
        the fast encoder is wrong about, None where there is none.

        No text is held any longer when this returns, which a long document needs.
        """
        found = (
            (chunk.begin.file, document)
            for chunk in chunks
            for document in documents(chunk, self._settings.format)
        )
        for index, (file, document) in enumerate(found):
            if isinstance(document, BadDocument):
                bad.append(document)
                continue
            place = file, document.line
            try:
                content = document.text.encode()
                digest = _digest(content)
            except UnicodeEncodeError:
                digest = _digest(document.text.encode("utf-8", "surrogatepass"))
                document = Document(document.line, without_lone_surrogates(document.text))
                content = document.text.encode()
            try:
                ids = self._ids(document.text, content, digest)
            except ValueError as error:
                # tiktoken gives up on a million blanks before a word.
                reason = " ".join(str(error).split())[:120]
                bad.append(BadDocument(*place, f"cannot be tokenized ({reason})"))
                continue
            except _MistakeError:
                return place
            encoded = _Encoded(index, place, len(content), ids)
            splits[_split(digest, self._settings.val_share)].append(encoded)
            if index % _COMPARED_EVERY == 0 and not content.startswith(
                self._tokenizer.decode_bytes(ids[:_COMPARED_TOKENS].tolist())
            ):
                changed.append(encoded)
        return None

    def _ids(self, text: str, content: bytes, digest: bytes) -> npt.NDArray[np.uint32]:
        if not self._use_fast:
            return self._tokenizer.encode_to_array(text)
        try:
            if self._fast is None:
                self._fast = FastEncoder(self._tokenizer)
            ids = self._fast.encode(text, content)
        except (KeyboardInterrupt, SystemExit):  # a signal may come at any time
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            raise _MistakeError from error
        if ids is None:
            return self._tokenizer.encode_to_array(text)
        if not self._compared or int.from_bytes(digest[8:10]) < 2**16 // _REFERENCE_EVERY:
            self._compared = True
            try:
                same = np.array_equal(ids, self._tokenizer.encode_to_array(text))
            except ValueError:  # the reference gives up
                same = False
            if not same:
                raise _MistakeError
        return ids

    def _joined(self, documents: Sequence[_Encoded]) -> EncodedSplit:
        lengths = np.array([1 + len(document.ids) for document in documents], dtype=np.int64)
        tokens = np.empty(int(lengths.sum()), dtype=self._dtype)
        end = 0
        for document in documents:
            begin, end = end, end + 1 + len(document.ids)
            tokens[begin] = self._tokenizer.eot_id
            tokens[begin + 1 : end] = document.ids
        return EncodedSplit(tokens, lengths)

    def _of_another_length(
        self, documents: Sequence[_Encoded], joined: EncodedSplit
    ) -> list[_Encoded]:
        """Return the documents whose tokens have not as many bytes as their text."""
        if not documents:
            return []
        tokens, lengths = joined
        # All documents at once rather than one by one, which took three times as long; but not all
        # tokens, which NumPy widens to eight bytes each.
        bytes_by_token = np.empty(len(tokens), dtype=np.uint32)
        for start in range(0, len(tokens), _BLOCK_TOKENS):
            part = slice(start, start + _BLOCK_TOKENS)
            bytes_by_token[part] = self._byte_lengths.take(tokens[part], mode="clip")
        found = np.add.reduceat(bytes_by_token, np.cumsum(lengths) - lengths, dtype=np.uint32)
        expected = np.array([document.text_bytes for document in documents])
        return [documents[index] for index in np.flatnonzero(found != expected).tolist()]

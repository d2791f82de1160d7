"""Text to token ids and back: the interface of every tokenizer.

All work on the bytes of UTF-8, so every text has an encoding and `decode(encode(text)) == text`.
A document is preceded by the end-of-text token; the characters `<|endoftext|>` inside a text are
text like any other and never become that token.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quintic.errors import QuinticError

END_OF_TEXT = "<|endoftext|>"


class TokenizerInfo(NamedTuple):
    """The facts of a tokenizer that a dataset and a model need, known without its vocabulary."""

    name: str
    vocab_size: int
    eot_id: int
    fingerprint: str
    special_ids: tuple[int, ...]
    fingerprint_0_1: str
    """The one that quintic 0.1 wrote into manifests, which some that encode differently share."""


class Tokenizer(ABC):
    """Maps text to token ids, 0 .. vocab_size - 1, and back.

    `name` is "gpt2" or "bpe"; `eot_id` is the end-of-text token, which precedes every document; the
    fingerprints of two tokenizers are equal exactly if they give the same ids, on any machine.
    `special_ids` are end of text and the other special tokens, which no text is encoded to.
    """

    name: str
    vocab_size: int
    eot_id: int
    fingerprint: str
    special_ids: tuple[int, ...]
    fingerprint_0_1: str

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without an end-of-text token.

        Lone surrogates, which UTF-8 cannot express, are encoded as U+FFFD.
        """

    @property
    @abstractmethod
    def package(self) -> str:
        """The package that encodes, and its version."""

    def encode_to_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return what `encode` returns as an array, [tokens]."""
        return np.array(self.encode(text), dtype=np.uint32)

    @cached_property
    @abstractmethod
    def bytes_by_id(self) -> list[bytes]:
        """The bytes of text behind each id, [vocab_size]; none behind end of text."""

    def gives_back(self, text: str, ids: npt.NDArray[np.integer], compare: int) -> bool:
        """Return whether the ids that `encode` gave, [tokens], still hold the text.

        They must have as many bytes, and the first `compare` ids the very bytes of its beginning.
        """
        content = without_lone_surrogates(text).encode()
        return int(self.byte_lengths.take(ids).sum()) == len(content) and content.startswith(
            self.decode_bytes(ids[:compare].tolist())
        )

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            *(self.name, self.vocab_size, self.eot_id, self.fingerprint),
            *(self.special_ids, self.fingerprint_0_1),
        )

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of text behind each id, [vocab_size]; 0 for special tokens.

        `byte_lengths[token_ids].sum()` is what bits per byte divides by.
        """
        lengths = np.array([len(token) for token in self.bytes_by_id], dtype=np.int64)
        lengths[list(self.special_ids)] = 0
        return lengths

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes of text behind the ids; end of text is no text and adds none.

        Raises `QuinticError` where an id is not of this vocabulary.
        """
        return b"".join(self._parts(ids, end_of_text=b""))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text behind the ids, for a reader: end of text is shown as `<|endoftext|>`.

        Bytes that are not valid UTF-8, such as a character cut in half, become U+FFFD. Raises
        `QuinticError` where an id is not of this vocabulary.
        """
        parts = self._parts(ids, end_of_text=END_OF_TEXT.encode())
        return b"".join(parts).decode("utf-8", errors="replace")

    def _parts(self, ids: Iterable[int], end_of_text: bytes) -> Iterator[bytes]:
        vocab_size, eot_id, bytes_by_id = self.vocab_size, self.eot_id, self.bytes_by_id
        for index in ids:
            if not 0 <= index < vocab_size:
                raise QuinticError(
                    f"token id {index} cannot be decoded: the vocabulary '{self.name}' has the ids "
                    f"0 to {self.vocab_size - 1}; use the tokenizer that the tokens were made with"
                )
            yield end_of_text if index == eot_id else bytes_by_id[index]


def without_lone_surrogates(text: str) -> str:
    """Return a text with U+FFFD in place of each half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

"""A byte-level BPE in a `tokenizer.json`: read, checked, trained."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, trainers

from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.pretokenization import CUT_AS_GPT2, gpt2_cut, known_cut, own_cut
from quintic.data.tokenizer import END_OF_TEXT, Tokenizer, without_lone_surrogates
from quintic.errors import QuinticError, one_line
from quintic.files import replacing

TOKENIZER_FILE = "tokenizer.json"

_GPT2_AS_BPE = "f514485191165f3902c9268e9143de06ead6365acafc1e63483a8cb2bb6ab3ac"
"""The digest of ids, merges and cut of text in GPT-2's `tokenizer.json`, from whatever version of
Hugging Face's tokenizers: its fingerprint is that of the vocabulary in tiktoken's form."""

# A text that every vocabulary must give back unchanged: cases that normalisers, added blanks and
# special tokens damage. Blanks are added only where none are: it must also come back without them.
_PROBE = f"  Ünïcode e\u0301 漢字 🙂\r\n\n\tif x:  {END_OF_TEXT}  don't 12345\x00 "


class BpeTokenizer(Tokenizer):
    """A byte-level BPE (Sennrich et al. 2016; on bytes, Radford et al. 2019).

    `definition` is the content of a `tokenizer.json` in the format of Hugging Face's tokenizers,
    and `source` is where it comes from, for messages. Truncation and padding, which belong to a
    task and not to the vocabulary, are left out of what is used and saved; `switched_off` names
    those that were there. `cut` says how text is cut before merging, where that and the merges are
    all that decides about ids. Raises `QuinticError` where it is damaged, is not a byte-level BPE,
    has no end-of-text token, does not give back every text unchanged, or draws merges at random.
    """

    name = "bpe"

    def __init__(self, definition: str, source: str) -> None:
        try:
            content: dict[str, Any] = json.loads(definition)
            self.switched_off = [key for key in ("truncation", "padding") if content.get(key)]
            if self.switched_off:
                content.update(dict.fromkeys(self.switched_off))
                definition = json.dumps(content, ensure_ascii=False)
            self.definition = definition
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
            vocabulary: dict[str, int] = content["model"]["vocab"]
            merges = [
                merge.split(" ") if isinstance(merge, str) else list(merge)
                for merge in content["model"]["merges"]
            ]
            added = {token["content"]: token["id"] for token in content["added_tokens"]}
            special = {token["id"] for token in content["added_tokens"] if token["special"]}
            dropout = content["model"].get("dropout")
            names = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
            settings = {name: v for name in names if (v := content["model"].get(name))}
            in_text = sorted(
                [token["content"], token["single_word"]]
                for token in content["added_tokens"]
                if not token["special"]
            )
            # Special tokens in a text are text, and strip nothing.
            stripping = [
                token["content"]
                for token in content["added_tokens"]
                if not token["special"] and (token["lstrip"] or token["rstrip"])
            ]
        except Exception as error:  # tokenizers raises plain Exception
            raise QuinticError(
                f"{source} is not a byte-level BPE vocabulary ({one_line(error)}): name a "
                f"{TOKENIZER_FILE} that quintic or Hugging Face's tokenizers wrote"
            ) from error
        # Special tokens in a text are text: without this a document that mentions <|endoftext|>
        # would end in the middle.
        self._tokenizer.encode_special_tokens = True
        self._ids = {**vocabulary, **added}
        self._added, self._merges = added, merges
        if END_OF_TEXT not in added:
            raise QuinticError(
                f"{source} has no token {END_OF_TEXT}, which must precede every document: "
                f"use a vocabulary that has it"
            )
        if dropout:
            raise QuinticError(
                f"{source} drops merges out at random (model.dropout is {dropout}), so that a text "
                f"has other ids each time: set it to null in a copy of the file"
            )
        if stripping:
            raise QuinticError(
                f"{source} strips the blanks beside its token {stripping[0]!r}: set lstrip and "
                f"rstrip of its added_tokens to false in a copy of the file"
            )
        self.vocab_size = len(self._ids)
        self.eot_id = added[END_OF_TEXT]
        self.special_ids = tuple(sorted({self.eot_id, *special}))
        facts = [sorted(self._ids.items()), merges, content.get("pre_tokenizer")]
        self.fingerprint_0_1 = _digest(facts)
        # What else decides about ids, and what few tokenizers have: the others keep the older one.
        self.fingerprint = _digest(facts + [own for own in (settings, in_text) if own])
        plain = not settings and not in_text
        self.cut = known_cut(content.get("pre_tokenizer")) if plain else None
        if self.cut == "gpt2" and _digest([*facts[:2], CUT_AS_GPT2]) == _GPT2_AS_BPE:
            self.fingerprint = GPT2.fingerprint
        normalizer = content.get("normalizer") or {"normalizers": []}
        if (
            normalizer.get("normalizers") != []
            or not vocabulary.keys() >= _UTF8_ALPHABET
            or sorted(self._ids.values()) != list(range(self.vocab_size))
            or not all(map(self._is_lossless_on, (_PROBE, _PROBE.lstrip())))
        ):
            raise QuinticError(
                f"{source} does not give back every text unchanged: use a byte-level BPE with all "
                f"256 bytes, without normaliser, added blanks or gaps between its ids"
            )

    @property
    def package(self) -> str:
        return f"tokenizers {version('tokenizers')}"

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what `encode` returns for each text, on several threads."""
        texts = [without_lone_surrogates(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @cached_property
    def definition_of_text(self) -> str:
        """The `tokenizer.json` without special tokens and what puts them around a text."""
        plain: dict[str, object] = {"added_tokens": [], "post_processor": None}
        return json.dumps({**json.loads(self.definition), **plain}, ensure_ascii=False)

    @cached_property
    def merges_by_rank(self) -> bool:
        """True where two neighbours that make a token are always a pair of the merges, and those of
        lower ids come first: so tiktoken merges, which knows tokens and no pairs.

        It is so where the merges take every token apart and together again to itself. Otherwise a
        pair could make a token that the merges make of another pair: of `b c`, `a b` and `ab c`
        only the third makes `abc`, but where `b c` came first `a bc` would.
        """
        made = [self._ids["".join(merge)] for merge in self._merges]
        return (
            self.special_ids == (self.eot_id,)
            and all(a < b for a, b in itertools.pairwise(made))
            and all(
                len(self._tokenizer.model.tokenize(token)) == 1
                for token, index in self._ids.items()
                if index != self.eot_id
            )
        )

    def save(self, folder: Path) -> Path:
        """Write `tokenizer.json` into an existing folder and return its path."""
        path = folder / TOKENIZER_FILE
        with replacing(path) as file:
            file.write(self.definition.encode())
        return path

    @cached_property
    def bytes_by_id(self) -> list[bytes]:
        byte_of = {character: bytes([byte]) for byte, character in enumerate(BYTE_ALPHABET)}
        table = [b""] * self.vocab_size
        for token, index in self._ids.items():
            if index == self.eot_id:
                continue
            if token in self._added:
                table[index] = token.encode()
            else:
                table[index] = b"".join([byte_of[character] for character in token])
        return table

    def _is_lossless_on(self, text: str) -> bool:
        try:
            return self.decode_bytes(self.encode(text)) == text.encode()
        except KeyError:  # a token with characters outside the byte alphabet
            return False


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def train_bpe(texts: Iterable[str], vocab_size: int, *, cut_as_gpt2: bool = False) -> BpeTokenizer:
    """Train a byte-level BPE; the same texts give the same vocabulary, on any machine.

    The texts are read once. `vocab_size` counts the end-of-text token and the 256 bytes too. Text
    is cut by quintic's own pattern, or by GPT-2's, which other tools know. Raises `QuinticError`
    where the size is below 257, or more than the texts have repetitions for.
    """
    smallest = 1 + len(BYTE_ALPHABET)
    if vocab_size < smallest:
        raise QuinticError(
            f"a vocabulary of {vocab_size} tokens is too small: 256 bytes and {END_OF_TEXT} "
            f"need {smallest}; ask for at least that many"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = gpt2_cut() if cut_as_gpt2 else own_cut()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # A pair seen once teaches nothing: the token would have no second place to be used in.
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(BYTE_ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator((without_lone_surrogates(text) for text in texts), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise QuinticError(
            f"a vocabulary of {vocab_size} tokens cannot be trained: the text has repetitions for "
            f"{tokenizer.get_vocab_size()}; ask for at most that many, or bring more text"
        )
    return BpeTokenizer(tokenizer.to_str(), source="the vocabulary just trained")


def _byte_alphabet() -> str:
    """Return the characters that stand for the 256 bytes in a `tokenizer.json`.

    GPT-2's convention (Radford et al. 2019, `encoder.py`): printable Latin-1 stands for itself,
    the rest, in order, for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_ALPHABET = _byte_alphabet()
"""The character that stands for each byte in a `tokenizer.json`."""
# The bytes that UTF-8 uses: a vocabulary without one would lose the characters that have it.
_UTF8_ALPHABET = {BYTE_ALPHABET[byte] for byte in (*range(0xC0), *range(0xC2, 0xF5))}

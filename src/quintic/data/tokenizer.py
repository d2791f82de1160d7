"""Text to token ids and back: GPT-2's vocabulary, or a byte-level BPE trained here.

Both work on the bytes of UTF-8, so every text has an encoding and `decode(encode(text)) == text`.
A document is preceded by the end-of-text token; the characters `<|endoftext|>` inside a text are
text like any other and never become that token.
"""

import hashlib
import itertools
import json
import os
import tempfile
from abc import ABC, abstractmethod
from binascii import a2b_base64
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tiktoken
import tokenizers
from tiktoken.load import read_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from quintic.data.background import in_background
from quintic.errors import QuinticError, one_line, reason, way_out
from quintic.files import replacing

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"


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
        for index in ids:
            if not 0 <= index < self.vocab_size:
                raise QuinticError(
                    f"token id {index} cannot be decoded: the vocabulary '{self.name}' has the ids "
                    f"0 to {self.vocab_size - 1}; use the tokenizer that the tokens were made with"
                )
            yield end_of_text if index == self.eot_id else self.bytes_by_id[index]


# GPT-2's vocabulary -------------------------------------------------------------------------------

GPT2 = TokenizerInfo(
    name="gpt2",
    vocab_size=50257,
    eot_id=50256,
    fingerprint="gpt2",
    special_ids=(50256,),
    fingerprint_0_1="gpt2",
)

_GPT2_AS_BPE = "f514485191165f3902c9268e9143de06ead6365acafc1e63483a8cb2bb6ab3ac"
"""The digest of ids, merges and cut of text in GPT-2's `tokenizer.json`, from whatever version of
Hugging Face's tokenizers: its fingerprint is that of the vocabulary in tiktoken's form."""

_GPT2_FILE = "r50k_base.tiktoken"
_GPT2_ADDRESS = f"https://openaipublic.blob.core.windows.net/encodings/{_GPT2_FILE}"
_GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# The name that tiktoken gives the file in its cache: the SHA-1 of the address it comes from.
_GPT2_CACHED_AS = "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"
_DOWNLOAD_SECONDS = 30.0

# How text is cut before merging: GPT-2's pattern, in a form that takes under two thirds of the time
# of the one in tiktoken (r50k_pat_str of its `tiktoken_ext/openai_public.py`). The engine there,
# fancy-regex, steps through what is possessive (`\p{L}++`) or looks ahead, one alternative after
# another, in a machine that backtracks, and hands what is neither to regex-automata whole. So the
# first four alternatives, possessive there, are greedy here, and in a group. They match the same:
# nothing comes after their quantifiers that could ask for characters back. White space is cut as
# tiktoken has it, which leaves the last blank to the word behind it.
_GPT2_SPLIT = (
    r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
    r"|\s++$|\s+(?!\S)|\s"
)


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's vocabulary of 50,257 tokens (Radford et al. 2019): tiktoken's `r50k_base`, faster.

    Raises `QuinticError` where it is not in tiktoken's cache and cannot be downloaded.
    """

    name, vocab_size, eot_id, fingerprint, special_ids, fingerprint_0_1 = GPT2

    def __init__(self) -> None:
        self._encoding, self._tokens = _load_r50k()

    @property
    def package(self) -> str:
        return f"tiktoken {version('tiktoken')}"

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_to_array(self, text: str) -> npt.NDArray[np.uint32]:
        # A fifth faster than a list, whose integers become objects one by one.
        text = without_lone_surrogates(text)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    @cached_property
    def bytes_by_id(self) -> list[bytes]:
        return [*self._tokens, b""]


def _load_r50k() -> tuple[tiktoken.Encoding, list[bytes]]:
    """Return r50k_base and the bytes of its ids but end of text, from tiktoken's cache or
    downloaded within `_DOWNLOAD_SECONDS`."""
    # tiktoken downloads without a time limit, and on a machine that drops packets the connection
    # alone can take minutes.
    try:
        return in_background(_r50k).result(_DOWNLOAD_SECONDS)
    except TimeoutError:
        reason = f"no answer in {_DOWNLOAD_SECONDS:.0f} s"
    except Exception as error:
        reason = type(error).__name__
    folder = os.environ.get("TIKTOKEN_CACHE_DIR")
    now = f"which is now {folder}" if folder else "which is not set"
    cached = _cached_r50k()
    damaged = f", and the one in {cached} is damaged" if cached and cached.exists() else ""
    raise QuinticError(
        f"GPT-2's vocabulary cannot be downloaded ({reason}){damaged}: on a machine with network "
        f"fetch tiktoken's file {_GPT2_FILE}, put it under the name {_GPT2_CACHED_AS} into the "
        f"folder that TIKTOKEN_CACHE_DIR names ({now}), and try again"
    )


@cache
def _r50k() -> tuple[tiktoken.Encoding, list[bytes]]:
    # In the order of their ranks, which are their ids: the file is one that is known.
    tokens = [a2b_base64(line.split()[0]) for line in _r50k_file().splitlines()]
    encoding = tiktoken.Encoding(
        "r50k_base",
        pat_str=_GPT2_SPLIT,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={END_OF_TEXT: GPT2.eot_id},
        explicit_n_vocab=GPT2.vocab_size,
    )
    return encoding, tokens


def _r50k_file() -> bytes:
    """Return tiktoken's file of GPT-2's vocabulary, from its cache or downloaded.

    tiktoken's own reader fails where the cache it is given cannot be written, though it has the
    file, and where a damaged one cannot be replaced it does not say that there is one.
    """
    cached = _cached_r50k()
    with suppress(OSError):
        if cached and hashlib.sha256(content := cached.read_bytes()).hexdigest() == _GPT2_SHA256:
            return content
    content = read_file(_GPT2_ADDRESS)
    if hashlib.sha256(content).hexdigest() != _GPT2_SHA256:
        raise ValueError(f"{_GPT2_ADDRESS} has another checksum")
    with suppress(OSError):  # the next one downloads it again
        if cached:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with replacing(cached) as file:
                file.write(content)
    return content


def _cached_r50k() -> Path | None:
    """Return where tiktoken's cache has GPT-2's vocabulary; None where it is switched off."""
    default = Path(tempfile.gettempdir(), "data-gym-cache")
    names = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    folder = next((os.environ[name] for name in names if name in os.environ), str(default))
    return Path(folder, _GPT2_CACHED_AS) if folder else None


# Byte-level BPE -----------------------------------------------------------------------------------

# How text is cut before merging; no token crosses a cut. It follows the idea of GPT-4's pattern
# (tiktoken's cl100k_base) and not GPT-2's, which never joins a line end with the indentation after
# it. The alternatives, in order:
#   a word, with the one character before it (" word", ".method", "_name", "(arg")
#   up to three digits, so that the vocabulary is not filled with the numbers of the text
#   a run of punctuation
#   line ends together with the indentation of the line that follows: one token in most code
#   other white space, less the blank that belongs to the next word
# Line ends stay apart from the punctuation before them (GPT-4 joins them): a prompt that ends
# with "def f(x):" then ends where the training text has a token boundary too.
# On Python's standard library, with 4,096 tokens, it needs 3% fewer tokens than either of the two.
_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s*\n[ \t]*"
    r"|\s+(?!\S)"
    r"|\s+"
)

_CUT_AS_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}

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
        self.cut: Literal["gpt2", "quintic"] | None = None
        if not settings and not in_text:
            cut = {"use_regex": True, **(content.get("pre_tokenizer") or {})}
            cut.pop("trim_offsets", None)  # of offsets in the text, and not of ids
            if cut == _CUT_AS_GPT2:
                self.cut = "gpt2"
                if _digest([*facts[:2], cut]) == _GPT2_AS_BPE:
                    self.fingerprint = GPT2.fingerprint
            elif content.get("pre_tokenizer") == json.loads(_own_cut().__getstate__()):
                self.cut = "quintic"
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


@cache
def _own_cut() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


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
    if cut_as_gpt2:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = _own_cut()
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


def without_lone_surrogates(text: str) -> str:
    """Return a text with U+FFFD in place of each half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# By name ------------------------------------------------------------------------------------------


def load_tokenizer(spec: str) -> Tokenizer:
    """Load "gpt2", or a `tokenizer.json` by its path or that of its folder.

    Raises `QuinticError` for nothing of that name, a damaged file, and GPT-2's vocabulary not to be
    had.
    """
    if spec == GPT2.name:
        return Gpt2Tokenizer()
    path = Path(spec).expanduser()
    if path.is_dir():
        path = path / TOKENIZER_FILE
    try:
        definition = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QuinticError(
            f"tokenizer '{spec}' is neither 'gpt2' nor a {TOKENIZER_FILE}: no file {path}; name "
            f"one of the two"
        ) from None
    except OSError as error:
        raise QuinticError(
            f"tokenizer {path} cannot be read ({reason(error)}): {way_out(error)}"
        ) from error
    except UnicodeDecodeError as error:
        raise QuinticError(
            f"tokenizer {path} is no UTF-8: name a {TOKENIZER_FILE}, or 'gpt2'"
        ) from error
    return BpeTokenizer(definition, source=str(path))


def tokenizer_info(spec: str) -> TokenizerInfo:
    """Return the facts of a tokenizer; those of GPT-2 are known without its vocabulary.

    So training on ready-made GPT-2 shards works where nothing can be downloaded. Raises
    `QuinticError` as `load_tokenizer` does.
    """
    return GPT2 if spec == GPT2.name else load_tokenizer(spec).info

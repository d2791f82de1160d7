"""Ids from the packages of the extra `fast`: the same as the reference's, many times as fast.

gigatoken takes vocabularies that cut text as GPT-2 does, and GPT-2's; it knows no way to cut as
quintic's own do, which splintr takes. The reference, tiktoken or tokenizers, stays at hand: it
encodes what the two could disagree about, and `quintic.data.build.encode` compares a sample of the
rest with it. A version of a package is used only where the tests have compared all characters,
beside others, with the reference.
"""

import re
import tempfile
import unicodedata
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quintic.data.bpe_tokenizer import BpeTokenizer
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.tokenizer import Tokenizer


class FastPackage(NamedTuple):
    """A package by the names of its distribution and its module, and its version that is tested."""

    name: str
    module: str
    version: str


GIGATOKEN = FastPackage("gigatoken", "gigatoken", "0.10.0")
SPLINTR = FastPackage("splintr-rs", "splintr", "0.22.0")

# gigatoken keeps every word it has seen: 35 MiB after 450 MB of English, but 916 after so many
# tokens of random words. Loading it again takes 60 ms, and seeing the common words again as much.
_TOKENS_BEFORE_FORGETTING = 1 << 26

# Text of more characters of white space in a row goes to the reference: tiktoken gives up on a
# million of them before a word, and such a text is no document with either.
_LONG_WHITE_SPACE = 1 << 16
_SAMPLED_EVERY = _LONG_WHITE_SPACE >> 4
_WHITE_SAMPLES = re.compile(r"\s{15}")

# Letters, numbers and marks that Unicode 17 added, and gigatoken 0.10 and splintr 0.22 know;
# tiktoken 0.14 and tokenizers 0.23 know those of 16. What one takes as a letter and the other as
# punctuation is cut otherwise beside "'s".
_NEW_IN_UNICODE_17 = re.compile(
    "[\u088f\u0c5c\u0cdc\u1acf-\u1add\u1ae0-\u1aeb\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1"
    "\U00010940-\U00010959\U00010ec5-\U00010ec7\U00010efa\U00010efb\U00011b60-\U00011b67"
    "\U00011db0-\U00011ddb\U00011de0-\U00011de9\U00016ea0-\U00016eb8\U00016ebb-\U00016ed3"
    "\U00016ff2-\U00016ff6\U000187f8-\U000187ff\U00018d09-\U00018d1e\U00018d80-\U00018df2"
    "\U0001e6c0-\U0001e6ff\U0002b73a-\U0002b73f\U0002cea2-\U0002cead\U000323b0-\U00033479]"
)
# The bytes of UTF-8 that these begin with; so do most letters that later versions will add. The
# marks begin with two, of which the first is of many letters.
_FIRST_BYTES = (b"\xe0", b"\xea", b"\xf0")
_FIRST_OF_MARKS = b"\xe1\xab"


class FastEncoder:
    """Encodes documents with the vocabulary of `reference`, one that `fast_package` has a package
    for; GPT-2's may have any form."""

    def __init__(self, reference: Tokenizer) -> None:
        self._reference = reference
        self._load()

    def _load(self) -> None:
        self._encode = _loaded(self._reference)
        self._encoded_tokens = 0

    def encode(self, text: str, content: bytes) -> npt.NDArray[np.uint32] | None:
        """Return the token ids of a text, [tokens], whose UTF-8 is `content`.

        None where `is_for_the_reference` says so.
        """
        if is_for_the_reference(text, content):
            return None
        if self._encoded_tokens >= _TOKENS_BEFORE_FORGETTING:
            self._load()
        ids = self._encode(text, content)
        self._encoded_tokens += len(ids)
        return ids


def _loaded(reference: Tokenizer) -> Callable[[str, bytes], npt.NDArray[np.uint32]]:
    """Return what encodes a text, whose UTF-8 it is given too. Special tokens in it are text."""
    if reference.fingerprint == GPT2.fingerprint:
        return _gigatoken_of_ranks(reference.bytes_by_id[: GPT2.eot_id])
    assert isinstance(reference, BpeTokenizer)
    definition = reference.definition_of_text.encode()
    if reference.cut == "gpt2":
        from gigatoken import Tokenizer as Gigatoken

        backend: Any = Gigatoken.from_json(definition).backend
        return lambda text, content: backend.encode(content)
    import splintr

    encode_flat = splintr.from_json_bytes(definition).encode_flat
    return lambda text, content: np.frombuffer(encode_flat(text), "<u4")


def _gigatoken_of_ranks(
    ranks: Sequence[bytes],
) -> Callable[[str, bytes], npt.NDArray[np.uint32]]:
    from gigatoken import Tokenizer as Gigatoken

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ranks.tiktoken")
        path.write_bytes(
            b"".join(
                b"%s %d\n" % (b2a_base64(token, newline=False), index)
                for index, token in enumerate(ranks)
            )
        )
        backend: Any = Gigatoken.from_tiktoken(path, "gpt2", {}).backend
    return lambda text, content: backend.encode(content)


def is_for_the_reference(text: str, content: bytes) -> bool:
    """Return whether the ids of a text, whose UTF-8 is `content`, must be those of the reference.

    It is so for very long white space, and for characters newer than the version of Unicode that
    the reference, or this Python, knows.
    """
    if not text.isascii() and _has_new_characters(text, content):
        return True
    long = len(text) >= _LONG_WHITE_SPACE
    return long and _WHITE_SAMPLES.search(text[::_SAMPLED_EVERY]) is not None


def _has_new_characters(text: str, content: bytes) -> bool:
    # One byte is looked for six times as fast as two.
    may_have_marks = _FIRST_OF_MARKS[:1] in content and _FIRST_OF_MARKS in content
    if not may_have_marks and not any(byte in content for byte in _FIRST_BYTES):
        return False
    characters = set(text)
    return bool(_NEW_IN_UNICODE_17.search("".join(characters))) or "Cn" in map(
        unicodedata.category, characters
    )


def fast_package(reference: Tokenizer) -> FastPackage | None:
    """Return the package that has the same ids as a vocabulary; None where there is none."""
    if reference.fingerprint == GPT2.fingerprint:
        return GIGATOKEN
    if not isinstance(reference, BpeTokenizer):
        return None
    if reference.cut == "gpt2":
        return GIGATOKEN
    return SPLINTR if reference.cut == "quintic" and reference.merges_by_rank else None


def fast_encoder_name(reference: Tokenizer, log: Callable[[str], None]) -> str | None:
    """Return the name of the fast encoder of a vocabulary, None where it has none or it is not
    installed.

    `log` is called with a line where another version than the tested one is installed.
    """
    package = fast_package(reference)
    if package is None or find_spec(package.module) is None:
        return None
    found = version(package.name)
    if found != package.version:
        wanted = f"tested is {package.version} (pip install 'quintic[fast]')"
        log(f"{package.name} {found} is not used: {wanted}")
        return None
    return f"{package.name} {found}"

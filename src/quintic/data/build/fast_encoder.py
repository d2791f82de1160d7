"""GPT-2's ids from gigatoken, the extra `fast`: the same as the reference's, many times as fast.

The reference, tiktoken or tokenizers, stays at hand: it encodes what the two could disagree about,
and `quintic.data.build.encode` compares a sample of the rest with it. A version of gigatoken is
used only where the tests have compared all characters, beside others, with tiktoken.
"""

import base64
import re
import tempfile
import unicodedata
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.tokenizer import GPT2, Tokenizer

PACKAGE = "gigatoken"
TESTED_VERSION = "0.10.0"

# gigatoken keeps every word it has seen: 35 MiB after 450 MB of English, but 916 after so many
# tokens of random words. Loading it again takes 60 ms, and seeing the common words again as much.
_TOKENS_BEFORE_FORGETTING = 1 << 26

# Text of more characters of white space in a row goes to the reference: tiktoken gives up on a
# million of them before a word, and such a text is no document with either.
_LONG_WHITE_SPACE = 1 << 16
_SAMPLED_EVERY = _LONG_WHITE_SPACE >> 4
_WHITE_SAMPLES = re.compile(r"\s{15}")

# Letters and numbers that Unicode 17 added, and gigatoken 0.10 knows; tiktoken 0.14 knows those of
# 16. What one takes as a letter and the other as punctuation is cut otherwise beside "'s".
_NEW_IN_UNICODE_17 = re.compile(
    "[\u088f\u0c5c\u0cdc\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1\U00010940-\U00010959\U00010ec5-\U00010ec7"
    "\U00011db0-\U00011ddb\U00011de0-\U00011de9\U00016ea0-\U00016eb8\U00016ebb-\U00016ed3"
    "\U00016ff2-\U00016ff6\U000187f8-\U000187ff\U00018d09-\U00018d1e\U00018d80-\U00018df2"
    "\U0001e6c0-\U0001e6ff\U0002b73a-\U0002b73f\U0002cea2-\U0002cead\U000323b0-\U00033479]"
)
# The bytes of UTF-8 that these begin with; so do most letters that later versions will add.
_FIRST_BYTES = (b"\xe0", b"\xea", b"\xf0")


class FastEncoder:
    """Encodes documents with GPT-2's vocabulary; `reference` is a tokenizer of it, in any form."""

    def __init__(self, reference: Tokenizer) -> None:
        # Ranks are ids. No special tokens: <|endoftext|> in a text is text.
        self._ranks = b"".join(
            b"%s %d\n" % (base64.b64encode(token), index)
            for index, token in enumerate(reference.bytes_by_id[: GPT2.eot_id])
        )
        self._load()

    def _load(self) -> None:
        from gigatoken import Tokenizer

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "ranks.tiktoken")
            path.write_bytes(self._ranks)
            self._backend: Any = Tokenizer.from_tiktoken(path, "gpt2", {}).backend
        self._encoded_tokens = 0

    def encode(self, text: str, content: bytes) -> npt.NDArray[np.uint32] | None:
        """Return the token ids of a text, [tokens], whose UTF-8 is `content`.

        None where `is_for_the_reference` says so.
        """
        if is_for_the_reference(text, content):
            return None
        if self._encoded_tokens >= _TOKENS_BEFORE_FORGETTING:
            self._load()
        ids: npt.NDArray[np.uint32] = self._backend.encode(content)
        self._encoded_tokens += len(ids)
        return ids


def is_for_the_reference(text: str, content: bytes) -> bool:
    """Return whether the ids of a text, whose UTF-8 is `content`, must be those of the reference.

    It is so for very long white space, and for characters newer than the version of Unicode that
    tiktoken, or this Python, knows.
    """
    if not text.isascii() and _has_new_characters(text, content):
        return True
    long = len(text) >= _LONG_WHITE_SPACE
    return long and _WHITE_SAMPLES.search(text[::_SAMPLED_EVERY]) is not None


def _has_new_characters(text: str, content: bytes) -> bool:
    if not any(byte in content for byte in _FIRST_BYTES):
        return False
    characters = set(text)
    return bool(_NEW_IN_UNICODE_17.search("".join(characters))) or "Cn" in map(
        unicodedata.category, characters
    )


def fast_encoder_name(reference: Tokenizer, log: Callable[[str], None]) -> str | None:
    """Return the name of the fast encoder of a vocabulary, None where it has none or it is not
    installed.

    `log` is called with a line where another version than the tested one is installed.
    """
    if reference.fingerprint != GPT2.fingerprint or find_spec(PACKAGE) is None:
        return None
    found = version(PACKAGE)
    if found != TESTED_VERSION:
        wanted = f"tested is {TESTED_VERSION} (pip install 'quintic[fast]')"
        log(f"{PACKAGE} {found} is not used: {wanted}")
        return None
    return f"{PACKAGE} {found}"

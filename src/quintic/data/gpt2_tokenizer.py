"""GPT-2's vocabulary: tiktoken's file of it, from its cache or downloaded, and its tokenizer."""

import hashlib
import os
import tempfile
from binascii import a2b_base64
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken.load import read_file

from quintic.data.background import in_background
from quintic.data.pretokenization import GPT2_SPLIT
from quintic.data.tokenizer import END_OF_TEXT, Tokenizer, TokenizerInfo, without_lone_surrogates
from quintic.errors import QuinticError
from quintic.files import replacing

GPT2 = TokenizerInfo(
    name="gpt2",
    vocab_size=50257,
    eot_id=50256,
    fingerprint="gpt2",
    special_ids=(50256,),
    fingerprint_0_1="gpt2",
)

_GPT2_FILE = "r50k_base.tiktoken"
_GPT2_ADDRESS = f"https://openaipublic.blob.core.windows.net/encodings/{_GPT2_FILE}"
_GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# The name that tiktoken gives the file in its cache: the SHA-1 of the address it comes from.
_GPT2_CACHED_AS = "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"
_DOWNLOAD_SECONDS = 30.0


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
        pat_str=GPT2_SPLIT,
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

"""Chunks to token ids, in processes of their own: one task at a time, in any of them.

tiktoken's own threads scale worse than processes, and a BPE of tokenizers no better. The processes
are spawned, not forked: the parent has threads. They never import torch.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quintic.data.build.chunks import Chunk
from quintic.data.build.documents import BadDocument, Document, documents
from quintic.data.build.settings import BuildSettings
from quintic.data.manifest import SPLITS, Split
from quintic.data.shards import token_dtype
from quintic.data.tokenizer import Tokenizer, load_tokenizer

# Every document's length is compared with its tokens', which costs little; the bytes of one in so
# many, and of so many of its tokens, are compared too.
_COMPARED_EVERY = 256
_COMPARED_TOKENS = 1024


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
    was; None where there is none.
    """

    splits: dict[Split, EncodedSplit]
    bad: list[BadDocument]
    changed: tuple[int, int] | None


def text_split(text: str, val_share: float) -> Split:
    """Return the split that a document belongs to, by a hash of its text.

    So it stays where it is whatever else is built with it, and equal texts are never on both sides.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return "val" if int.from_bytes(digest[:8]) < round(val_share * 2**64) else "train"


class Encoder:
    """Encodes chunks; the same chunks give the same result in every process."""

    def __init__(self, settings: BuildSettings, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)

    def encode(self, chunks: Sequence[Chunk]) -> EncodedChunks:
        """Split into documents, tokenize and sort into splits."""
        # All documents first: the tokenizer's tables then stay in the processor's cache.
        found = [
            (chunk.begin.file, document)
            for chunk in chunks
            for document in documents(chunk, self._settings.format)
        ]
        bad = [document for _, document in found if isinstance(document, BadDocument)]
        changed: tuple[int, int] | None = None
        splits: dict[Split, list[npt.NDArray[np.uint32]]] = {split: [] for split in SPLITS}
        for index, (file, document) in enumerate(found):
            if isinstance(document, Document):
                ids = self._ids(file, document)
                if isinstance(ids, BadDocument):
                    bad.append(ids)
                    continue
                splits[text_split(document.text, self._settings.val_share)].append(ids)
                compare = 0 if index % _COMPARED_EVERY else _COMPARED_TOKENS
                if not changed and not self._tokenizer.gives_back(document.text, ids, compare):
                    changed = file, document.line
        joined = {split: self._joined(documents) for split, documents in splits.items()}
        return EncodedChunks(joined, sorted(bad, key=lambda bad: (bad.file, bad.line)), changed)

    def _ids(self, file: int, document: Document) -> npt.NDArray[np.uint32] | BadDocument:
        try:
            return self._tokenizer.encode_to_array(document.text)
        except ValueError as error:
            # tiktoken gives up on a million blanks before a word.
            reason = " ".join(str(error).split())[:120]
            return BadDocument(file, document.line, f"cannot be tokenized ({reason})")

    def _joined(self, documents: list[npt.NDArray[np.uint32]]) -> EncodedSplit:
        lengths = np.array([1 + len(ids) for ids in documents], dtype=np.int64)
        tokens = np.empty(int(lengths.sum()), dtype=self._dtype)
        end = 0
        for ids in documents:
            tokens[end] = self._tokenizer.eot_id
            tokens[end + 1 : end + 1 + len(ids)] = ids
            end += 1 + len(ids)
        return EncodedSplit(tokens, lengths)


class EncoderPool(AbstractContextManager["EncoderPool"]):
    """Several processes with an encoder each; or a thread of this process, where one is enough."""

    def __init__(self, settings: BuildSettings, tokenizer: Tokenizer, workers: int) -> None:
        self._encode = _encode if workers > 1 else Encoder(settings, tokenizer).encode
        self._pool: Executor = ThreadPoolExecutor(1)
        if workers > 1:
            self._pool = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(settings,),
            )

    def encode(self, chunks: Sequence[Chunk]) -> Future[EncodedChunks]:
        """Do what `Encoder.encode` does, in one of the processes."""
        return self._pool.submit(self._encode, chunks)

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


_encoder: Encoder  # of this process, where it is one of several


def _start_process(settings: BuildSettings) -> None:
    global _encoder
    # The parent alone answers Ctrl-C, which reaches every process of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The processes are the parallelism; threads of tokenizers in each would only get in their way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(settings, load_tokenizer(settings.tokenizer))


def _end_with_parent() -> None:
    """End with a parent that was killed and cannot tell its processes, which would wait on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(chunks: Sequence[Chunk]) -> EncodedChunks:
    return _encoder.encode(chunks)

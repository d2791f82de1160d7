"""Pieces of sources to token ids, in processes of their own: one task at a time, in any of them.

tiktoken's own threads scale worse than processes, and a BPE of tokenizers no better. The processes
are spawned, not forked: the parent has threads. They never import torch.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from quintic.data.build.chunks import Piece, Reading
from quintic.data.build.documents import Bad, Document, documents
from quintic.data.manifest import SPLITS, Split
from quintic.data.shards import token_dtype
from quintic.data.tokenizer import Tokenizer, load_tokenizer


class EncodedSplit(NamedTuple):
    """Documents of one split, one after another, each preceded by end of text.

    Attributes:
        tokens: the ids of all, [tokens].
        lengths: tokens of each, end of text included, [documents].
    """

    tokens: npt.NDArray[np.unsignedinteger]
    lengths: npt.NDArray[np.int64]


class Encoded(NamedTuple):
    """What a task gives back.

    Attributes:
        splits: the documents of each split, in the order of the input.
        bad: what was no document, in the order of the input.
    """

    splits: dict[Split, EncodedSplit]
    bad: list[Bad]


@dataclass(frozen=True)
class Encoding:
    """What a process needs to know.

    Attributes:
        tokenizer: as `load_tokenizer` takes it.
        reading: how documents are found.
        val_share: share of the documents that is for validation.
    """

    tokenizer: str
    reading: Reading
    val_share: float


def text_split(text: str, val_share: float) -> Split:
    """The split that a document belongs to, by a hash of its text.

    So it stays where it is whatever else is built with it, and equal texts are never on both sides.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return "val" if int.from_bytes(digest[:8]) < round(val_share * 2**64) else "train"


class Encoder:
    """Encodes pieces; the same pieces give the same result in every process."""

    def __init__(self, encoding: Encoding, tokenizer: Tokenizer) -> None:
        self._reading, self._val_share = encoding.reading, encoding.val_share
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)

    def encode(self, pieces: Sequence[Piece]) -> Encoded:
        """Split into documents, tokenize and sort into splits.

        One after the other for all of them: the tokenizer's tables stay in the processor's cache,
        which saves 3% of the time.
        """
        found: list[tuple[int, Document]] = []
        bad: list[Bad] = []
        for piece in pieces:
            for document in documents(piece, self._reading):
                if isinstance(document, Bad):
                    bad.append(document)
                else:
                    found.append((piece.begin.source, document))
        encoded = [self._ids(source, document) for source, document in found]
        splits: dict[Split, list[npt.NDArray[np.uint32]]] = {split: [] for split in SPLITS}
        for (_, document), ids in zip(found, encoded, strict=True):
            if isinstance(ids, Bad):
                bad.append(ids)
            else:
                splits[text_split(document.text, self._val_share)].append(ids)
        joined = {split: self._joined(documents) for split, documents in splits.items()}
        return Encoded(joined, sorted(bad, key=lambda bad: (bad.source, bad.line)))

    def _ids(self, source: int, document: Document) -> npt.NDArray[np.uint32] | Bad:
        try:
            return self._tokenizer.encode_to_array(document.text)
        except ValueError as error:
            # tiktoken gives up on a million blanks before a word.
            reason = " ".join(str(error).split())[:120]
            return Bad(source, document.line, f"cannot be tokenized ({reason})")

    def _joined(self, documents: list[npt.NDArray[np.uint32]]) -> EncodedSplit:
        lengths = np.array([1 + len(ids) for ids in documents], dtype=np.int64)
        tokens = np.empty(int(lengths.sum()), dtype=self._dtype)
        end = 0
        for ids in documents:
            tokens[end] = self._tokenizer.eot_id
            tokens[end + 1 : end + 1 + len(ids)] = ids
            end += 1 + len(ids)
        return EncodedSplit(tokens, lengths)


class Encoders:
    """Several processes with an encoder each; or this process, if one is enough.

    Args:
        encoding: what they need to know.
        tokenizer: the tokenizer, for this process.
        workers: number of processes; 1 stands for this one.
    """

    def __init__(self, encoding: Encoding, tokenizer: Tokenizer, workers: int) -> None:
        self._encoder = Encoder(encoding, tokenizer)
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            self._pool = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(encoding,),
            )

    def encode(self, pieces: Sequence[Piece]) -> Future[Encoded]:
        """As `Encoder.encode`."""
        if self._pool is not None:
            return self._pool.submit(_encode, pieces)
        done: Future[Encoded] = Future()
        done.set_result(self._encoder.encode(pieces))
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


_encoder: Encoder  # of this process, where it is one of several


def _start_process(encoding: Encoding) -> None:
    global _encoder
    # The parent alone answers Ctrl-C, which reaches every process of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The processes are the parallelism; threads of tokenizers in each would only get in their way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(encoding, load_tokenizer(encoding.tokenizer))


def _end_with_parent() -> None:
    """A parent that was killed cannot tell its processes to end, and they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(pieces: Sequence[Piece]) -> Encoded:
    return _encoder.encode(pieces)

"""The text of the track, told apart by digests that no vocabulary changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from quintic.data.corpus import embedded_texts
from quintic.data.dataset import Dataset
from quintic.data.manifest import SPLITS, Split
from quintic.errors import QuinticError


@dataclass(frozen=True)
class SplitText:
    """The documents of a split: their number, their UTF-8 bytes and a digest of all of them."""

    documents: int
    bytes: int
    sha256: str


Corpus = Mapping[Split, SplitText]

MADE_HERE = re.compile(rb"#!\S*/python\S*\n# -\*- python -\*-\n")
"""Beginning of `python-config.py`, which is made where Python is compiled and names a path there:
the one file that two installations of one version do not share."""


def corpus_of_this_python() -> Corpus:
    """Return the text of the embedded corpus; every version of Python has its own."""
    texts = embedded_texts()
    return {split: summed(text.encode() for text in texts[split]) for split in SPLITS}


def summed(documents: Iterable[bytes]) -> SplitText:
    """Return the sums over documents, without the one that was made on this machine.

    Each is digested behind its length, so that none can give bytes to its neighbour.
    """
    digest, count, size, made_here = hashlib.sha256(), 0, 0, 0
    for document in documents:
        if not made_here and len(document) < 4096 and MADE_HERE.match(document):
            made_here = 1
            continue
        digest.update(len(document).to_bytes(8, "big") + document)
        count, size = count + 1, size + len(document)
    return SplitText(count, size, digest.hexdigest())


def check_dataset(dataset: Dataset, corpus: Corpus) -> None:
    """Raise `QuinticError` where the tokens of a dataset are not exactly the text of the corpus,
    with its held-out files outside of training."""
    for split in SPLITS:
        if summed(_documents(dataset, split)) != corpus[split]:
            raise QuinticError(
                f"the {split} tokens of {dataset.path} are not the text of the corpus: remove the "
                "folder, and it is built again"
            )


def _documents(dataset: Dataset, split: Split) -> Iterator[bytes]:
    """Yield the text of each document, of which end of text is the first token."""
    stream, tokenizer = dataset.streams[split], dataset.load_tokenizer()
    ids = stream.read(0, len(stream))
    begins = np.flatnonzero(ids == tokenizer.eot_id)
    for part in np.split(ids, begins):
        if len(part):  # before the first end of text there is nothing
            yield tokenizer.decode_bytes(part.tolist())

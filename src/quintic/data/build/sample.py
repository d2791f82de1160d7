"""The documents that a vocabulary is trained on: a bounded sample, spread over all input files."""

from collections.abc import Iterable, Iterator, Sequence

from quintic.data.build.chunks import Piece, Position, Reading, read_pieces
from quintic.data.build.documents import Bad, Document, documents
from quintic.data.build.encode import text_split
from quintic.data.build.text_files import Arriving, Source
from quintic.errors import QuinticError

# More text hardly changes a vocabulary of this kind, and takes longer to count than to tokenize.
SAMPLE_BYTES = 100_000_000


def sample_texts(
    sources: Sequence[Source],
    reading: Reading,
    val_share: float,
    arriving: Arriving | None = None,
) -> Iterator[tuple[str, float]]:
    """Training documents from the beginning of every source, in proportion to its size.

    All of them where they have less than SAMPLE_BYTES. What cannot be a document is passed over:
    building reports it.

    Returns:
        An iterator of texts, each with the fraction of the sample that is done.

    Raises:
        QuinticError: nothing is a document; names the first reason.
    """
    bad: list[Bad] = []
    total = sum(source.size for source in sources) or 1
    taken, passed = 0, 0
    for index, source in enumerate(sources):
        # A share of the whole rather than of each file, so that one document each of a million
        # small files is not more than was wanted.
        passed += source.size
        wanted = SAMPLE_BYTES * passed / total
        if taken >= wanted:
            continue
        pieces = read_pieces(sources[: index + 1], reading, Position(index), arriving)
        for found in _training_documents(pieces, reading, val_share):
            if isinstance(found, Bad):
                bad = bad or [found]
                continue
            text = found.text
            taken += len(text)
            yield text, min(1.0, taken / SAMPLE_BYTES)
            if taken >= wanted:
                break
    if bad and not taken:
        name = sources[bad[0].source].name
        raise QuinticError(f"{name}:{bad[0].line}: {bad[0].reason}; so is the rest: mend the input")


def _training_documents(
    pieces: Iterable[Piece], reading: Reading, val_share: float
) -> Iterator[Document | Bad]:
    """The training documents of pieces, and what cannot be a document."""
    for piece in pieces:
        for found in documents(piece, reading):
            if isinstance(found, Bad) or text_split(found.text, val_share) == "train":
                yield found

"""A vocabulary trained on the input: on a bounded sample, spread over all input files."""

from collections.abc import Callable, Iterator, Sequence

from quintic.data.bpe_tokenizer import BpeTokenizer, train_bpe
from quintic.data.build.chunks import DocumentFormat, Position, read_chunks
from quintic.data.build.documents import BadDocument, documents
from quintic.data.build.encode import text_split
from quintic.data.build.settings import BuildSettings
from quintic.data.build.text_files import OnDownload, TextFile
from quintic.errors import QuinticError

# More text hardly changes a vocabulary of this kind, and takes longer to count than to tokenize.
SAMPLE_BYTES = 100_000_000


def train_vocabulary(
    files: Sequence[TextFile], settings: BuildSettings, on_progress: Callable[[str, float], None]
) -> BpeTokenizer:
    """Train a vocabulary of `settings.trained_size` on training documents of the files.

    `on_progress` is called with "download" or "vocabulary" and the fraction of it that is done.
    Raises `QuinticError` as `sample_texts` and `train_bpe` do.
    """

    assert settings.trained_size is not None
    sample = sample_texts(
        files, settings.format, settings.val_share, lambda f: on_progress("download", f)
    )

    def texts() -> Iterator[str]:
        taken = 0
        for text in sample:
            taken += len(text)
            on_progress("vocabulary", min(1.0, taken / SAMPLE_BYTES))
            yield text

    return train_bpe(texts(), settings.trained_size, cut_as_gpt2=settings.cut_as_gpt2)


def sample_texts(
    files: Sequence[TextFile],
    format: DocumentFormat,
    val_share: float,
    on_download: OnDownload | None = None,
) -> Iterator[str]:
    """Yield training documents from the beginning of every file, in proportion to its size.

    All of them where they have less than SAMPLE_BYTES. What cannot be a document is passed over:
    building reports it. Raises `QuinticError` where nothing is a document, with the first reason.
    """
    bad: BadDocument | None = None
    total = sum(file.size for file in files) or 1
    taken, passed = 0, 0
    for index, file in enumerate(files):
        # A share of the whole rather than of each file, so that one document each of a million
        # small files is not more than was wanted.
        passed += file.size
        wanted = SAMPLE_BYTES * passed / total
        if taken >= wanted:
            continue
        for found in (
            document
            for chunk in read_chunks(files[: index + 1], format, Position(index), on_download)
            for document in documents(chunk, format)
        ):
            if isinstance(found, BadDocument):
                bad = bad or found
            elif text_split(found.text, val_share) == "train":
                taken += len(found.text)
                yield found.text
                if taken >= wanted:
                    break
    if bad and not taken:
        raise QuinticError(
            f"{files[bad.file].name}:{bad.line}: {bad.reason}; so is the rest: mend the input"
        )

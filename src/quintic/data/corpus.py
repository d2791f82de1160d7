"""The embedded corpus: the text that every Python installation carries.

The sources of the interpreter's own standard library, with their comments and docstrings and the
language's documentation in `pydoc_data`, are about 12 MB of text. So a first run needs no download.
The same interpreter always gives the same dataset; another version gets its own.
"""

import hashlib
import io
import os
import platform
import sysconfig
import tokenize
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

import numpy as np

from quintic.data.bpe_tokenizer import TOKENIZER_FILE, BpeTokenizer, train_bpe
from quintic.data.manifest import Manifest, ShardRecord, Split
from quintic.data.shard_stats import TokenCounter, record_shard
from quintic.data.shards import write_shard
from quintic.errors import QuinticError, reason

OnProgress = Callable[[str, float], None]
"""Called with the stage and the fraction of it that is done."""

# Part of the cache's key: to be raised when the same files give another dataset.
_CORPUS_VERSION = 2

# Installed packages; tests, which some distributions leave out; and the tables of `encodings`,
# which are generated and near copies of each other, so that they would flatter every loss.
_SKIPPED_FOLDERS = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idle_test"),
    "encodings",
}

# Held out for validation: about 5% of the text, or enough for 200,000 tokens, whose vocabulary is
# not known yet (5 bytes each is the upper end), but not most of a small text.
_VAL_SHARE = 0.05
_VAL_BYTES = 5 * 200_000
_VAL_SHARE_AT_MOST = 0.2

_BATCH_FILES = 64


def embedded_dataset(
    vocab_size: int = 4096, cache: Path | None = None, on_progress: OnProgress | None = None
) -> Path:
    """Return the folder of the embedded dataset, built in seconds on first use, then found at once.

    Every `.py` file of the standard library is a document, in the order of a hash of its path, so
    that the stream is shuffled by file. Whole files are held out for validation, also by hash. The
    vocabulary of `vocab_size` ids is trained on the training files only. `cache` is the folder for
    built datasets; else what QUINTIC_CACHE names, else the platform's cache folder of the user.

    Raises `QuinticError` where this interpreter has no library sources, or too little of them for
    the vocabulary, or the cache cannot be written.
    """
    return _dataset_of_tree(_library(), vocab_size, cache or _default_cache(), on_progress)


def embedded_texts() -> dict[Split, list[str]]:
    """Return the documents of `embedded_dataset`, in the order of the stream, which no vocabulary
    changes."""
    return _split(_documents(_read_sources(_library())))


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _default_cache() -> Path:
    if named := os.environ.get("QUINTIC_CACHE"):
        return Path(named).expanduser()
    import platformdirs  # only here, so that a machine that has shards can do without it

    return Path(platformdirs.user_cache_dir("quintic"))


def _dataset_of_tree(
    root: Path, vocab_size: int, cache: Path, on_progress: OnProgress | None = None
) -> Path:
    """Do what `embedded_dataset` does for the sources of any folder."""
    report = on_progress or (lambda stage, fraction: None)
    sources = _read_sources(root)
    if not sources:
        raise QuinticError(
            f"this Python has no sources of its standard library in {root}: name a dataset of your "
            f"own, with --data.path when training, with --data in other commands, or use a Python "
            f"that is installed with its sources"
        )
    folder = cache / "corpus" / _cache_key(sources, vocab_size)
    # Built beside its place and renamed, so that nobody sees half a dataset. Of two processes that
    # build at the same time the slower one drops its own, which is the same.
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        if folder.exists():
            return folder
        aside.mkdir(parents=True)
        _build(sources, vocab_size, aside, report)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    except OSError as error:
        raise QuinticError(
            f"the embedded corpus cannot be written to {cache} ({reason(error)}): set "
            f"QUINTIC_CACHE to a folder that can be written and has 50 MB free"
        ) from error
    finally:
        rmtree(aside, ignore_errors=True)
    return folder


def _read_sources(root: Path) -> dict[str, bytes]:
    """Return the content of all `.py` files under `root` that belong to the library, by name: the
    relative path, with slashes."""
    sources = {}
    for place, folders, files in os.walk(root):
        # Pruned rather than filtered: site-packages can hold a hundred times the library.
        folders[:] = [folder for folder in folders if folder not in _SKIPPED_FOLDERS]
        for file in files:
            # _sysconfigdata is written when Python is compiled, and lists that machine's paths.
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                path = Path(place, file)
                with suppress(OSError):  # a dangling link, or not ours to read
                    sources[path.relative_to(root).as_posix()] = path.read_bytes()
    return dict(sorted(sources.items()))


def _cache_key(sources: dict[str, bytes], vocab_size: int) -> str:
    digest = hashlib.sha256(f"{_CORPUS_VERSION}".encode())
    for name, content in sources.items():
        digest.update(f"\n{name} {hashlib.sha256(content).hexdigest()}".encode())
    return f"python{platform.python_version()}-bpe{vocab_size}-{digest.hexdigest()[:16]}"


def _build(sources: dict[str, bytes], vocab_size: int, folder: Path, report: OnProgress) -> None:
    report("text", 0.0)
    splits = _split(_documents(sources))
    report("text", 1.0)

    def reported(texts: Sequence[str], stage: str) -> Iterator[str]:
        for index, text in enumerate(texts):
            report(stage, index / len(texts))
            yield text
        report(stage, 1.0)

    tokenizer = train_bpe(reported(splits["train"], "vocabulary"), vocab_size)
    tokenizer.save(folder)
    records = tuple(
        _write_split(split, texts, tokenizer, folder, report) for split, texts in splits.items()
    )
    Manifest(
        tokenizer=TOKENIZER_FILE,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        shards=records,
        encoder=tokenizer.package,
    ).write(folder)


def _documents(sources: dict[str, bytes]) -> dict[str, str]:
    """Return the text of each file that has one, by name; the first of several that are equal.

    Equal files, of which packages have many, would otherwise be trained on twice, or on both sides
    of the split.
    """
    names: dict[str, str] = {}
    for name, content in sources.items():
        # Text in the encoding that the file declares (PEP 263), line ends as \n.
        with suppress(SyntaxError, UnicodeDecodeError):
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            names.setdefault(io.TextIOWrapper(io.BytesIO(content), encoding).read(), name)
    return {name: text for text, name in names.items() if text.strip()}


def _split(documents: dict[str, str]) -> dict[Split, list[str]]:
    """Return the texts of each split, in the order of the stream."""
    sizes = {name: len(text.encode()) for name, text in documents.items()}
    total = sum(sizes.values())
    wanted = max(_VAL_SHARE * total, min(_VAL_BYTES, _VAL_SHARE_AT_MOST * total))
    held_out: set[str] = set()
    # A hash of the name, unlike a random draw, keeps nearly all files on their side when a new
    # version of Python adds or removes some.
    for name in sorted(documents, key=lambda name: _hash("split", name)):
        if wanted <= 0 or len(held_out) == len(documents) - 1:
            break
        held_out.add(name)
        wanted -= sizes[name]
    ordered = sorted(documents, key=lambda name: _hash("order", name))
    return {
        "train": [documents[name] for name in ordered if name not in held_out],
        "val": [documents[name] for name in ordered if name in held_out],
    }


def _hash(purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{purpose} {name}".encode()).digest()


def _write_split(
    split: Split, texts: Sequence[str], tokenizer: BpeTokenizer, folder: Path, report: OnProgress
) -> ShardRecord:
    """Write the shard of a split, every document preceded by end of text."""
    ids: list[int] = []
    for start in range(0, len(texts), _BATCH_FILES):
        report(f"{split} tokens", start / len(texts))
        for document in tokenizer.encode_batch(texts[start : start + _BATCH_FILES]):
            ids.append(tokenizer.eot_id)
            ids.extend(document)
    report(f"{split} tokens", 1.0)
    shard = write_shard(folder / f"python_{split}_000000.bin", np.array(ids, dtype=np.uint32))
    return record_shard(shard, split, TokenCounter(tokenizer.eot_id, tokenizer.byte_lengths))

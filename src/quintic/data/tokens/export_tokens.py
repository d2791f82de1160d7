"""A dataset to the token files of another tool."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from quintic.data.bpe_tokenizer import TOKENIZER_FILE, BpeTokenizer
from quintic.data.dataset import open_dataset
from quintic.data.manifest import Split
from quintic.data.shards import TokenStream
from quintic.data.tokens.hf_datasets import SPLIT_NAMES, hf_split_writer, write_hf_dict
from quintic.data.tokens.megatron import megatron_writer
from quintic.data.tokens.nanogpt import nanogpt_writer
from quintic.data.tokens.out_folder import check_out
from quintic.data.tokens.token_file import Append
from quintic.errors import QuinticError, reason, way_out
from quintic.files import new_folder

TokenTarget = Literal["megatron", "nanogpt", "hf-datasets"]


def export_tokens(
    path: Path,
    to: TokenTarget,
    out: Path,
    tokenizer: str | None,
    on_progress: Callable[[str, float], None],
) -> list[Path]:
    """Write a dataset for another tool, and return the files; `out` is absent or an empty folder.

    End of text, which stands before every document here, stands behind it there. nanoGPT's files
    are train.bin and val.bin; Megatron's prefixes train_text_document and val_text_document, each
    document one sequence; of datasets' folders train and validation each document is a row. Raises
    `QuinticError` as `open_dataset` does, for a dataset whose tokenizer nobody names, ids that do
    not fit, and where `out` cannot be written.
    """
    check_out(out)
    dataset = open_dataset(path, tokenizer, splits=())
    vocabulary = dataset.load_tokenizer()
    if vocabulary.vocab_size > 2**16 and to == "nanogpt":
        raise QuinticError(
            f"dataset {path} has a vocabulary of {vocabulary.vocab_size} ids, nanoGPT's files have "
            f"16 bits, for {2**16}: --to megatron has room"
        )
    named = TOKENIZER_FILE if isinstance(vocabulary, BpeTokenizer) else dataset.tokenizer_spec
    description = (
        f"Token ids of the tokenizer {named}, whose vocabulary has {vocabulary.vocab_size} ids: a "
        f"row is a document, with end of text, {vocabulary.eot_id}, behind it."
    )

    def writer(folder: Path, split: Split) -> AbstractContextManager[Append]:
        if to == "nanogpt":
            return nanogpt_writer(folder / f"{split}.bin")
        if to == "megatron":
            prefix = folder / f"{split}_text_document"
            return megatron_writer(prefix, vocabulary.eot_id, vocabulary.vocab_size)
        fingerprint = hashlib.sha256(f"{dataset.fingerprint} {split}".encode()).hexdigest()[:16]
        place = folder / SPLIT_NAMES[split]
        return hf_split_writer(place, vocabulary.eot_id, fingerprint, description)

    checked = dataset.for_model(vocabulary.vocab_size)
    try:
        with new_folder(out) as folder:
            for split, stream in checked.streams.items():
                done = 0
                with writer(folder, split) as append:
                    for ids in _end_behind(stream, vocabulary.eot_id):
                        append(ids)
                        done += len(ids)
                        on_progress(f"{split} tokens", min(1.0, done / len(stream)))
            if to == "hf-datasets":
                write_hf_dict(folder, list(checked.streams), description)
            if isinstance(vocabulary, BpeTokenizer):
                vocabulary.save(folder)
    except OSError as error:
        raise QuinticError(
            f"--out {out} cannot be written ({reason(error)}): {way_out(error)}"
        ) from error
    return sorted(out.iterdir())


def _end_behind(stream: TokenStream, eot_id: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the tokens of a split, [tokens], with end of text behind its documents."""
    for index, ids in enumerate(stream.blocks()):
        yield ids[1:] if index == 0 and ids[0] == eot_id else ids
    yield np.array([eot_id])

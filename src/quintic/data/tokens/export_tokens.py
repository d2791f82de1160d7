"""A dataset to the token files of another tool."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from quintic.data.dataset import open_dataset
from quintic.data.shards import TokenStream
from quintic.data.tokenizer import BpeTokenizer
from quintic.data.tokens.megatron import megatron_dtype, write_index
from quintic.errors import QuinticError, reason, way_out
from quintic.files import new_folder

TokenTarget = Literal["megatron", "nanogpt"]


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
    document one sequence. Raises `QuinticError` as `open_dataset` does, for a dataset whose
    tokenizer nobody names, ids that do not fit, and where `out` cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise QuinticError(f"--out {out} holds other files: name a new or an empty folder")
    dataset = open_dataset(path, tokenizer, splits=())
    vocabulary = dataset.load_tokenizer()
    dtype = megatron_dtype(vocabulary.vocab_size) if to == "megatron" else np.dtype("<u2")
    if vocabulary.vocab_size > 2**16 and to == "nanogpt":
        raise QuinticError(
            f"dataset {path} has a vocabulary of {vocabulary.vocab_size} ids, nanoGPT's files have "
            f"16 bits, for {2**16}: --to megatron has room"
        )
    checked = dataset.for_model(vocabulary.vocab_size)
    try:
        with new_folder(out) as folder:
            for split, stream in checked.streams.items():
                name = f"{split}_text_document" if to == "megatron" else split
                ends = []
                position = 0
                with (folder / f"{name}.bin").open("wb") as file:
                    for ids in _end_behind(stream, vocabulary.eot_id):
                        file.write(ids.astype(dtype).tobytes())
                        ends.append(np.flatnonzero(ids == vocabulary.eot_id) + position + 1)
                        position += len(ids)
                        on_progress(f"{split} tokens", min(1.0, position / len(stream)))
                if to == "megatron":
                    lengths = np.diff(np.concatenate(ends), prepend=0).astype(np.int64)
                    with (folder / f"{name}.idx").open("wb") as file:
                        write_index(file, dtype, lengths)
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

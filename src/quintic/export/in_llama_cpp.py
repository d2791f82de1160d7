"""A GGUF file in llama.cpp: its logits and token ids against quintic's.

By llama-cpp-python, as of 0.3.36.

Shapes: B batch, T time, V vocabulary of the tokenizer.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintic.errors import QuinticError, one_line
from quintic.export.gguf import is_cut_as_gpt2
from quintic.export.source import Source
from quintic.export.verify import (
    MARKED_TEXT,
    TEXTS,
    compare_ids,
    compare_logits,
    quintic_logits,
    sample_ids,
)

PACKAGE, TOOL = "llama_cpp", "llama.cpp"
F32 = 0
"""ggml's number of float32: the cache's, which is of half precision by default."""

GELU_BOUND = 1e-2
"""Largest difference of logits of gpt2, as a share of the largest: llama.cpp looks GELU up in a
table of half precision."""


def compare_in_llama_cpp(source: Source, path: Path, bound: float) -> Iterator[str]:
    """Load a file with llama.cpp and yield in words how near its logits are to those of the model
    with the file's weights, which `bound` is a share of the largest of, and that its ids of texts
    are the tokenizer's where it cuts text as that does; where llama-cpp-python is not to be had,
    yield that.

    Raises `QuinticError` where they are others, or the file cannot be loaded.
    """
    installed = importlib.util.find_spec(PACKAGE)
    if installed is None or installed.origin is None:  # a folder of that name is no package
        yield f"not loaded in {TOOL}: that needs the package llama-cpp-python, which pip builds"
        return
    try:
        llama_cpp = importlib.import_module(PACKAGE)
    except Exception as error:  # its library is not there, or of another machine
        yield f"not loaded in {TOOL}: llama-cpp-python cannot be imported ({one_line(error)})"
        return
    ids_BT = sample_ids(source)
    try:
        with redirect_stderr(io.StringIO()):  # its warnings come with verbose=False, too
            model = _load(llama_cpp, path, context=ids_BT.shape[1])
            found_BTV = torch.stack([_logits(model, ids_T) for ids_T in ids_BT])
            beginning = model.tokenize(b"", add_bos=True, special=False)
    except Exception as error:  # whatever a release of theirs raises
        raise QuinticError(
            f"llama-cpp-python {llama_cpp.__version__} does not load what was written, so it was "
            f"removed ({one_line(error)}): upgrade it, or export without it"
        ) from error
    if source.config.architecture == "gpt2":
        bound = max(bound, GELU_BOUND)
    yield compare_logits(quintic_logits(source, ids_BT), found_BTV, TOOL, bound)
    if beginning != [source.tokenizer.eot_id]:
        raise QuinticError(
            f"{TOOL} begins a text with the tokens {beginning} where end of text is "
            f"{source.tokenizer.eot_id}: the export was removed; report it"
        )
    if is_cut_as_gpt2(source.tokenizer):

        def encode(text: str) -> list[int]:
            ids: list[int] = model.tokenize(text.encode(), add_bos=False, special=False)
            return ids

        yield compare_ids(source, encode, TOOL, (*TEXTS, MARKED_TEXT))


def _load(llama_cpp: Any, path: Path, context: int) -> Any:
    """Return the model on the CPU alone, with a float32 cache, for sequences of a length."""
    threads = torch.get_num_threads()
    return llama_cpp.Llama(
        str(path),
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=0,
        offload_kqv=False,
        op_offload=False,
        type_k=F32,
        type_v=F32,
        logits_all=True,
        verbose=False,
    )


def _logits(model: Any, ids_T: Tensor) -> Tensor:
    """Return the logits of all positions of a sequence, [T, V]."""
    model.reset()
    model.eval(ids_T.tolist())
    return torch.from_numpy(model.scores[: len(ids_T)].copy())

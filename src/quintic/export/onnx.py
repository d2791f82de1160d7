"""A model as an ONNX graph, token ids to logits, for onnxruntime and others.

Shapes: B batch, T time, V vocabulary of the tokenizer.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from quintic.data.tokenizer import END_OF_TEXT
from quintic.errors import QuinticError, one_line, require_package
from quintic.export.card import write_card
from quintic.export.source import Source, padding_note
from quintic.export.tokenizer import write_tokenizer
from quintic.export.verify import compare_logits, quintic_logits, sample_ids

MODEL_FILE = "model.onnx"
IDS, LOGITS = "input_ids", "logits"
VERIFIED_LENGTHS = (1, 40)
"""The lengths, besides the context, at which logits are compared: PyTorch's exporter may take that
of its example for the only one."""


class _WithoutPadding(nn.Module):
    """The model without the rows that pad its vocabulary."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model, self.vocab_size = source.model, source.tokenizer.vocab_size

    def forward(self, ids_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(ids_BT)[..., : self.vocab_size]
        return logits_BTV


def write_onnx(source: Source, folder: Path, log: Callable[[str], None]) -> None:
    """Write the graph, for any batch and every length up to the context, with the tokenizer and a
    card into an empty folder; verify the graph where onnxruntime is installed.

    Weights of more than PyTorch's limit, 1.5 GB, are in a file beside it. Raises `QuinticError`
    where PyTorch's exporter is not installed whole or fails, and where onnxruntime computes other
    logits.
    """
    for module in ("onnx", "onnxscript"):
        require_package(module, "onnx", "--to onnx")
    from torch.export import Dim

    context, ids_BT = source.config.context, sample_ids(source)
    length = {1: Dim("time", max=context)} if context > 1 else {}
    try:
        with _quiet():
            program = torch.onnx.export(
                _WithoutPadding(source),
                (ids_BT,),
                dynamo=True,
                dynamic_shapes=({0: Dim("batch"), **length},),
                input_names=[IDS],
                output_names=[LOGITS],
                verbose=False,
            )
    except Exception as error:  # PyTorch's own, and whatever another onnxscript makes of its calls
        raise QuinticError(
            f"PyTorch {torch.__version__} makes no ONNX graph of this model "
            f"({one_line(error.__cause__ or error)}): install the releases of onnx and onnxscript "
            f"that it was made with, or use --to hf"
        ) from error
    assert program is not None, "with dynamo it returns one"
    program.save(folder / MODEL_FILE)
    write_tokenizer(source.tokenizer, folder, context)
    use, notes = _use(source), padding_note(source)
    write_card(source, folder, library="onnx", use=use, notes=notes, log=log)
    if importlib.util.find_spec("onnxruntime") is None:
        log("not verified: that needs the package onnxruntime, pip install 'quintic[onnx]'")
        return
    for line in verify_onnx(source, folder):
        log(line)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's exporter from warning of packages that it could use, and of its own code."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _use(source: Source) -> str:
    return f"""\
```python
import numpy
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("{MODEL_FILE}")
ids = Tokenizer.from_file("tokenizer.json").encode("{END_OF_TEXT}The").ids
(logits,) = session.run(["{LOGITS}"], {{"{IDS}": numpy.array([ids])}})
```

Every document of its training began with `{END_OF_TEXT}`, so a text should. The graph
has no cache: it takes whole texts of at most {source.config.context:,} tokens, any number of one
length."""


def verify_onnx(source: Source, folder: Path) -> list[str]:
    """Load a folder's graph with onnxruntime and return in words how near its logits are.

    Raises `QuinticError` where they are not those of quintic.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / MODEL_FILE)
    ids_BT, context, lines = sample_ids(source), source.config.context, []
    ids_BT = ids_BT.repeat(1, math.ceil(context / ids_BT.shape[1]))
    for length in sorted({min(length, context) for length in (*VERIFIED_LENGTHS, context)}):
        part_BT = ids_BT[:, :length]
        (logits,) = session.run([LOGITS], {IDS: part_BT.numpy()})
        found_BTV = torch.from_numpy(logits)
        lines.append(compare_logits(quintic_logits(source, part_BT), found_BTV, "onnxruntime"))
    return lines

"""A model as an ONNX graph, token ids to logits, for onnxruntime and others.

Shapes: B batch, T time, V vocabulary of the tokenizer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from quintic.errors import require_package
from quintic.export.source import Source
from quintic.export.tokenizer import write_tokenizer
from quintic.export.verify import compare_logits, quintic_logits, sample_ids

MODEL_FILE = "model.onnx"
IDS, LOGITS = "input_ids", "logits"
VERIFIED_LENGTHS = (1, 40)
"""The lengths at which logits are compared, besides the longest; a graph can be wrong at one."""


class _Logits(nn.Module):
    """The model without the rows that pad its vocabulary, which no tokenizer has."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model, self.vocab_size = source.model, source.tokenizer.vocab_size

    def forward(self, ids_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(ids_BT)[..., : self.vocab_size]
        return logits_BTV


def write_onnx(source: Source, folder: Path, log: Callable[[str], None]) -> None:
    """Write the graph, with any batch and length, and the tokenizer into an empty folder; verify
    the graph where onnxruntime is installed.

    Raises `QuinticError` where PyTorch's exporter is not installed, and where onnxruntime computes
    other logits.
    """
    for module in ("onnx", "onnxscript"):
        require_package(module, "onnx", "quintic export --to onnx")
    context = source.config.context
    ids_BT = sample_ids(source)
    shapes = ({0: Dim("batch"), 1: Dim("time", max=context)},)
    with _quiet():
        program = torch.onnx.export(
            _Logits(source),
            (ids_BT,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[IDS],
            output_names=[LOGITS],
            verbose=False,
        )
        assert program is not None, "dynamo returns one"
        program.save(folder / MODEL_FILE)
    write_tokenizer(source.tokenizer, folder, context)
    if importlib.util.find_spec("onnxruntime") is None:
        log("not verified: that needs the package onnxruntime, pip install 'quintic[onnx]'")
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / MODEL_FILE)
    for length in sorted({*VERIFIED_LENGTHS, ids_BT.shape[1]}):
        part_BT = ids_BT[:, :length]
        (logits,) = session.run([LOGITS], {IDS: part_BT.numpy()})
        log(compare_logits(quintic_logits(source, part_BT), torch.from_numpy(logits), "onnxruntime"))


@contextlib.contextmanager
def _quiet():
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

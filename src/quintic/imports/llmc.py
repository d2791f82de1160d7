"""llm.c's checkpoints: a header of 256 int32, then the parameters, one kind after another.

The header has 20240326, the version (3 float32, 5 bfloat16; both with a padded vocabulary),
max_seq_len, vocab_size, layers, heads, channels and the padded vocab_size; the rest of it is 0. Of
each kind of parameter all layers follow one another, in the order of `_KINDS`; matrices are (out,
in). The padding rows are no terms of llm.c's softmax, so they are cut.
Source: `write_model` and `write_tensors` of train_gpt2.py, `gpt2_write_to_checkpoint` of
train_gpt2.cu (https://github.com/karpathy/llm.c, commit f1e2ace).

Shapes: V vocabulary, T context, D model width, L layers.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.export.tensors import as_weights
from quintic.imports.foreign import ForeignModel
from quintic.imports.gpt2_linear import linear_shapes, parameters_from_linear

MAGIC = 20240326
HEADER_BYTES = 1024
PRECISIONS = {3: torch.float32, 5: torch.bfloat16}
"""By version."""

_KINDS = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"),
    *("attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)


def is_llmc(path: Path) -> bool:
    """Return whether a file begins as llm.c's checkpoints do."""
    with path.open("rb") as file:
        return file.read(4) == struct.pack("<i", MAGIC)


def read_llmc(path: Path) -> ForeignModel:
    """Read a checkpoint; raises `QuinticError` where it is of another version, or truncated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise QuinticError(f"it has {size} bytes, fewer than a header: copy it again")
    _, version, *sizes = struct.unpack("<8i", header[:32])
    if version not in PRECISIONS:
        raise QuinticError(
            f"it is of version {version}, and versions 3 (float32) and 5 (bfloat16) are read: "
            "write it again with a newer llm.c"
        )
    context, vocab_size, layers, heads, width, padded = sizes
    if min(sizes) < 1 or padded < vocab_size:
        raise QuinticError(
            f"its header has max_seq_len {context}, vocab_size {vocab_size}, layers {layers}, "
            f"heads {heads}, channels {width}, padded vocab_size {padded}: it is damaged, copy it "
            "again"
        )
    dtype = PRECISIONS[version]
    each_layer = 12 * width**2 + 13 * width
    count = (padded + context + 2) * width + layers * each_layer
    expected = HEADER_BYTES + count * dtype.itemsize
    if size != expected:
        raise QuinticError(
            f"it has {size:,} bytes where its header makes {expected:,}: it is truncated or "
            "damaged, copy it again"
        )
    config = ModelConfig(
        architecture="gpt2",
        layers=layers,
        width=width,
        heads=heads,
        context=context,
        vocab_size=vocab_size,
    )
    tensors = _split(_numbers(path, dtype), config, padded)
    ours = parameters_from_linear(config, as_weights(tensors), "its header")
    kind = f"llm.c version {version}, {str(dtype).removeprefix('torch.')}"
    return ForeignModel(kind, config, ours, (path,))


def _numbers(path: Path, dtype: torch.dtype) -> Tensor:
    """Return the parameters one after another, as they are on disk; pages are read as needed."""
    raw = np.memmap(path, dtype=f"<i{dtype.itemsize}", mode="c", offset=HEADER_BYTES)
    return torch.from_numpy(raw).view(dtype)


def _split(numbers: Tensor, config: ModelConfig, padded: int) -> dict[str, Tensor]:
    """Return the parameters by nanoGPT's names, without the padding rows of the vocabulary."""
    assert config.vocab_size is not None, "it was given"
    shapes = linear_shapes(config)
    embedding = "transformer.wte.weight"
    names = [embedding, "transformer.wpe.weight"]
    names += [f"transformer.h.{layer}.{kind}" for kind in _KINDS for layer in range(config.layers)]
    names += ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    shapes[embedding] = (padded, config.width)
    found, start = {}, 0
    for name in names:
        stop = start + int(np.prod(shapes[name]))
        found[name] = numbers[start:stop].view(shapes[name])
        start = stop
    found[embedding] = found[embedding][: config.vocab_size]
    return found

"""The file that llama.cpp loads: written, read back and verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.data.tokenizer import END_OF_TEXT
from quintic.errors import QuinticError, counted, reason, require_package
from quintic.export.card import model_title, write_card
from quintic.export.gguf import (
    architecture,
    from_gguf,
    held_model,
    is_cut_as_gpt2,
    model_keys,
    to_gguf,
    tokenizer_keys,
    unheld_switches,
)
from quintic.export.in_llama_cpp import compare_in_llama_cpp
from quintic.export.score import validation_sums
from quintic.export.source import Source, document_note, padding_note
from quintic.export.verify import LOGIT_BOUND, compare_logits, quintic_logits, sample_ids
from quintic.model.base import LanguageModel
from quintic.model.build import build_model

Dtype = Literal["f32", "f16", "q8_0"]


class Storage(NamedTuple):
    """How matrices are stored."""

    ggml_type: str
    """ggml's name of it."""
    file_type: int
    """llama.cpp's number for a file whose matrices are stored so."""
    rounding: float
    """The largest difference that it makes, as a share of a tensor's largest entry."""
    products: float
    """The largest difference of llama.cpp's logits, as a share of the largest: it rounds what it
    multiplies such a matrix by to the same type."""


STORAGES: dict[Dtype, Storage] = {
    "f32": Storage("F32", 0, 0.0, LOGIT_BOUND),
    "f16": Storage("F16", 1, 2.0**-10, 0.03),
    # 32 neighbours of a row share a float16 scale, the largest / 127, and have 8 bits each.
    "q8_0": Storage("Q8_0", 7, 1 / 127, 0.3),
}
"""The values of `--dtype`. Vectors and learned positions are float32 in all, as llama.cpp's own
converter has them."""

Q8_BLOCK = 32


def write_gguf(
    source: Source, folder: Path, log: Callable[[str], None], dtype: Dtype = "f32"
) -> None:
    """Write what llama.cpp loads into an empty folder, and verify it.

    Raises `QuinticError` where no architecture of llama.cpp holds the model, where its rows cannot
    be stored so, where the vocabulary has no merges, and where what is read back is another model.
    """
    require_package("gguf", "gguf", "quintic export --to gguf")
    config, tokenizer = source.config, source.tokenizer
    if unheld := unheld_switches(config):
        raise QuinticError(
            f"{', '.join(unheld)}: no architecture of llama.cpp computes that; use --to hf or onnx"
        )
    if dtype == "q8_0" and config.width % Q8_BLOCK:
        raise QuinticError(
            f"--dtype q8_0 stores the numbers of a row in blocks of {Q8_BLOCK}, and model.width "
            f"is {config.width}: use --dtype f16 or f32"
        )
    vocabulary = tokenizer_keys(tokenizer)
    if not vocabulary["tokenizer.ggml.merges"]:
        raise QuinticError(
            f"llama.cpp loads no vocabulary without merges, and that of this run, of "
            f"{tokenizer.vocab_size} tokens, has none: use --to hf or onnx"
        )
    held, tensors = held_model(config, source.tensors, tokenizer.vocab_size)
    storage = STORAGES[dtype]
    keys = {
        "general.name": model_title(source),
        "general.file_type": storage.file_type,
        "general.quantization_version": 2,
        **model_keys(held),
        **vocabulary,
    }
    path = folder / f"model-{dtype}.gguf"
    write_file(path, architecture(held), keys, to_gguf(held, tensors), storage)
    use, notes = _use(source, path.name), _notes(source)
    write_card(source, folder, library="gguf", use=use, notes=notes, log=log)
    read_keys, read_tensors = read_file(path)
    for key, value in {"general.architecture": architecture(held), **keys}.items():
        if not _is_same(read_keys.get(key), value):
            raise QuinticError(f"{path.name} has another {key} than was written: report it")
    log(f"{len(keys) + 1} keys and {len(read_tensors)} tensors read back from {path.name}")
    read = from_gguf(read_keys, read_tensors)
    for line in verify_gguf(source, (held, tensors), read, dtype):
        log(line)
    model = replace(source, model=_built(read))
    for line in compare_in_llama_cpp(model, path, storage.products):
        log(line)


def write_file(
    path: Path, name: str, keys: Mapping[str, Any], tensors: Mapping[str, Tensor], storage: Storage
) -> None:
    """Write a GGUF file of an architecture, its matrices stored as told."""
    import gguf

    writer = gguf.GGUFWriter(path, name)
    for key, value in keys.items():
        # llama.cpp takes a key of another type for a mistake, and sizes are unsigned.
        unsigned = isinstance(value, int) and not isinstance(value, bool)
        own = gguf.GGUFValueType.UINT32 if unsigned else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, own)
    for key, tensor in tensors.items():
        matrix = tensor.ndim == 2 and key != "position_embd.weight"
        kind = gguf.GGMLQuantizationType[storage.ggml_type if matrix else "F32"]
        writer.add_tensor(key, gguf.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the keys of a GGUF file, and its tensors in float32."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: torch.from_numpy(
            np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        for tensor in reader.tensors
    }
    return keys, tensors


def _is_same(read: Any, written: Any) -> bool:
    if isinstance(written, float):
        return isinstance(read, float) and read == float(np.float32(written))
    if isinstance(written, list):
        same = isinstance(read, list) and len(read) == len(written)
        return same and all(map(_is_same, read, written))
    return type(read) is type(written) and bool(read == written)


def _use(source: Source, name: str) -> str:
    return f"""\
```sh
llama-completion -m {name} --ctx-size {source.config.context} -no-cnv -p 'The'
```

llama.cpp begins a text with `{END_OF_TEXT}`, as every document of the model's training began."""


def _notes(source: Source) -> list[str]:
    cut = [
        "llama.cpp cuts text otherwise than this vocabulary was trained with: the ids of a text "
        "can be others, above all of code; ids that it is given it takes as they are; a vocabulary "
        "of quintic data build --tokenizer train:SIZE:gpt2 it cuts alike"
    ] * (not is_cut_as_gpt2(source.tokenizer))
    return [*padding_note(source), *document_note(source), *cut]


Held = tuple[ModelConfig, dict[str, Tensor]]
"""A model as `held_model` returns it."""


def verify_gguf(source: Source, written: Held, read: Held, dtype: Dtype) -> list[str]:
    """Return in words how near a model that was read back is to the one that was written.

    Raises `QuinticError` where it is another, or further than the rounding of its storage.
    """
    (config, expected), (read_config, found) = written, read
    if read_config != config or found.keys() != expected.keys():
        raise QuinticError("the file read back has another model's sizes or tensors: report it")
    for name, tensor in expected.items():
        bound = STORAGES[dtype].rounding * tensor.abs().max()
        if not bool(((found[name] - tensor).abs() <= bound).all()):
            raise QuinticError(f"{name} read back is not what was written: report it")
    ids_BT = sample_ids(source)
    model, before = _built(read), quintic_logits(source, ids_BT)
    with torch.no_grad():
        after = model(ids_BT)
    if dtype == "f32":
        return [compare_logits(before, after, "quintic with the weights of the file")]
    difference = (after - before).abs().max().item()
    lines = [
        f"{dtype} changes logits on {len(ids_BT)} x {ids_BT.shape[1]} tokens by at most "
        f"{difference:.1e}, logits up to {before.abs().max().item():.1f}"
    ]
    try:
        exact, _ = validation_sums(source)
        stored, _ = validation_sums(replace(source, model=model))
    except (QuinticError, OSError) as error:
        return [*lines, f"loss not measured: {reason(error)}"]
    return [
        *lines,
        f"loss on the first {counted(exact.tokens, 'validation token')}: {exact.mean:.5f} nats per "
        f"token in float32, {stored.mean:.5f} with {dtype} ({stored.mean - exact.mean:+.5f})",
    ]


def _built(held: Held) -> LanguageModel:
    config, tensors = held
    model = build_model(config)
    model.load_state_dict(tensors)
    return model.eval()

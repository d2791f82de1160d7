"""A model as llama.cpp holds it: architecture, keys and tensors of a GGUF file, there and back.

| quintic's `model`     | architecture |
|-----------------------|--------------|
| gpt                   | apertus      |
| gpt without `qk_norm` | arcee        |
| gpt2                  | gpt2         |

apertus has xIELU for an activation, which is squared ReLU with `XIELU` for its parameters. It asks
for a head of its own, so a tied one is written a second time; and `embed_norm`, which neither
architecture has, is computed here for every row of the embedding. apertus rotates the two halves of
a head as Llama does in transformers, with the opposite sign to quintic's, so that the halves of
queries and keys are swapped; arcee rotates neighbours, as the original Llama does.

Shapes: D model width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from quintic.config import ModelConfig
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.tokenizer import Tokenizer
from quintic.export.hf import LAYER_NORM_EPS, RMS_EPS, own_switches
from quintic.export.parts import (
    STACKED,
    Part,
    halves_interleaved,
    halves_swapped,
    to_ours,
    to_theirs,
)
from quintic.export.tokenizer import tokenizer_json
from quintic.model.gpt import ROTARY_BASE

APERTUS, ARCEE, GPT2_ARCHITECTURE = "apertus", "arcee", "gpt2"

XIELU = {"alpha_p": math.log(math.e - 1), "alpha_n": -100.0, "beta": 0.0, "eps": -1e-6}
"""The parameters with which xIELU is squared ReLU. Above zero it is softplus(alpha_p) x^2 + beta x,
and this alpha_p makes the factor 1; below, it is (expm1(min(x, eps)) - x) (beta +
softplus(alpha_n)) + beta x, and softplus(-100) is 0. Source: `ggml_xielu` of ggml.c and `op_xielu`
of ggml-cpu/unary-ops.cpp in llama.cpp."""

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""llama.cpp's types of tokens: of text, never in a text, and found in a text before it is cut."""


def unheld_switches(config: ModelConfig) -> list[str]:
    """Return in words the switches with which no architecture of llama.cpp computes the model.

    `model.document_mask` is left out of account: for a text of one document it changes nothing.
    """
    found = own_switches(config)
    if config.activation != "relu2":
        found.append(f"model.activation {config.activation}")
    if config.logit_softcap is not None:
        found.append(f"model.logit_softcap {config.logit_softcap}")
    return found


def held_model(
    config: ModelConfig, tensors: Mapping[str, Tensor], vocab_size: int
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model in the form in which llama.cpp has it, as quintic's config and parameters.

    It has no rows beyond the vocabulary; a modernised one has a head of its own, and an embedding
    that is normed already where the model norms it.
    """
    held = {**tensors, "embed.weight": tensors["embed.weight"][:vocab_size]}
    if gpt := config.architecture == "gpt":
        head = tensors["embed.weight" if config.tied_head else "head.weight"]
        held["head.weight"] = head[:vocab_size]
    if config.embed_norm:
        embed_VD = held["embed.weight"]
        held["embed.weight"] = F.rms_norm(embed_VD, embed_VD.shape[1:])
    form = ModelConfig(
        architecture=config.architecture,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        context=config.context,
        vocab_size=vocab_size,
        qk_norm=config.qk_norm,
        tied_head=not gpt,
    )
    return form, held


# The keys -----------------------------------------------------------------------------------------


def architecture(config: ModelConfig) -> str:
    """Return the name of llama.cpp's architecture for a model that it holds."""
    if config.architecture == "gpt2":
        return GPT2_ARCHITECTURE
    return APERTUS if config.qk_norm else ARCEE


def model_keys(config: ModelConfig) -> dict[str, Any]:
    """Return the keys that say the sizes of a model in the form of `held_model`, and how it
    computes; whole numbers are unsigned ones of 32 bits in the file."""
    name = architecture(config)
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.width,
        "feed_forward_length": 4 * config.width,
        "block_count": config.layers,
        "attention.head_count": config.heads,
    }
    if name == GPT2_ARCHITECTURE:
        keys["attention.layer_norm_epsilon"] = LAYER_NORM_EPS
    else:
        keys |= {
            "attention.head_count_kv": config.heads,
            "attention.layer_norm_rms_epsilon": RMS_EPS,
            "rope.freq_base": ROTARY_BASE,
            "rope.dimension_count": config.head_width,
        }
    of_all = {f"{name}.{key}": value for key, value in keys.items()}
    if name == APERTUS:
        of_all |= {f"xielu.{key}": [value] * config.layers for key, value in XIELU.items()}
    return of_all


def tokenizer_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the keys of the vocabulary.

    llama.cpp begins a text with end of text where it is told to, as quintic's `generate` does. It
    reads the way in which text is cut from no file, but knows some by name; that of GPT-2 is the
    nearest to quintic's own.
    """
    content = json.loads(tokenizer_json(tokenizer))
    ids = {**content["model"]["vocab"]}
    types = dict.fromkeys(ids.values(), NORMAL)
    for token in content["added_tokens"]:
        ids[token["content"]] = token["id"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(ids, key=ids.__getitem__),
        "tokenizer.ggml.token_type": [types[index] for index in sorted(types)],
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in content["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": tokenizer.eot_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eot_id,
        "tokenizer.ggml.add_bos_token": True,
    }


def is_cut_as_gpt2(tokenizer: Tokenizer) -> bool:
    """Return whether a text is cut and merged as by GPT-2's tokenizer, which llama.cpp knows."""
    if tokenizer.fingerprint == GPT2.fingerprint:
        return True
    content = json.loads(tokenizer_json(tokenizer))
    if content["model"].get("ignore_merges"):  # a word that is a token is one, whatever merges say
        return False
    cut = content.get("pre_tokenizer") or {}
    return cut.get("type") == "ByteLevel" and cut.get("use_regex", True)


# The tensors --------------------------------------------------------------------------------------


def _parts(config: ModelConfig) -> Iterator[Part]:
    yield from _gpt2_parts(config) if config.architecture == "gpt2" else _gpt_parts(config)


def _gpt2_parts(config: ModelConfig) -> Iterator[Part]:
    yield Part("token_embd.weight", ("embed.weight",))
    yield Part("position_embd.weight", ("positions.weight",))
    for kind in ("weight", "bias"):
        yield Part(f"output_norm.{kind}", (f"final_norm.{kind}",))
        for layer in range(config.layers):
            theirs, ours = f"blk.{layer}", f"layers.{layer}"
            qkv = tuple(f"{ours}.attention.{name}.{kind}" for name in "qkv")
            yield Part(f"{theirs}.attn_norm.{kind}", (f"{ours}.attention_norm.{kind}",))
            yield Part(f"{theirs}.attn_qkv.{kind}", qkv, STACKED)
            yield Part(f"{theirs}.attn_output.{kind}", (f"{ours}.attention.o.{kind}",))
            yield Part(f"{theirs}.ffn_norm.{kind}", (f"{ours}.mlp_norm.{kind}",))
            yield Part(f"{theirs}.ffn_up.{kind}", (f"{ours}.mlp.up.{kind}",))
            yield Part(f"{theirs}.ffn_down.{kind}", (f"{ours}.mlp.down.{kind}",))


def _gpt_parts(config: ModelConfig) -> Iterator[Part]:
    turned = (halves_swapped if config.qk_norm else halves_interleaved)(config.heads)
    yield Part("token_embd.weight", ("embed.weight",))
    yield Part("output.weight", ("head.weight",))
    yield Part("output_norm.weight", (), gain=config.width)
    for layer in range(config.layers):
        theirs, ours = f"blk.{layer}", f"layers.{layer}"
        yield Part(f"{theirs}.attn_q.weight", (f"{ours}.attention.q.weight",), turned)
        yield Part(f"{theirs}.attn_k.weight", (f"{ours}.attention.k.weight",), turned)
        yield Part(f"{theirs}.attn_v.weight", (f"{ours}.attention.v.weight",))
        yield Part(f"{theirs}.attn_output.weight", (f"{ours}.attention.o.weight",))
        yield Part(f"{theirs}.ffn_up.weight", (f"{ours}.mlp.up.weight",))
        yield Part(f"{theirs}.ffn_down.weight", (f"{ours}.mlp.down.weight",))
        for norm in ("attn_norm", "ffn_norm"):
            yield Part(f"{theirs}.{norm}.weight", (), gain=config.width)
        for norm in ("attn_q_norm", "attn_k_norm") if config.qk_norm else ():
            yield Part(f"{theirs}.{norm}.weight", (), gain=config.head_width)


def to_gguf(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return llama.cpp's tensors by name, of a model in the form of `held_model`; rows come first,
    where the file's own account of a shape has them last."""
    return to_theirs(_parts(config), tensors)


def from_gguf(
    keys: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model of a file that `quintic export` wrote, as a config of quintic's and
    parameters by name, in the form of `held_model`: the inverse of `model_keys` and `to_gguf`."""
    name = keys["general.architecture"]
    sizes = ("block_count", "embedding_length", "attention.head_count", "context_length")
    layers, width, heads, context = (keys[f"{name}.{key}"] for key in sizes)
    config = ModelConfig(
        architecture="gpt2" if name == GPT2_ARCHITECTURE else "gpt",
        layers=layers,
        width=width,
        heads=heads,
        context=context,
        vocab_size=keys[f"{name}.vocab_size"],
        qk_norm=name != ARCEE,
        tied_head=name == GPT2_ARCHITECTURE,
    )
    return config, to_ours(_parts(config), tensors)

"""A model as transformers holds it: its class, `config.json` and tensors, there and back.

| quintic's `model`                          | class                              |
|--------------------------------------------|------------------------------------|
| gpt                                        | ApertusForCausalLM                 |
| gpt without `qk_norm`                      | ArceeForCausalLM                   |
| gpt with `embed_norm`, any `logit_softcap` | NanoChatForCausalLM                |
| gpt with a switch that none of these holds | QuinticForCausalLM (remote_code.py) |
| gpt2                                       | GPT2LMHeadModel                    |

Each with both activations, tied or not, but gpt2. Apertus and Arcee rotate as Llama does, y1 =
x1 cos - x2 sin where quintic has a plus: with the halves of each head's queries and keys swapped
that is the same. Their norms have gains, which are ones; NanoChat's have none. GPT-2's class stacks
queries, keys and values and has its matrices transposed.

Shapes: D model width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.export import remote_code
from quintic.export.parts import (
    SAME,
    STACKED,
    STACKED_TRANSPOSED,
    TRANSPOSED,
    Part,
    halves_swapped,
    to_ours,
    to_theirs,
)
from quintic.export.remote_code import QUINTIC
from quintic.export.tensors import check_layers, check_tensors, without_tied_head
from quintic.model.build import meta_model
from quintic.model.gpt import ROTARY_BASE

APERTUS, ARCEE = "ApertusForCausalLM", "ArceeForCausalLM"
NANOCHAT, GPT2_CLASS = "NanoChatForCausalLM", "GPT2LMHeadModel"
MODEL_TYPES = {
    APERTUS: "apertus",
    ARCEE: "arcee",
    NANOCHAT: "nanochat",
    GPT2_CLASS: "gpt2",
    QUINTIC: "quintic",
}
"""The classes that hold a model of ours, with the `model_type` of their config."""

HEAD = "lm_head.weight"
"""The name of the head's matrix in all of them."""

RMS_EPS = torch.finfo(torch.float32).eps
LAYER_NORM_EPS = 1e-5
ACTIVATIONS = {"relu2": "relu2", "gelu": "gelu_pytorch_tanh"}
"""transformers' names of the values of `model.activation`."""


def class_of(config: ModelConfig) -> str:
    """Return the class that computes the model, `QUINTIC` where none of transformers' own does.

    `model.document_mask` is left out of account: for a text of one document it changes nothing.
    """
    if unheld_switches(config):
        return QUINTIC
    if config.architecture == "gpt2":
        return GPT2_CLASS
    if config.embed_norm:
        return NANOCHAT
    return APERTUS if config.qk_norm else ARCEE


def own_switches(config: ModelConfig) -> list[str]:
    """Return in words the switches with which no model of another tool computes the same."""
    own = {
        "token_smear": config.token_smear,
        "key_smear": config.key_smear,
        "bigram_embeddings": config.bigram_embeddings > 0,
        "value_embeddings": config.value_embeddings > 0,
        "x0_skip": config.x0_skip,
        "unet_skips": config.unet_skips,
        "window": config.window is not None and config.window < config.context,
        "positions": config.positions != "rotary",
        "norm": config.norm != "rmsnorm",
    }
    return [f"model.{name} {getattr(config, name)}" for name, is_on in own.items() if is_on]


def unheld_switches(config: ModelConfig) -> list[str]:
    """Return in words the switches with which no class of transformers computes the model."""
    found = own_switches(config)
    if config.embed_norm and not config.qk_norm:
        found.append("model.embed_norm True without model.qk_norm")
    if config.logit_softcap is not None and not config.embed_norm:
        found.append(f"model.logit_softcap {config.logit_softcap:g} without model.embed_norm")
    return found


# The config ---------------------------------------------------------------------------------------


def hf_config(config: ModelConfig, *, vocab_size: int, eot_id: int) -> dict[str, Any]:
    """Return `config.json` with every field of the class, since its defaults are others, silently:
    Apertus has another activation, rotary base, eps and end of text.
    """
    name = class_of(config)
    if name == QUINTIC:
        return remote_code.config_json(config, vocab_size=vocab_size, eot_id=eot_id)
    common = {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        "dtype": "float32",
        "vocab_size": vocab_size,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": None,
        "tie_word_embeddings": config.tied_head,
        "use_cache": True,
        "initializer_range": 0.02,
    }
    if name == GPT2_CLASS:
        return common | {
            "n_positions": config.context,
            "n_ctx": config.context,  # llama.cpp's converter asks for it
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": LAYER_NORM_EPS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "summary_activation": None,
            "summary_proj_to_labels": True,
            "summary_first_dropout": 0.0,
        }
    own: dict[str, Any] = {}
    if name == ARCEE:
        own = {"mlp_bias": False, "head_dim": config.head_width}
    if name == NANOCHAT:
        own = {"final_logit_softcapping": config.logit_softcap}
    return common | {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "hidden_act": ACTIVATIONS[config.activation],
        "max_position_embeddings": config.context,
        "rms_norm_eps": RMS_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "attention_bias": False,
        "attention_dropout": 0.0,
        **own,
    }


_LLAMA_DEFAULTS = {
    "num_key_value_heads": None,
    "rope_parameters": None,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    APERTUS: {**_LLAMA_DEFAULTS, "hidden_act": "xielu", "intermediate_size": 14336},
    ARCEE: {
        **_LLAMA_DEFAULTS,
        "hidden_act": "relu2",
        "intermediate_size": 18432,
        "mlp_bias": False,
        "head_dim": None,
    },
    NANOCHAT: {
        **_LLAMA_DEFAULTS,
        "hidden_act": "relu2",
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 15.0,
    },
    GPT2_CLASS: {
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
}
"""Of each class the fields that decide what it computes, besides its sizes, with what they are
where a config leaves them out (transformers 5.24)."""


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Return the config of the model that transformers builds from a `config.json`; its vocabulary
    is the one there, without padding.

    Raises `QuinticError` where the class is not one of `MODEL_TYPES`, and where a field has a value
    with which quintic's models compute something else, naming it.
    """
    name = model_class(config)
    if name == QUINTIC:
        return remote_code.model_config(config)
    given = {**_DEFAULTS[name], **config}
    try:
        if name == GPT2_CLASS:
            sizes = [given[key] for key in ("n_layer", "n_embd", "n_head", "n_positions")]
        else:
            keys = ("hidden_layers", "attention_heads")
            layers, heads = (given[f"num_{key}"] for key in keys)
            sizes = [layers, given["hidden_size"], heads, given["max_position_embeddings"]]
        vocab_size = given["vocab_size"]
    except KeyError as error:
        raise QuinticError(f"config.json has no {error.args[0]}: restore it") from error
    layers, width, heads, context = sizes
    if not all(type(size) is int and size > 0 for size in (*sizes, vocab_size)):
        raise QuinticError(
            f"config.json has {layers} layers, width {width}, {heads} heads, context {context} and "
            f"vocabulary {vocab_size}: all must be positive whole numbers"
        )
    switches: dict[str, Any] = {}
    if name != GPT2_CLASS:
        gelus = ("gelu_pytorch_tanh", "gelu_new")
        switches = {
            "activation": "gelu" if given["hidden_act"] in gelus else "relu2",
            "tied_head": given["tie_word_embeddings"],
            "qk_norm": name != ARCEE,
            "embed_norm": name == NANOCHAT,
            "logit_softcap": given.get("final_logit_softcapping"),
        }
    found = ModelConfig(
        architecture="gpt2" if name == GPT2_CLASS else "gpt",
        layers=layers,
        width=width,
        heads=heads,
        context=context,
        vocab_size=vocab_size,
        **switches,
    )
    expected = hf_config(found, vocab_size=vocab_size, eot_id=0)
    for key in _DEFAULTS[name]:
        if not _computes_the_same(key, given[key], expected[key], found):
            raise QuinticError(
                f"config.json has {key} {given[key]!r}, and quintic's model computes with "
                f"{expected[key]!r}: this {name} cannot be expressed"
            )
    return found


def model_class(config: Mapping[str, Any]) -> str:
    """Return the class that a `config.json` is of; raises `QuinticError` where it is not one of
    `MODEL_TYPES`."""
    names = config.get("architectures") or [
        name for name, kind in MODEL_TYPES.items() if kind == config.get("model_type")
    ]
    if len(names) != 1 or names[0] not in [*MODEL_TYPES]:  # it need not be text
        what = ", ".join(map(str, names)) or f"model_type {config.get('model_type')!r}"
        raise QuinticError(
            f"config.json is of {what}: quintic's models are those of {', '.join(MODEL_TYPES)}"
        )
    name: str = names[0]
    return name


def _computes_the_same(key: str, value: Any, expected: Any, config: ModelConfig) -> bool:
    if key == "rms_norm_eps":
        return isinstance(value, float) and 0 < value <= 1e-6  # nanochat's own is a float's, too
    same: dict[str, tuple[Any, ...]] = {
        "num_key_value_heads": (None,),
        "head_dim": (None,),
        "n_inner": (4 * config.width,),
        "activation_function": ("gelu_pytorch_tanh",),
        "hidden_act": ("gelu_new",) if config.activation == "gelu" else (),
    }
    return value == expected or value in same.get(key, ())


# The tensors --------------------------------------------------------------------------------------


def _parts(name: str, config: ModelConfig) -> Iterator[Part]:
    if name == QUINTIC:
        yield from (Part(ours, (ours,)) for ours, _ in meta_model(config).named_parameters())
    elif name == GPT2_CLASS:
        yield from _gpt2_parts(config)
    else:
        yield from _gpt_parts(name, config)


def _gpt2_parts(config: ModelConfig) -> Iterator[Part]:
    yield Part("transformer.wte.weight", ("embed.weight",))
    yield Part("transformer.wpe.weight", ("positions.weight",))
    for layer in range(config.layers):
        theirs, ours = f"transformer.h.{layer}", f"layers.{layer}"
        for kind, form, stacked in (
            ("weight", TRANSPOSED, STACKED_TRANSPOSED),
            ("bias", SAME, STACKED),
        ):
            qkv = tuple(f"{ours}.attention.{name}.{kind}" for name in "qkv")
            yield Part(f"{theirs}.ln_1.{kind}", (f"{ours}.attention_norm.{kind}",))
            yield Part(f"{theirs}.attn.c_attn.{kind}", qkv, stacked)
            yield Part(f"{theirs}.attn.c_proj.{kind}", (f"{ours}.attention.o.{kind}",), form)
            yield Part(f"{theirs}.ln_2.{kind}", (f"{ours}.mlp_norm.{kind}",))
            yield Part(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}.mlp.up.{kind}",), form)
            yield Part(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}.mlp.down.{kind}",), form)
    for kind in ("weight", "bias"):
        yield Part(f"transformer.ln_f.{kind}", (f"final_norm.{kind}",))


_NORMS = {
    APERTUS: ("attention_layernorm", "feedforward_layernorm"),
    ARCEE: ("input_layernorm", "post_attention_layernorm"),
    NANOCHAT: (),
}
_MLP = {
    APERTUS: ("up_proj", "down_proj"),
    ARCEE: ("up_proj", "down_proj"),
    NANOCHAT: ("fc1", "fc2"),
}


def _gpt_parts(name: str, config: ModelConfig) -> Iterator[Part]:
    turned = SAME if name == NANOCHAT else halves_swapped(config.heads)
    up, down = _MLP[name]
    yield Part("model.embed_tokens.weight", ("embed.weight",))
    for layer in range(config.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        for letter, form in (("q", turned), ("k", turned), ("v", SAME), ("o", SAME)):
            part = f"{ours}.attention.{letter}.weight"
            yield Part(f"{theirs}.self_attn.{letter}_proj.weight", (part,), form)
        yield Part(f"{theirs}.mlp.{up}.weight", (f"{ours}.mlp.up.weight",))
        yield Part(f"{theirs}.mlp.{down}.weight", (f"{ours}.mlp.down.weight",))
        for norm in _NORMS[name]:
            yield Part(f"{theirs}.{norm}.weight", (), gain=config.width)
        for norm in ("q_norm", "k_norm") if name == APERTUS else ():
            yield Part(f"{theirs}.self_attn.{norm}.weight", (), gain=config.head_width)
    if name != NANOCHAT:
        yield Part("model.norm.weight", (), gain=config.width)
    if not config.tied_head:
        yield Part(HEAD, ("head.weight",))


ROWS_OF_TOKENS = ("embed.weight", "head.weight", "value_embed.weight")


def to_hf(config: ModelConfig, tensors: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Return the tensors of transformers' class, made of a model's parameters by name.

    What has a row for each token is cut to the rows of the vocabulary; the softmax has fewer terms
    then, so that losses are a little lower than with the padding. A tied head is not among them.
    """
    cut = {name: tensors[name][:vocab_size] for name in ROWS_OF_TOKENS if name in tensors}
    return to_theirs(_parts(class_of(config), config), {**tensors, **cut})


def hf_shapes(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that a class has for a model."""
    theirs = to_theirs(_parts(name, config), dict(meta_model(config).named_parameters()))
    return {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def parameters_from_hf(
    name: str, config: ModelConfig, tensors: Mapping[str, Tensor], given_by: str = "config.json"
) -> dict[str, Tensor]:
    """Return a model's parameters by name, made of the tensors of a class: the inverse of `to_hf`.

    Raises `QuinticError` as `check_layers` and `check_tensors` do.
    """
    check_layers(config.layers, tensors, given_by)
    parts = list(_parts(name, config))
    gains = {part.theirs for part in parts if part.gain is not None}
    check_tensors(hf_shapes(name, config), tensors, given_by, ones=gains)
    return to_ours(parts, tensors)


def from_hf(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model that transformers builds from a `config.json` and tensors, as a config of
    quintic's and parameters by name: the inverse of `hf_config` and `to_hf`.

    The vocabulary is not padded: padding rows would be terms of every softmax. A tied head may be
    written a second time. Raises `QuinticError` as `model_config` does, and where tensors are
    missing, too many, of another shape, or gains other than ones, naming them.
    """
    name, found = model_class(config), model_config(config)
    if found.tied_head:
        parts = _parts(name, found)
        embedding = next(part.theirs for part in parts if part.ours == ("embed.weight",))
        tensors = without_tied_head(tensors, HEAD, embedding)
    return found, parameters_from_hf(name, found, tensors)

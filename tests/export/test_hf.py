"""`quintic export --to hf`: what is written, against transformers' own reading of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quintic.config import ModelConfig
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.export.export import export
from quintic.export.hf import class_of, from_hf, hf_config, to_hf
from quintic.export.source import Source, open_source
from quintic.export.verify import quintic_logits, sample_ids
from quintic.model.build import build_model

SMALL = ModelConfig(layers=2, width=32, heads=2, context=32, vocab_size=384)

HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("ApertusForCausalLM", {}),
    "untied": ("ApertusForCausalLM", {"tied_head": False}),
    "gelu": ("ApertusForCausalLM", {"activation": "gelu"}),
    "no qk_norm": ("ArceeForCausalLM", {"qk_norm": False}),
    "no qk_norm, gelu, untied": (
        "ArceeForCausalLM",
        {"qk_norm": False, "activation": "gelu", "tied_head": False},
    ),
    "embed_norm": ("NanoChatForCausalLM", {"embed_norm": True}),
    "embed_norm, softcap, gelu, untied": (
        "NanoChatForCausalLM",
        {"embed_norm": True, "logit_softcap": 10.0, "activation": "gelu", "tied_head": False},
    ),
    "a window as long as the context": ("ApertusForCausalLM", {"window": 32}),
    "gpt2": ("GPT2LMHeadModel", {"architecture": "gpt2"}),
}
"""Switches by name, with the class that holds a model with them."""


@pytest.fixture(scope="module")
def trained(text_run: Path) -> Source:
    """The source of a run whose vocabulary of 320 is padded to 384."""
    return open_source(text_run, Console(quiet=True))


def drawn(source: Source, config: ModelConfig) -> Source:
    """The same run with another model, none of whose parameters is zero or one."""
    model = build_model(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            own = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * own if parameter.ndim == 1 else 0.3 * own)
    return replace(source, model=model.eval())


@pytest.mark.parametrize("switches", HELD)
def test_transformers_computes_the_logits_of_every_switch_that_a_class_holds(
    switches: str, trained: Source, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    name, changes = HELD[switches]
    source = drawn(trained, replace(SMALL, **changes))
    said: list[str] = []
    export(source, "hf", tmp_path / "out", said.append)
    assert any(line.startswith("logits of transformers on 2 x 32 tokens differ") for line in said)
    assert any(line.startswith("ids of transformers on 5 texts equal quintic's") for line in said)
    # Once more by hand: what verifies might be wrong.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == name
    assert model.dtype == torch.float32
    ids_BT = sample_ids(source)
    with torch.no_grad():
        expected, found = quintic_logits(source, ids_BT), model(ids_BT).logits
    assert found.shape == (2, 32, 320)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("switches", HELD)
def test_every_field_of_the_class_is_written_and_read_as_written(
    switches: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    name, changes = HELD[switches]
    written = hf_config(replace(SMALL, **changes), vocab_size=320, eot_id=7)
    assert written["architectures"] == [name]
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert {key for key in type(config).__annotations__ if key[0] != "_"} - {
        *("model_type", "attribute_map", "keys_to_ignore_at_inference", "default_theta"),
        *("base_model_tp_plan", "base_model_pp_plan"),
    } <= written.keys()
    read = {key: getattr(config, key) for key in written}
    assert {**read, "dtype": "float32"} == written


@pytest.mark.parametrize("switches", HELD)
def test_the_way_there_and_back_is_exact_and_cuts_the_padding(
    switches: str, trained: Source
) -> None:
    config = replace(SMALL, **HELD[switches][1])
    ours = drawn(trained, config).tensors
    theirs = to_hf(config, ours, 320)
    written = hf_config(config, vocab_size=320, eot_id=0)
    back_config, back = from_hf(json.loads(json.dumps(written)), theirs)
    assert back_config == replace(config, vocab_size=320, window=None)
    assert back.keys() == ours.keys()
    for name, value in ours.items():
        expected = value[:320] if name in ("embed.weight", "head.weight") else value
        assert torch.equal(back[name], expected), name
    again = to_hf(back_config, back, 320)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_embeddings": 1}, "model.value_embeddings 1"),
        ({"x0_skip": True}, "model.x0_skip True"),
        ({"unet_skips": True}, "model.unet_skips True"),
        ({"window": 16}, "model.window 16"),
        ({"positions": "learned"}, "model.positions learned"),
        ({"norm": "layernorm"}, "model.norm layernorm"),
        ({"logit_softcap": 15.0}, "model.logit_softcap 15 without model.embed_norm"),
        ({"embed_norm": True, "qk_norm": False}, "model.embed_norm True without model.qk_norm"),
    ],
)
def test_a_switch_that_no_class_holds_is_refused_by_name(
    changes: Mapping[str, Any], message: str, trained: Source, tmp_path: Path
) -> None:
    config = replace(SMALL, **changes)
    assert class_of(config) is None
    with pytest.raises(QuinticError, match=message):
        export(drawn(trained, config), "hf", tmp_path / "deep" / "out", print)
    assert not list(tmp_path.iterdir())

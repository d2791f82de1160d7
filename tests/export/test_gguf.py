"""`quintic export --to gguf`: the file's keys and tensors, and what is not written at all."""

from __future__ import annotations

import importlib.machinery
import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintic.config import Imported, ModelConfig
from quintic.console import Console
from quintic.data.bpe_tokenizer import BpeTokenizer, train_bpe
from quintic.data.load_tokenizer import load_tokenizer
from quintic.errors import QuinticError
from quintic.export.export import export
from quintic.export.gguf import (
    from_gguf,
    held_model,
    is_cut_as_gpt2,
    model_keys,
    to_gguf,
    tokenizer_keys,
    unheld_switches,
)
from quintic.export.gguf_file import read_file, verify_gguf
from quintic.export.hf import to_hf
from quintic.export.source import Source, open_source
from quintic.model.build import build_model
from tests.conftest import refusal
from tests.export.test_hf import SMALL, drawn

HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("apertus", {}),
    "untied": ("apertus", {"tied_head": False}),
    "embed_norm": ("apertus", {"embed_norm": True}),
    "no qk_norm": ("arcee", {"qk_norm": False}),
    "gpt2": ("gpt2", {"architecture": "gpt2"}),
}
"""Switches by name, with the architecture that holds a model with them."""


@pytest.fixture(scope="module")
def trained(text_run: Path) -> Source:
    """The source of a run whose vocabulary of 320 is padded to 384."""
    return open_source(text_run, Console(quiet=True))


@pytest.mark.parametrize("switches", HELD)
def test_the_file_has_the_model_bit_for_bit(switches: str, trained: Source, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    name, changes = HELD[switches]
    source = drawn(trained, replace(SMALL, **changes))
    said: list[str] = []
    export(source, "gguf", tmp_path / "out", said.append)
    assert any(line.startswith("logits of quintic with the weights of the file") for line in said)
    keys, tensors = read_file(tmp_path / "out" / "model-f32.gguf")
    assert keys["general.architecture"] == name
    held, expected = held_model(source.config, source.tensors, 320)
    config, found = from_gguf(keys, tensors)
    assert config == held and found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "loss.png",
        "model-f32.gguf",
    ]


class FakeLlama:
    """llama-cpp-python's class, which computes with quintic what the file holds."""

    tokenizer: BpeTokenizer
    off = 1.0

    def __init__(self, path: str, **options: Any) -> None:
        assert options["type_k"] == options["type_v"] == 0 and options["logits_all"]
        config, tensors = from_gguf(*read_file(Path(path)))
        self.model = build_model(config)
        self.model.load_state_dict(tensors)

    def reset(self) -> None:
        self.scores = torch.empty(0).numpy()

    def eval(self, ids: list[int]) -> None:
        with torch.no_grad():
            self.scores = (self.off * self.model(torch.tensor([ids])))[0].numpy()

    def tokenize(self, text: bytes, *, add_bos: bool, special: bool) -> list[int]:
        assert not special
        return [self.tokenizer.eot_id] * add_bos + self.tokenizer.encode(text.decode())


@pytest.fixture
def llama_cpp(trained: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A source whose text llama.cpp cuts alike, beside a llama-cpp-python that agrees with it."""
    pytest.importorskip("gguf")
    own = train_bpe([Path(__file__).read_text()], 320, cut_as_gpt2=True)
    fake = type("Llama", (FakeLlama,), {"tokenizer": own})
    module = types.ModuleType("llama_cpp")
    module.__spec__ = importlib.machinery.ModuleSpec("llama_cpp", None, origin="a test")
    vars(module).update(Llama=fake, __version__="0.0.0")
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return drawn(replace(trained, tokenizer=own), SMALL)


def test_what_llama_cpp_computes_is_compared_and_another_model_is_removed(
    llama_cpp: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    export(llama_cpp, "gguf", tmp_path / "out", said.append)
    assert said[-2].startswith("logits of llama.cpp on 2 x 32 tokens differ from quintic's by at ")
    assert said[-1].startswith("ids of llama.cpp on 5 texts equal quintic's, ")
    fake = sys.modules["llama_cpp"].Llama
    wrong: list[tuple[str, Any, str]] = [
        ("off", 1.001, "which is more than rounding: the export was removed"),
        ("tokenize", lambda *_, add_bos, special: [7], r"begins a text with the tokens \[7\]"),
        ("reset", None, r"llama-cpp-python 0\.0\.0 does not load what was written"),
    ]
    for name, value, told in wrong:
        with monkeypatch.context() as patch:
            patch.setattr(fake, name, value)
            with pytest.raises(QuinticError, match=told):
                export(llama_cpp, "gguf", tmp_path / "a/out", said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_llama_cpp_it_is_said(
    trained: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('no libllama')")
    for number, (folder, told) in enumerate(
        [
            ("nowhere", "that needs the package llama-cpp-python"),
            (".", "be imported (RuntimeError: no libllama)"),
        ]
    ):
        monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
        monkeypatch.setattr(sys, "path", [str(tmp_path / folder), *without("llama_cpp")])
        said: list[str] = []
        export(drawn(trained, SMALL), "gguf", tmp_path / f"out{number}", said.append)
        assert said[-1].startswith("not loaded in llama.cpp: ") and told in said[-1]


def without(module: str) -> list[str]:
    """The places of modules but those that have this one."""
    return [place for place in sys.path if not (Path(place) / module).exists()]


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("switches", HELD)
def test_llama_cpp_computes_the_model(
    switches: str, dtype: str, trained: Source, tmp_path: Path
) -> None:
    """Where llama-cpp-python is installed, which takes an hour to build."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    own = train_bpe([Path(__file__).read_text()], 320, cut_as_gpt2=True)
    source = drawn(replace(trained, tokenizer=own), replace(SMALL, **HELD[switches][1]))
    said: list[str] = []
    export(source, "gguf", tmp_path / "out", said.append, dtype=dtype)
    assert "logits of llama.cpp" in said[-2] and "ids of llama.cpp on 5 texts" in said[-1]


def test_apertus_has_the_tensors_that_transformers_has_under_other_names(trained: Source) -> None:
    # Those are compared with transformers' logits (tests/export/test_hf.py), and llama.cpp loads
    # what its converter makes of them.
    source = drawn(trained, SMALL)
    found = to_gguf(*held_model(SMALL, source.tensors, 320))
    names = {
        "model.embed_tokens": ["token_embd", "output"],  # a tied head is written a second time
        "model.norm": ["output_norm"],
    }
    for layer in range(SMALL.layers):
        for theirs, name in {
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "self_attn.q_norm": "attn_q_norm",
            "self_attn.k_norm": "attn_k_norm",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
            "attention_layernorm": "attn_norm",
            "feedforward_layernorm": "ffn_norm",
        }.items():
            names[f"model.layers.{layer}.{theirs}"] = [f"blk.{layer}.{name}"]
    expected: dict[str, Tensor] = {}
    for key, tensor in to_hf(SMALL, source.tensors, 320).items():
        expected |= {f"{name}.weight": tensor for name in names[key.removesuffix(".weight")]}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_arcee_rotates_neighbours_as_the_original_llama(trained: Source) -> None:
    config = replace(SMALL, qk_norm=False)
    source = drawn(trained, config)
    rows = source.tensors["layers.0.attention.q.weight"]
    found = to_gguf(*held_model(config, source.tensors, 320))["blk.0.attn_q.weight"]
    half = SMALL.head_width // 2
    for head in range(SMALL.heads):
        first = head * SMALL.head_width
        for i in range(half):
            # Coordinates i and i + half of a head are a plane, which is turned the other way.
            assert torch.equal(found[first + 2 * i], rows[first + half + i])
            assert torch.equal(found[first + 2 * i + 1], rows[first + i])


def test_the_parameters_of_xielu_make_it_squared_relu() -> None:
    keys = model_keys(held_model(SMALL, {"embed.weight": torch.zeros(384, 32)}, 320)[0])
    softplus = torch.nn.functional.softplus
    alpha_p, alpha_n, beta, eps = (
        torch.tensor(keys[f"xielu.{key}"], dtype=torch.float64)[0]
        for key in ("alpha_p", "alpha_n", "beta", "eps")
    )
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    above = softplus(alpha_p) * x * x + beta * x
    below = (torch.expm1(torch.minimum(x, eps)) - x) * (beta + softplus(alpha_n)) + beta * x
    torch.testing.assert_close(torch.where(x > 0, above, below), x.relu().square())
    assert len(keys["xielu.beta"]) == SMALL.layers
    assert keys["apertus.rope.dimension_count"] == SMALL.head_width


def test_the_vocabulary_has_end_of_text_as_a_control_token(
    trained: Source, gpt2_vocabulary: None
) -> None:
    tokenizer = trained.tokenizer
    keys = tokenizer_keys(tokenizer)
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == 320
    assert keys["tokenizer.ggml.token_type"].index(3) == tokenizer.eot_id
    assert keys["tokenizer.ggml.bos_token_id"] == keys["tokenizer.ggml.eos_token_id"]
    assert keys["tokenizer.ggml.tokens"][tokenizer.eot_id] == "<|endoftext|>"
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert is_cut_as_gpt2(load_tokenizer("gpt2"))


def test_only_what_is_cut_as_gpt2_does_is_not_warned_of(trained: Source, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    texts = [Path(__file__).read_text()]
    named = train_bpe(texts, 320, cut_as_gpt2=True)
    content = json.loads(named.definition)
    content["model"]["ignore_merges"] = True
    found = {}
    for name, tokenizer in {
        "own": train_bpe(texts, 320),
        "gpt2": named,
        "ignores merges": BpeTokenizer(json.dumps(content), source="a test"),
    }.items():
        said: list[str] = []
        source = drawn(replace(trained, tokenizer=tokenizer), SMALL)
        export(source, "gguf", tmp_path / name, said.append)
        found[name] = any("llama.cpp cuts text otherwise" in line for line in said)
    assert found == {"own": True, "gpt2": False, "ignores merges": True}


@pytest.mark.parametrize(("dtype", "difference"), [("f16", 1e-3), ("q8_0", 1e-2)])
def test_stored_in_fewer_bits_it_says_what_that_costs(
    dtype: str, difference: float, text_run: Path, trained: Source, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    said: list[str] = []
    export(trained, "gguf", tmp_path / "out", said.append, dtype=dtype)
    assert any(line.startswith(f"{dtype} changes logits on 2 x 32 tokens by") for line in said)
    (loss,) = (line for line in said if line.startswith("loss on the first "))
    assert abs(float(loss.rsplit("(", 1)[1].removesuffix(")"))) < difference
    _, tensors = read_file(tmp_path / "out" / f"model-{dtype}.gguf")
    _, whole = held_model(trained.config, trained.tensors, 320)
    embedding = tensors["token_embd.weight"]
    assert not torch.equal(embedding, whole["embed.weight"])
    torch.testing.assert_close(embedding, whole["embed.weight"], rtol=0, atol=difference)


def test_that_an_imported_model_has_no_data_is_said(trained: Source, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    config = replace(trained.trained.config, imported=Imported("hub:a/b", None, "hf", "0"))
    said: list[str] = []
    source = replace(trained, trained=replace(trained.trained, config=config))
    export(source, "gguf", tmp_path / "out", said.append, dtype="f16")
    (line,) = (line for line in said if line.startswith("loss "))
    assert line.endswith("was imported, and its data is not known here")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x0_skip": True}, "model.x0_skip True"),
        ({"unet_skips": True}, "model.unet_skips True"),
        ({"value_embeddings": 1}, "model.value_embeddings 1"),
        ({"token_smear": True}, "model.token_smear True"),
        ({"key_smear": True}, "model.key_smear True"),
        ({"bigram_embeddings": 8}, "model.bigram_embeddings 8"),
        ({"window": 8}, "model.window 8"),
        ({"positions": "learned"}, "model.positions learned"),
        ({"norm": "layernorm"}, "model.norm layernorm"),
        ({"activation": "gelu"}, "model.activation gelu"),
        ({"embed_norm": True, "logit_softcap": 15.0}, "model.logit_softcap 15.0"),
    ],
)
def test_what_no_architecture_holds_is_named_and_nothing_is_written(
    changes: dict[str, Any], named: str, trained: Source, tmp_path: Path
) -> None:
    config: ModelConfig = replace(SMALL, **changes)
    assert unheld_switches(config) == [named]
    pytest.importorskip("gguf")
    with pytest.raises(QuinticError, match=r"no architecture of llama\.cpp computes that"):
        export(drawn(trained, config), "gguf", tmp_path / "a/out", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_without_merges_is_refused_and_nothing_is_written(
    trained: Source, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    of_bytes = replace(trained, tokenizer=train_bpe(["a"], 257))
    with pytest.raises(QuinticError, match=r"without merges, .* of 257 tokens.*use --to hf"):
        export(of_bytes, "gguf", tmp_path / "a/out", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_another_model_read_back_is_noticed(trained: Source) -> None:
    written = held_model(trained.config, trained.tensors, 320)
    config, tensors = written
    with pytest.raises(QuinticError, match=r"another model.s sizes"):
        verify_gguf(trained, written, (replace(config, heads=1), tensors), "f32")
    changed = {**tensors, "embed.weight": tensors["embed.weight"] * (1 + 1e-6)}
    with pytest.raises(QuinticError, match=r"embed\.weight read back is not what was written"):
        verify_gguf(trained, written, (config, changed), "f32")
    assert math.isfinite(tensors["embed.weight"].sum().item())


def test_a_type_of_storage_is_for_gguf_and_its_blocks_fill_a_row(
    text_run: Path, trained: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(["export", text_run, "--to", "hf", "--dtype", "f16"], capsys)
    assert "--dtype" in line and "gguf" in line
    pytest.importorskip("gguf")
    narrow = drawn(trained, replace(SMALL, width=24))
    with pytest.raises(QuinticError, match=r"--dtype q8_0 stores .* in blocks of 32, .* is 24"):
        export(narrow, "gguf", tmp_path / "out", lambda line: None, dtype="q8_0")

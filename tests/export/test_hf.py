"""`quintic export --to hf`: what is written, against transformers' own reading of it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from quintic.cli.main import main
from quintic.config import ModelConfig
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.export.export import export
from quintic.export.hf import from_hf, hf_config, to_hf
from quintic.export.source import Source, open_source
from quintic.export.verify import compare_ids, quintic_logits, sample_ids
from quintic.generate import generate_ids
from quintic.metrics_file import read_records
from quintic.model.build import build_model
from quintic.trained import load_trained
from tests.conftest import refusal, tiny_arguments
from tests.data.hub_server import HubServer

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
    "a mask that hides nothing of one document": (
        "ApertusForCausalLM",
        {"document_mask": True, "eot_id": 0},
    ),
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
    held = replace(config, window=None, document_mask=False, eot_id=None)
    assert back_config == replace(held, vocab_size=320)
    assert back.keys() == ours.keys()
    for name, value in ours.items():
        expected = value[:320] if name in ("embed.weight", "head.weight") else value
        assert torch.equal(back[name], expected), name
    again = to_hf(back_config, back, 320)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


# The folder ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(text_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command wrote of a run, and what it said; tests must not change it."""
    out = tmp_path_factory.mktemp("exported") / "deep" / "out"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(["export", str(text_run), "--to", "hf", "--out", str(out)])
    return out, " ".join(said.getvalue().split())


def test_the_command_says_what_it_verified_and_what_differs(exported: tuple[Path, str]) -> None:
    out, said = exported
    assert "the 64 rows that pad the vocabulary are cut off" in said
    if find_spec("transformers"):
        assert "logits of transformers on 2 x 32 tokens differ from quintic's by at most" in said
        assert "ids of transformers on 5 texts equal quintic's" in said
    else:
        assert "not verified: that needs the package transformers" in said
    assert said.endswith(f"written {out}".replace("\n", " "))


def test_the_weights_are_those_of_the_checkpoint_bit_for_bit(
    exported: tuple[Path, str], text_run: Path
) -> None:
    out, _ = exported
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert "lm_head.weight" not in theirs
    _, back = from_hf(json.loads((out / "config.json").read_text()), theirs)
    checkpoint = next(iter((text_run / "checkpoints" / "step-00000012").glob("*.safetensors")))
    saved = {n: t for n, t in load_file(checkpoint).items() if n.startswith("model.")}
    assert saved.keys() == {f"model.{name}" for name in back}
    for name, value in back.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, saved[f"model.{name}"][: len(value)]), name


def test_whoever_may_read_the_config_may_read_the_weights(exported: tuple[Path, str]) -> None:
    out, _ = exported
    assert {oct(path.stat().st_mode) for path in out.iterdir()} == {
        oct((out / "config.json").stat().st_mode)
    }


def test_end_of_text_begins_ends_and_pads(exported: tuple[Path, str]) -> None:
    out, _ = exported
    assert json.loads((out / "generation_config.json").read_text()) == {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 0, None)


def test_the_vocabulary_of_a_run_is_copied_as_it_is(
    exported: tuple[Path, str], text_run: Path
) -> None:
    out, _ = exported
    assert (out / "tokenizer.json").read_bytes() == (text_run / "tokenizer.json").read_bytes()


def test_the_card_says_what_it_is_and_what_it_scores(
    exported: tuple[Path, str], text_run: Path, trained: Source
) -> None:
    out, _ = exported
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\nlibrary_name: transformers\n")
    assert "Its class is `ApertusForCausalLM`" in card
    assert "| recipe | `laptop` |" in card
    assert "| steps | 12 of 12 |" in card
    assert "| vocabulary | a byte-level BPE of its own, 320 tokens |" in card
    assert str(text_run.parent) not in card  # nor any other path of the trainer's disk
    assert (out / "loss.png").read_bytes() == (text_run / "loss.png").read_bytes()
    last = [r for r in read_records(text_run / "metrics.jsonl") if r.get("val_loss") is not None]
    assert f"| 12 | 3,072 | {last[-1]['val_loss']:.4f} |" in card
    loss, bits = map(float, re.findall(r"loss (\d\.\d+) nats per token, (\d\.\d+) bits", card)[0])
    # On the same 512 tokens, without the padding's 64 terms in the softmax.
    ids = trained.trained.open_data(Console(quiet=True)).val.read(0, 513)
    inputs_BT, targets_BT = (torch.from_numpy(ids[i : i + 512]).view(16, 32) for i in (0, 1))
    with torch.no_grad():
        logits_NV = quintic_logits(trained, inputs_BT).flatten(0, 1)
    nats_N = F.cross_entropy(logits_NV, targets_BT.flatten(), reduction="none")
    assert loss == pytest.approx(nats_N.mean().item(), abs=1e-4)
    assert 0 < last[-1]["val_loss"] - loss < 0.3
    is_text_N = targets_BT.flatten() != 0
    text = trained.tokenizer.decode_bytes(targets_BT.flatten().tolist())
    expected = nats_N[is_text_N].sum().item() / math.log(2) / len(text)
    assert bits == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("switches", ["defaults", "embed_norm", "gpt2"])
def test_greedy_text_is_quintics(switches: str, trained: Source, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = drawn(trained, replace(SMALL, **HELD[switches][1]))
    export(source, "hf", tmp_path / "out", lambda line: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = [source.tokenizer.eot_id, *source.tokenizer.encode("def f")]
    ours = list(
        generate_ids(
            source.model,
            prompt,
            tokens=16,
            temperature=0,
            top_k=None,
            seed=0,
            vocab_size=320,
            stop_id=source.tokenizer.eot_id,
        )
    )
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    assert theirs[0, len(prompt) :].tolist() == ours + [0] * (len(ours) < 16)
    assert len(set(ours)) > 1


def test_a_run_exports_itself_at_its_end_and_is_whole_where_it_cannot(
    text_data: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--model.vocab-size", "None", "--train.export-at-end", "hf", "--train.steps", "4"]
    main([*tiny_arguments(text_data), *options, "--out", str(run)])
    assert f"export  {run}/export/hf" in "".join(capsys.readouterr().out.split("\n"))
    assert (run / "export" / "hf" / "model.safetensors").exists()
    other = tmp_path / "other"
    main([*tiny_arguments(tiny_data), *options[2:], "--out", str(other)])
    said = " ".join(capsys.readouterr().out.split())
    assert f"not exported: {other} does not say which tokenizer it was trained with" in said
    assert not (other / "export").exists()
    assert load_trained(other, device="cpu").checkpoint.state["step"] == 4


# What is refused, and what is left then -----------------------------------------------------------


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((text_run / "config.json").read_bytes())
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    out = ["--out", tmp_path / "deep" / "out"]
    for arguments, expected in (
        ([bare, "--to", "hf", *out], f"{bare} has no checkpoint to load"),
        ([full, "--to", "hf", *out], f"{full} holds no run"),
        ([text_run, "--to", "onyx", *out], "--to is 'onyx': it must be one of hf"),
        ([text_run, *out], "export needs --to, the target: the tool that is to load it"),
        ([text_run, "--to", "hf", "--out", full], f"{full} exists and is not an empty folder"),
        (
            [text_run, "--to", "hf", "--out", full / "notes.txt"],
            f"{full / 'notes.txt'} exists and is not an empty folder",
        ),
        ([text_run, "--to", "hf", *out, "--push", "me/mine"], "write hub:OWNER/NAME"),
        ([text_run, "--to", "hf", *out, "--push", "hub:me/mine@v1"], "names a revision"),
    ):
        assert expected in refusal(["export", *arguments], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_transformers_computes_otherwise_is_removed(
    trained: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")

    def without_the_swap(*arguments: Any) -> dict[str, torch.Tensor]:
        tensors = to_hf(*arguments)
        name = "model.layers.0.self_attn.q_proj.weight"
        return {**tensors, name: trained.tensors["layers.0.attention.q.weight"]}

    monkeypatch.setattr("quintic.export.hf_folder.to_hf", without_the_swap)
    with pytest.raises(QuinticError, match="which is more than rounding: the export was removed"):
        export(drawn(trained, SMALL), "hf", tmp_path / "deep" / "out", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_transformers_does_not_know_is_named_and_the_export_removed(
    trained: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")

    def with_another(*arguments: Any) -> dict[str, torch.Tensor]:
        return {**to_hf(*arguments), "model.another.weight": torch.ones(3)}

    monkeypatch.setattr("quintic.export.hf_folder.to_hf", with_another)
    with pytest.raises(QuinticError, match=r"ValueError: model\.another\.weight \(unexpected_keys"):
        export(trained, "hf", tmp_path / "out", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_an_empty_folder_as_it_was(
    trained: Source, tmp_path: Path
) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        export(trained, "hf", out, interrupt)
    assert list(tmp_path.rglob("*")) == [out]
    export(trained, "hf", out, lambda line: None)
    assert (out / "config.json").exists()


def test_a_full_disk_is_one_line_with_the_name_of_the_file_and_leaves_nothing(
    text_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        text = "Error while serializing: I/O error: No space left on device (os error 28)"
        raise SafetensorError(text)

    monkeypatch.setattr("quintic.export.hf_folder.save_file", fail)
    out = tmp_path / "out"
    line = refusal(["export", text_run, "--to", "hf", "--out", out], capsys)
    assert line == f"{out}/model.safetensors: No space left on device: make room"
    assert not list(tmp_path.iterdir())


def test_without_transformers_it_is_written_and_said_to_be_unverified(
    trained: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said: list[str] = []
    export(trained, "hf", tmp_path / "out", said.append)
    assert said[-1].startswith("not verified: that needs the package transformers, pip install")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_another_tokenizer_is_refused_with_the_first_text_it_cuts_otherwise(
    trained: Source,
) -> None:
    def encode(text: str) -> list[int]:
        return trained.tokenizer.encode(text.replace("  ", " "))

    with pytest.raises(QuinticError, match=r"tool cuts 'def f\(x, \*, y=1\.5e-3' into the tokens"):
        compare_ids(trained, encode, "tool")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu', and quintic's model computes with 'relu2'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
        ({"num_key_value_heads": 1}, "num_key_value_heads 1"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"architectures": ["LlamaForCausalLM"]}, "config.json is of LlamaForCausalLM"),
        ({"hidden_size": 0}, "all must be positive"),
        ({"num_attention_heads": 2.0}, "2.0 heads, context 32 and vocabulary 320: all must be "),
        ({"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight is missing"),
        ({"vocab_size": 321}, "model.embed_tokens.weight is (320, 32) where"),
        ({"num_hidden_layers": 1}, "model.layers.1.self_attn.q_proj.weight is too much"),
    ],
)
def test_what_quintic_cannot_compute_is_not_read_back(
    change: Mapping[str, Any], expected: str, trained: Source
) -> None:
    written = hf_config(SMALL, vocab_size=320, eot_id=0)
    tensors = to_hf(SMALL, drawn(trained, SMALL).tensors, 320)
    with pytest.raises(QuinticError, match=re.escape(expected)):
        from_hf({**written, **change}, tensors)


def test_gains_other_than_ones_are_not_read_back(trained: Source) -> None:
    written = hf_config(SMALL, vocab_size=320, eot_id=0)
    tensors = to_hf(SMALL, drawn(trained, SMALL).tensors, 320)
    tensors["model.norm.weight"][3] = 2
    with pytest.raises(QuinticError, match=r"model\.norm\.weight is not all ones"):
        from_hf(written, tensors)


def test_a_field_left_out_is_the_default_of_the_class(trained: Source) -> None:
    written = hf_config(SMALL, vocab_size=320, eot_id=0)
    del written["hidden_act"]
    with pytest.raises(QuinticError, match="hidden_act 'xielu'"):
        from_hf(written, to_hf(SMALL, drawn(trained, SMALL).tensors, 320))


# The hub ------------------------------------------------------------------------------------------


def test_what_is_pushed_is_the_folder_and_a_card_of_ones_own_stays(
    text_run: Path,
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    out = tmp_path / "out"
    command = ["export", str(text_run), "--to", "hf", "--push", "hub:me/mine", "--out"]
    main([*command, str(out)])
    assert f"pushed to {hub.url}/me/mine\n" in capsys.readouterr().out
    pushed = hub.repos["me/mine"].files
    assert pushed == {path.name: path.read_bytes() for path in out.iterdir()}
    hub.repos["me/mine"].files["README.md"] = b"my own"
    main([*command, str(tmp_path / "again")])
    assert "has a card of its own, which stays" in capsys.readouterr().out
    assert hub.repos["me/mine"].files["README.md"] == b"my own"


def test_a_push_that_the_hub_refuses_leaves_the_export(
    text_run: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = refusal(
        ["export", text_run, "--to", "hf", "--out", out, "--push", "hub:me/mine"], capsys
    )
    assert "hub:me/mine cannot be pushed to" in line and "HTTP 401" in line
    assert line.endswith(f"; {out} is whole, and the same command uploads it")
    assert (out / "model.safetensors").exists()


def test_the_same_command_uploads_an_export_that_is_there_and_no_other(
    text_run: Path,
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["export", str(text_run), "--to", "hf", "--out", str(out)]
    main(command)
    with (out / "README.md").open("a") as card:
        card.write("\nWhat it is for.\n")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert refusal(command, capsys).startswith(f"{out} exists")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    main([*command, "--push", "hub:me/mine"])
    assert f"{out} is this export already" in capsys.readouterr().out
    assert hub.repos["me/mine"].files == before
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "config.json").write_text("{}")
    line = refusal([*command, "--push", "hub:me/mine"], capsys)
    assert f"{out} is not what {text_run} is exported as now (config.json differs)" in line
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

"""`quintic import`: files of every format, made here, against models written out by hand."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from quintic.checkpoint import load_tensors
from quintic.config import ModelConfig
from quintic.console import Console
from quintic.data.gpt2_tokenizer import Gpt2Tokenizer
from quintic.data.load_tokenizer import tokenizer_info
from quintic.errors import QuinticError
from quintic.export.export import export
from quintic.export.hf import class_of
from quintic.export.remote_code import QUINTIC
from quintic.export.source import open_source
from quintic.export.tokenizer import tokenizer_json
from quintic.imports.source import read_model
from quintic.run_dir import read_config
from quintic.tasks.score import read_scores
from quintic.trained import load_trained
from tests.conftest import flags_of, main, refusal, tiny_options
from tests.data.hub_server import HubServer, Repo
from tests.export.test_hf import HELD, SMALL, drawn
from tests.export.test_remote_code import EVERY
from tests.tasks.material import write_task

Capture = pytest.CaptureFixture[str]

L, D, H, T, V = 2, 32, 2, 32, 320
"""Layers, width, heads, context and vocabulary, the one of `text_run`, of all models here."""
SIZES = {"n_layer": L, "n_embd": D, "n_head": H, "block_size": T, "vocab_size": V}
IDS_BT = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(2))


def gpt2_tensors(vocab_size: int = V) -> dict[str, Tensor]:
    """GPT-2's tensors as nanoGPT names them, drawn; matrices are (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab_size, D)}
    shapes["transformer.wpe.weight"] = (T, D)
    for layer in range(L):
        block = {
            **{f"ln_{i}.{kind}": (D,) for i in (1, 2) for kind in ("weight", "bias")},
            **{"attn.c_attn.weight": (3 * D, D), "attn.c_attn.bias": (3 * D,)},
            **{"attn.c_proj.weight": (D, D), "attn.c_proj.bias": (D,)},
            **{"mlp.c_fc.weight": (4 * D, D), "mlp.c_fc.bias": (4 * D,)},
            **{"mlp.c_proj.weight": (D, 4 * D), "mlp.c_proj.bias": (D,)},
        }
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {"transformer.ln_f.weight": (D,), "transformer.ln_f.bias": (D,)}
    return draw(shapes)


def modded_tensors() -> dict[str, Tensor]:
    """The tensors of modded-nanogpt's record of 2024-10-14, drawn, without the head's name."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (V, D)}
    for layer in range(L):
        square = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj")
        block = {**dict.fromkeys(square, (D, D)), "mlp.c_fc": (4 * D, D), "mlp.c_proj": (D, 4 * D)}
        shapes |= {f"transformer.h.{layer}.{n}.weight": shape for n, shape in block.items()}
    return draw(shapes)


def draw(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def heads_of(x_BTD: Tensor) -> Any:
    return x_BTD.unflatten(-1, (H, -1)).transpose(1, 2)


def attention(q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor) -> Any:
    q, k, v = map(heads_of, (q_BTD, k_BTD, v_BTD))
    scores = q @ k.transpose(-1, -2) / (D // H) ** 0.5
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    p = scores.masked_fill(later, float("-inf")).softmax(-1)
    return (p @ v).transpose(1, 2).flatten(-2)


def gpt2_logits(w: Mapping[str, Tensor], gelu: str = "tanh") -> Tensor:
    """The logits of GPT-2 on `IDS_BT`, written out from Radford et al. (2019)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["transformer.wte.weight"][IDS_BT] + w["transformer.wpe.weight"][:T]
    for layer in range(L):
        block = f"transformer.h.{layer}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, dim=-1)
        x = x + linear(attention(q, k, v), f"{block}.attn.c_proj")
        h = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate=gelu)
        x = x + linear(h, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


def modded_logits(w: Mapping[str, Tensor], head: Tensor | None = None) -> Tensor:
    """The logits of the record's model on `IDS_BT`; with a head of its own those of 2024-11-03,
    which norms the embedded tokens."""

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    half = D // H // 2
    angle_TK = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(half) / half))
    cos, sin = angle_TK.cos(), angle_TK.sin()

    def turned(x_BTD: Tensor) -> Tensor:
        x1, x2 = x_BTD.unflatten(-1, (H, -1)).transpose(1, 2).chunk(2, -1)
        y = torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), -1)
        return norm(y).transpose(1, 2).flatten(-2)

    x = w["transformer.wte.weight"][IDS_BT]
    x = x if head is None else norm(x)
    for layer in range(L):
        m = {n: w[f"transformer.h.{layer}.attn.c_{n}.weight"].T for n in ("q", "k", "v", "proj")}
        n = norm(x)
        x = x + attention(turned(n @ m["q"]), turned(n @ m["k"]), n @ m["v"]) @ m["proj"]
        fc, proj = (w[f"transformer.h.{layer}.mlp.c_{name}.weight"].T for name in ("fc", "proj"))
        x = x + F.relu(norm(x) @ fc).square() @ proj
    return norm(x) @ (w["transformer.wte.weight"] if head is None else head).T


# The files ----------------------------------------------------------------------------------------

GPT2_CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    **{"n_layer": L, "n_embd": D, "n_head": H, "n_positions": T, "n_ctx": T, "vocab_size": V},
}


def write_hf(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Path
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: x.contiguous() for n, x in tensors.items()}, folder / "model.safetensors")
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


def transposed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices as transformers' Conv1D has them."""
    tied = (".wte.", ".wpe.")
    return {
        n: x.T if x.ndim == 2 and not any(t in n for t in tied) else x for n, x in tensors.items()
    }


def write_nanogpt(path: Path, tensors: Mapping[str, Tensor], **args: Any) -> Path:
    state = {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}
    torch.save(
        {
            "model": {f"_orig_mod.{name}": x for name, x in state.items()},
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
            "model_args": {**SIZES, "dropout": 0.0, "bias": True, **args},
            "iter_num": 2000,
            "best_val_loss": torch.tensor(3.25),
            "config": {"out_dir": "out"},
        },
        path,
    )
    return path


LLMC_ORDER = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"),
    *("attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)


def write_llmc(path: Path, tensors: Mapping[str, Tensor], version: int = 3) -> Path:
    padding = torch.full((64, D), 7.0)  # llm.c's are zeros; ours must not matter
    embedding = torch.cat((tensors["transformer.wte.weight"], padding))
    names = [f"transformer.h.{layer}.{kind}" for kind in LLMC_ORDER for layer in range(L)]
    names = ["transformer.wpe.weight", *names, "transformer.ln_f.weight", "transformer.ln_f.bias"]
    header = struct.pack("<256i", 20240326, version, T, V, L, H, D, V + 64, *[0] * 248)
    body = torch.cat([embedding.flatten(), *(tensors[name].flatten() for name in names)])
    raw = body.bfloat16().view(torch.int16) if version == 5 else body
    path.write_bytes(header + raw.numpy().tobytes())
    return path


CODE = """
class Hyperparameters:
    sequence_length : int = 32 # sequence length, in tokens
class GPTConfig:
    n_head : int = 6
model = GPT(GPTConfig(vocab_size=num_vocab, n_layer=2, n_head=2, n_embd=32))
"""


def write_modded(
    path: Path, tensors: Mapping[str, Tensor], head: Tensor | None = None, code: str | None = CODE
) -> Path:
    head = tensors["transformer.wte.weight"] if head is None else head
    model = {f"_orig_mod.{n}": x for n, x in {**tensors, "lm_head.weight": head}.items()}
    optimizers = [{"state": {}, "param_groups": [{"lr": 0.02, "backend": "newtonschulz5"}]}]
    torch.save({"step": 5100, "model": model, "optimizers": optimizers, "code": code}, path)
    return path


@pytest.fixture(scope="module")
def vocabulary(text_run: Path) -> Path:
    return text_run / "tokenizer.json"


@pytest.fixture(scope="module")
def imported(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small GPT-2 that was imported; tests must not change it."""
    folder = tmp_path_factory.mktemp("imported")
    tensors = transposed(gpt2_tensors())
    source = write_hf(folder / "gpt2-tiny", tensors, GPT2_CONFIG, vocabulary)
    main(["import", str(source), "--out", str(folder / "run")])
    return folder / "run"


def logits(run: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = load_trained(run, device="cpu").model(IDS_BT)
    return found


def check_logits(run: Path, expected: Tensor) -> None:
    assert expected.std() > 0.5
    torch.testing.assert_close(
        logits(run), expected, rtol=0, atol=1e-5 * expected.abs().max().item()
    )


# What comes in ------------------------------------------------------------------------------------


def unprefixed_with_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the first GPT-2 on the hub: no prefix, masks as buffers, the tied head written too."""
    found = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    for layer in range(L):
        found[f"h.{layer}.attn.bias"] = torch.ones(1, 1, T, T).tril()
        found[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return {**found, "lm_head.weight": found["wte.weight"].clone()}


@pytest.mark.parametrize("form", [dict, unprefixed_with_buffers])
def test_gpt2_of_transformers_with_either_names(
    form: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    vocabulary: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    tensors = gpt2_tensors()
    source = write_hf(tmp_path / "tiny", form(transposed(tensors)), GPT2_CONFIG, vocabulary)
    main(["import", str(source), "--out", str(tmp_path / "deep" / "run")])
    run = tmp_path / "deep" / "run"
    assert capsys.readouterr().out.splitlines() == [
        f"{source} is of transformers, GPT2LMHeadModel: 36,736 parameters, 2 x 32, context 32, "
        "vocabulary 320",
        f"written {run}; try it with quintic generate {run}, train it with quintic train RECIPE "
        f"--init-from {run}",
    ]
    check_logits(run, gpt2_logits(tensors))
    config = read_config(run)
    assert (config.recipe, config.imported.source) == ("imported", "tiny")
    assert config.imported.kind == "transformers, GPT2LMHeadModel"
    assert config.model == ModelConfig("gpt2", L, D, H, T, V)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_gpt2_in_shards_of_half_precision(vocabulary: Path, tmp_path: Path) -> None:
    tensors = {name: x.to(torch.bfloat16) for name, x in gpt2_tensors().items()}
    source = write_hf(tmp_path / "tiny", {}, GPT2_CONFIG, vocabulary)
    (source / "model.safetensors").unlink()
    written, names = transposed(tensors), sorted(tensors)
    files = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: written[name].contiguous() for name in part}, source / file)
    weight_map = {name: files[place % 2] for place, name in enumerate(names)}
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    main(["import", str(source), "--out", str(tmp_path / "run")])
    check_logits(tmp_path / "run", gpt2_logits({n: x.float() for n, x in tensors.items()}))
    (source / files[1]).unlink()
    with pytest.raises(QuinticError, match=f"it has no {files[1]}, which {index.name} lists"):
        read_model(source)
    outside = f"../{files[0]}"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, outside)}))
    with pytest.raises(QuinticError, match=f"lists {outside}, which is not beside it: copy"):
        read_model(source)


@pytest.mark.parametrize("shape", [(2, 32, 2), (3, 48, 4)])
def test_transformers_own_gpt2(
    shape: tuple[int, int, int], vocabulary: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    layers, width, heads = shape
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_embd=width, n_layer=layers, n_head=heads
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        expected = model(IDS_BT).logits
    model.save_pretrained(tmp_path / "source")
    shutil.copy(vocabulary, tmp_path / "source")
    main(["import", str(tmp_path / "source"), "--out", str(tmp_path / "run")])
    check_logits(tmp_path / "run", expected)


SWITCHES = {name: changes for name, (_, changes) in HELD.items()}
SWITCHES |= {name: {"layers": 4, **changes} for name, changes in EVERY.items()}
"""The switches of every class, and of the one whose source lies beside the weights."""


@pytest.mark.parametrize("switches", SWITCHES)
def test_what_quintic_exports_comes_back_bit_for_bit_and_leaves_as_it_was(
    switches: str, text_run: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, **SWITCHES[switches])
    source = drawn(open_source(text_run, Console(quiet=True)), config)
    export(source, "hf", tmp_path / "first", lambda line: None)
    main(["import", str(tmp_path / "first"), "--out", str(tmp_path / "run")])
    back = open_source(tmp_path / "run", Console(quiet=True))
    if class_of(config) != QUINTIC:  # a window over the whole context, a mask in one document
        config = replace(config, window=None, document_mask=False, eot_id=None)
    assert back.config == replace(config, vocab_size=V)
    assert back.tokenizer.fingerprint == source.tokenizer.fingerprint
    for name, tensor in back.tensors.items():
        whole = source.tensors[name]
        assert torch.equal(tensor, whole[tuple(map(slice, tensor.shape))]), name
    assert back.tensors.keys() == source.tensors.keys()
    export(back, "hf", tmp_path / "second", lambda line: None)
    card = (tmp_path / "second" / "README.md").read_text()
    assert "# first, imported\n" in card and "## Where it comes from\n" in card
    assert "which has not trained it" in card and "How it was trained" not in card
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()


@pytest.mark.parametrize("version", [3, 5])
def test_llmc_in_both_precisions_without_its_padding(
    version: int, vocabulary: Path, tmp_path: Path
) -> None:
    tensors = gpt2_tensors()
    path = write_llmc(tmp_path / "model_00019560.bin", tensors, version)
    main(["import", str(path), "--out", str(tmp_path / "run"), "--tokenizer", str(vocabulary)])
    if version == 5:
        tensors = {name: x.bfloat16().float() for name, x in tensors.items()}
    check_logits(tmp_path / "run", gpt2_logits(tensors))
    assert read_config(tmp_path / "run").model.vocab_size == V


def test_nanogpt_from_a_compiled_model(vocabulary: Path, tmp_path: Path, capsys: Capture) -> None:
    tensors = gpt2_tensors()
    path = write_nanogpt(tmp_path / "ckpt.pt", tensors)
    options = ["--out", str(tmp_path / "run"), "--tokenizer", str(vocabulary)]
    main(["import", str(tmp_path), *options])
    assert "note: nanoGPT since 2023-05-17 computes GELU by the" in capsys.readouterr().out
    check_logits(tmp_path / "run", gpt2_logits(tensors))
    # What the note says: with the other GELU the same weights give these.
    erf = gpt2_logits(tensors, gelu="none")
    difference = (logits(tmp_path / "run") - erf).abs().max()
    assert 1e-4 < difference < 2e-3 * erf.abs().max()
    main(
        [
            "import",
            str(path),
            "--format",
            "nanogpt",
            *options[:1],
            str(tmp_path / "2"),
            *options[2:],
        ]
    )


def test_nanogpt_without_biases_has_zeros(
    vocabulary: Path, tmp_path: Path, capsys: Capture
) -> None:
    tensors = gpt2_tensors()
    own = {name: x for name, x in tensors.items() if not name.endswith(".bias")}
    own["transformer.h.0.attn.bias"] = torch.ones(1, 1, T, T).tril()  # the mask of an older PyTorch
    path = write_nanogpt(tmp_path / "ckpt.pt", own, bias=False)
    main(["import", str(path), "--out", str(tmp_path / "run"), "--tokenizer", str(vocabulary)])
    assert "note: it has no biases" in capsys.readouterr().out
    zeros = {n: torch.zeros_like(x) if n.endswith(".bias") else x for n, x in tensors.items()}
    check_logits(tmp_path / "run", gpt2_logits(zeros))


@pytest.mark.parametrize("untied", [False, True], ids=["2024-10-14", "2024-11-03"])
def test_modded_nanogpt_of_two_records(untied: bool, vocabulary: Path, tmp_path: Path) -> None:
    tensors = modded_tensors()
    head = torch.randn(V, D, generator=torch.Generator().manual_seed(4)) if untied else None
    path = write_modded(tmp_path / "state_step005100.pt", tensors, head)
    main(["import", str(path), "--out", str(tmp_path / "run"), "--tokenizer", str(vocabulary)])
    check_logits(tmp_path / "run", modded_logits(tensors, head))
    config = read_config(tmp_path / "run").model
    assert (config.heads, config.context) == (H, T)
    assert (config.embed_norm, config.tied_head) == (untied, not untied)


def test_modded_nanogpt_without_its_code_is_told_heads_and_context(tmp_path: Path) -> None:
    path = write_modded(tmp_path / "state.pt", modded_tensors(), code=None)
    with pytest.raises(QuinticError, match="do not say the heads, and it has no code that does"):
        read_model(path)
    with pytest.raises(QuinticError, match="do not say the context, and it has no code"):
        read_model(path, heads=4)
    config = read_model(path, heads=4, context=64).config
    assert (config.heads, config.context) == (4, 64)


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_gpt2s_vocabulary_is_known_in_any_form(tmp_path: Path) -> None:
    content = json.loads(tokenizer_json(Gpt2Tokenizer()))
    # As older versions of tokenizers have written it.
    content["pre_tokenizer"].pop("use_regex")
    content["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert tokenizer_info(str(path)).fingerprint == "gpt2"
    content["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(QuinticError, match="does not give back every text"):
        tokenizer_info(str(path))


def test_padded_gpt2_without_a_tokenizer_is_taken_for_gpt2s(
    tmp_path: Path, capsys: Capture
) -> None:
    tensors = gpt2_tensors(50_304)
    path = write_nanogpt(tmp_path / "ckpt.pt", tensors, vocab_size=50_304)
    main(["import", str(path), "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "note: its 50,304 tokens are taken for GPT-2's: it brings no tokenizer" in out
    assert "note: 47 rows of its embedding are no token" in out
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment[-1]["tokenizer"] == "gpt2"
    # llm.c's padding is no term of its softmax, and nanoGPT's is.
    assert read_config(tmp_path / "run").model.vocab_size == 50_304


# What it can do then ------------------------------------------------------------------------------


def test_an_imported_run_evaluates_generates_and_begins_runs(
    imported: Path, text_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "text.py").write_text("def f(x):\n    return x\n")
    main(["evaluate", str(imported), "--text", str(tmp_path / "text.py")])
    assert f"{imported}/checkpoints/step-00000000, each file a docu" in capsys.readouterr().out
    main(["evaluate", str(imported), "--data", str(text_data), "--tokens", "64"])
    assert f"64 validation tokens of {text_data}" in capsys.readouterr().out
    main(["generate", str(imported), "--prompt", "def", "--tokens", "4", "--temperature", "0"])
    assert capsys.readouterr().out.startswith("def")
    own = {n: v for n, v in tiny_options(text_data).items() if not n.startswith("model.")}
    own |= {"train.steps": 1}
    flags = flags_of(own)
    init = ["--init-from", str(imported), "--out", str(tmp_path / "tuned")]
    main(["train", "laptop", *flags, "--train.log-to", *init])
    assert f"with the weights of {imported}/checkpoints/step-00000000" in capsys.readouterr().out
    config = read_config(tmp_path / "tuned")
    assert (config.init_from.run, config.is_imported) == ("run", False)
    before = torch.zeros(V, D)
    tuned = tmp_path / "tuned" / "checkpoints" / "step-00000000"
    load_tensors(tuned, {"model.embed.weight": before})
    assert torch.equal(before, gpt2_tensors()["transformer.wte.weight"])


def test_imported_models_and_runs_compare_by_their_scores(
    imported: Path, text_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    write_task(tmp_path, "piqa")
    own, twin, run = (str(tmp_path / name) for name in ("own", "twin", "run"))
    for source, folder in ((imported, own), (imported, twin), (text_run, run)):
        shutil.copytree(source, folder)
        main(["evaluate", folder, "--tasks", "piqa", "--task-data", str(tmp_path)])
    capsys.readouterr()
    main(["compare", own, run, "--target", "9", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [group["label"] for group in found["groups"]] == ["own", "run"]
    assert found["groups"][0]["final_losses"] == []
    kept = {f: read_scores(Path(f))["piqa"].metrics["acc"].value for f in (own, run)}
    assert {r["label"]: r["values"] for r in found["tasks"] if r["metric"] == "acc"} == {
        Path(f).name: [value] for f, value in kept.items()
    }
    out = " ".join(capsys.readouterr().out.split())
    assert f"note: {own} was imported from gpt2-tiny and has no losses of a run" in out
    assert "McNemar's test p = " in out
    assert found["settings"]["model.architecture"] == ["gpt2", "gpt"]
    assert not any(name.startswith(("optim.", "train.")) for name in found["settings"])
    # Two of the same source are no two seeds of one config, and neither has losses to draw.
    main(["compare", own, twin, "--out", str(tmp_path / "found.html")])
    out = " ".join(capsys.readouterr().out.split())
    assert "validation loss" not in out
    assert "piqa acc: twin scores the same as own" in out
    assert refusal(["compare", own, twin, "--out", str(tmp_path / "found.png")], capsys).endswith(
        "name a .html or a .json file, which hold the scores on tasks"
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--resume", "RUN"], "RUN keeps a model that was imported from gpt2-tiny"),
        (["train", "--resume", "RUN", "--train.steps", "9"], "RUN keeps a model that was imported"),
        (["train", "--out", "RUN", "--auto-resume"], "--init-from RUN"),
        (["train", "RUN/config.json"], "says nothing of training: give a recipe"),
        (["train", "RUN/config.json", "--init-from", "RUN"], "says nothing of training"),
        (["evaluate", "RUN"], "RUN was imported from gpt2-tiny, and its data is not known here"),
        (["evaluate", "RUN", "--checkpoint", "best"], "leave --checkpoint out"),
        (
            ["train", "--init-from", "RUN", "--checkpoint", "best", "--data.path", "DATA"],
            "leave --checkpoint out",
        ),
        (["compare", "RUN", "RUN"], "RUN was imported from gpt2-tiny and has no losses"),
        (["train", "--init-from", "HF"], "is a model of transformers and no run: quintic import"),
        (["muon", "convert", "--model", "RUN"], "muon convert needs --from"),
        (["import", "RUN", "--out", "OUT"], "is the folder of a run of quintic already"),
    ],
)
def test_what_an_imported_run_cannot_do_is_one_line(
    command: list[str],
    message: str,
    imported: Path,
    text_data: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    before = sorted(imported.rglob("*"))
    arguments = [a.replace("RUN", str(imported)) for a in command]
    places = {"OUT": tmp_path / "out", "DATA": text_data, "HF": imported.parent / "gpt2-tiny"}
    arguments = [str(places.get(a, a)) for a in arguments]
    if command[0] == "train" and "--out" not in command:
        arguments += ["--out", str(tmp_path / "out")]
    assert message.replace("RUN", str(imported)) in refusal(arguments, capsys)
    assert sorted(imported.rglob("*")) == before
    assert not list(tmp_path.iterdir())


# What cannot come in ------------------------------------------------------------------------------


class Foreign:
    """Something that a pickle would have to execute."""


def damaged_hf(folder: Path, change: str) -> None:
    config, weights = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    tensors = load_file(weights)
    if change == "class":
        config["architectures"] = ["LlamaForCausalLM"]
    if change == "activation":
        config["activation_function"] = "gelu"
    if change == "layers":
        config["n_layer"] = 10**9
    if change == "tensors":
        del tensors["transformer.h.0.ln_1.bias"]
        tensors["transformer.h.1.attn.c_proj.weight"] = torch.zeros(D, 8)
        tensors["score.weight"] = torch.zeros(2)
    if change == "nan":
        tensors["transformer.wpe.weight"][0, 0] = float("nan")
    if change == "int":
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].to(torch.int8)
    if change == "head":
        tensors["lm_head.weight"] = torch.zeros(V, D)
    (folder / "config.json").write_text("{" if change == "json" else json.dumps(config))
    save_file(tensors, weights)
    if change == "truncated":
        weights.write_bytes(weights.read_bytes()[:-5])
    if change == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    if change == "two":
        write_nanogpt(folder / "ckpt.pt", gpt2_tensors())
    if change == "no tokenizer":
        (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("class", "config.json is of LlamaForCausalLM: quintic's models are those of Apertus"),
        ("activation", "config.json has activation_function 'gelu', and quintic's model computes"),
        ("layers", "config.json asks for 1,000,000,000 layers and there are 28 tensors"),
        (
            "tensors",
            "the tensors do not fit config.json: score.weight is too much; "
            "transformer.h.0.ln_1.bias is missing; transformer.h.1.attn.c_proj.weight is (32, 8) "
            "where config.json makes it (32, 32); name a whole checkpoint",
        ),
        ("nan", "transformer.wpe.weight: not finite"),
        ("int", "transformer.wpe.weight is torch.int8: quintic's weights are float32"),
        ("head", "lm_head.weight is too much"),
        ("json", "config.json is not valid JSON"),
        ("truncated", "model.safetensors is truncated or damaged"),
        ("pickle", "it has config.json and no model.safetensors: save the weights as safetensors"),
        ("two", "it holds models of hf and nanogpt: say which with --format"),
        ("no tokenizer", "it brings no tokenizer.json, and its 320 tokens are not GPT-2's"),
    ],
)
def test_a_folder_that_quintic_cannot_take_is_one_line(
    change: str, message: str, vocabulary: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = write_hf(tmp_path / "tiny", transposed(gpt2_tensors()), GPT2_CONFIG, vocabulary)
    damaged_hf(source, change)
    found = refusal(["import", source, "--out", tmp_path / "deep" / "run"], capsys)
    assert found.startswith(f"{source}: ")
    assert message in found
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def damaged_file(folder: Path, change: str) -> Path:
    """Write what `quintic import` is given, and return its path."""
    path, tensors = folder / "ckpt.pt", gpt2_tensors()
    if change.startswith("llm.c"):
        write_llmc(path, tensors, version=4 if "version" in change else 3)
        whole = path.read_bytes()
        if "truncated" in change:
            path.write_bytes(whole[:-4])
        if "header" in change:
            path.write_bytes(whole[:100])
        if "sizes" in change:
            path.write_bytes(whole[:16] + struct.pack("<i", 0) + whole[20:])
        if "large" in change:
            path.write_bytes(whole[:16] + struct.pack("<i", 2**31 - 1) + whole[20:])
    elif change.startswith("modded"):
        modded = modded_tensors()
        if "later" in change:
            modded["transformer.h.0.attn.lamb"] = torch.zeros(())
        write_modded(path, modded)
    elif change == "class":
        torch.save({"model_args": SIZES, "model": tensors, "config": Foreign()}, path)
    elif change == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif change == "list":
        torch.save([1, 2], path)
    elif change == "old pickle":
        path.write_bytes(pickle.dumps({"model": Foreign()}))
    elif change == "no args":
        torch.save({"model_args": {"n_layer": 2}, "model": tensors}, path)
    elif change == "no tensor":
        torch.save({"model_args": SIZES, "model": {**tensors, "step": 3}}, path)
    elif change == "no model":
        torch.save({"model_args": SIZES}, path)
    elif change == "layers":
        write_nanogpt(path, tensors, n_layer=10**9)
    elif change == "width":
        write_nanogpt(path, tensors, n_embd=33)
    elif change == "text":
        write_nanogpt(path, tensors, n_head="2")
    elif change == "missing":
        del tensors["transformer.h.1.ln_2.bias"]
        write_nanogpt(path, tensors)
    elif change == "truncated":
        write_nanogpt(path, tensors)
        path.write_bytes(path.read_bytes()[:-100])
    elif change == "corrupt":
        write_nanogpt(path, tensors)
        content = path.read_bytes()
        path.write_bytes(content.replace(b"model_args", b"\x80\x95del_args"))
    elif change == "weights alone":
        path = folder / "model.safetensors"
        save_file(tensors, path)
    elif change == "large vocabulary":
        write_nanogpt(path, gpt2_tensors(319), vocab_size=319)
    elif change == "other":
        path.write_text("text")
    elif change == "heads":
        write_nanogpt(path, tensors)
    elif change == "empty folder":
        path = folder / "nothing"
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("llm.c truncated", "it has 156,156 bytes where its header makes 156,160"),
        ("llm.c header", "it has 100 bytes, fewer than a header"),
        ("llm.c version", "it is of version 4, and versions 3 (float32) and 5 (bfloat16) are read"),
        ("llm.c sizes", "its header has max_seq_len 32, vocab_size 320, layers 0, heads 2"),
        ("llm.c large", "bytes where its header makes"),
        ("modded later", "fit the model: transformer.h.0.attn.lamb is too much; name"),
        ("class", "it pickles tests.export.test_import.Foreign, and no pickle is executed"),
        ("module", "it pickles torch.nn.modules.linear.Linear, and no pickle is executed"),
        ("list", "it holds list, where checkpoints hold a dictionary"),
        ("old pickle", "is no model that quintic knows"),
        ("no args", "its model_args have no n_embd, n_head, block_size, vocab_size"),
        ("no tensor", "step: no tensor, where a model has nothing else"),
        ("no model", "model_args: no tensor"),
        ("layers", "its model_args asks for 1,000,000,000 layers"),
        ("width", "model.width 33 is not divisible by model.heads 2"),
        ("text", "its model_args have n_head '2': all must be whole numbers"),
        ("missing", "fit its model_args: transformer.h.1.ln_2.bias is missing; name"),
        ("truncated", "it is truncated, or no file of torch.save"),
        ("corrupt", "copy it again"),
        ("weights alone", "a file of weights does not say of which model: name its folder"),
        ("large vocabulary", "has 320 tokens and the model 319: name the one it was trained with"),
        ("other", "it is no model that quintic knows: a folder of transformers"),
        ("heads", "--heads and --context are for modded-nanogpt's checkpoints"),
        ("nothing", "there is no such file or folder: name one, or hub:OWNER/NAME"),
        ("empty folder", "it has no model in it that quintic knows"),
    ],
)
def test_a_file_that_quintic_cannot_take_is_one_line(
    change: str, message: str, vocabulary: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = damaged_file(tmp_path, change)
    before = sorted(tmp_path.rglob("*"))
    options = ["--tokenizer", vocabulary, *(["--heads", 2] if change == "heads" else [])]
    found = refusal(["import", path, "--out", tmp_path / "run", *options], capsys)
    assert found.startswith(f"{path}: ")
    assert message in found
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("hf", "it has no model in it that quintic knows"),
        ("nanogpt", "it has no model_args, which say the number of heads: name a ckpt.pt"),
        ("llm.c", "SOURCE, and a checkpoint of llm.c is one: name it"),
        ("modded-nanogpt", "SOURCE, and a checkpoint of modded-nanogpt is one: name it"),
    ],
)
def test_a_format_that_the_source_is_not_of(
    kind: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    write_modded(tmp_path / "ckpt.pt", modded_tensors())
    command = ["import", tmp_path, "--format", kind, "--out", tmp_path / "run"]
    assert message.replace("SOURCE", str(tmp_path)) in refusal(command, capsys)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    imported: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("quintic.imports.run_folder.save_checkpoint", full)
    out = tmp_path / "deep" / "run"
    found = refusal(["import", imported.parent / "gpt2-tiny", "--out", out], capsys)
    assert found == f"{out}: No space left on device: make room"
    assert not list(tmp_path.iterdir())


def test_an_import_writes_over_nothing(imported: Path, tmp_path: Path, capsys: Capture) -> None:
    source = str(imported.parent / "gpt2-tiny")
    found = refusal(["import", source, "--out", imported], capsys)
    assert found == (
        f"{imported} exists and is not an empty folder: choose another --out, or remove it"
    )
    (tmp_path / "empty").mkdir()
    main(["import", source, "--out", str(tmp_path / "empty")])
    assert read_config(tmp_path / "empty").is_imported


# The hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub."""
    import huggingface_hub.constants as hub_constants

    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def repository(folder: Path) -> Repo:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return Repo({**files, "pytorch_model.bin": b"\x80\x04", "README.md": b"# tiny"})


def test_a_model_of_the_hub_comes_with_its_commit(
    imported: Path,
    hub: HubServer,
    hub_cache: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.repos["them/tiny"] = found = repository(imported.parent / "gpt2-tiny")
    main(["import", "hub:them/tiny", "--out", str(tmp_path / "run")])
    assert "hub:them/tiny is of transformers, GPT2LMHeadModel" in capsys.readouterr().out
    check_logits(tmp_path / "run", gpt2_logits(gpt2_tensors()))
    config = read_config(tmp_path / "run").imported
    assert (config.source, config.revision) == ("hub:them/tiny", found.commit)
    assert config.sha256 == read_config(imported).imported.sha256
    asked = {request.path.rpartition("/")[2] for request in hub.requests}
    assert not {"pytorch_model.bin", "README.md"} & asked
    # Once more from the cache, which the message names where the hub is away.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found_in = refusal(["import", "hub:them/tiny", "--out", tmp_path / "2"], capsys)
    cached = next((hub_cache / "models--them--tiny" / "snapshots").iterdir())
    assert f"what was downloaded of it before is in {cached}: name that folder" in found_in
    main(["import", str(cached), "--out", str(tmp_path / "2")])


def test_a_model_of_the_hub_in_shards(
    imported: Path, hub: HubServer, hub_cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    repo = repository(imported.parent / "gpt2-tiny")
    hub.repos["them/tiny"] = repo
    file = "model-00001-of-00001.safetensors"
    repo.files[file] = repo.files.pop("model.safetensors")
    index = {"weight_map": dict.fromkeys(gpt2_tensors(), file)}
    repo.files["model.safetensors.index.json"] = json.dumps(index).encode()
    main(["import", "hub:them/tiny@main", "--out", str(tmp_path / "run")])
    check_logits(tmp_path / "run", gpt2_logits(gpt2_tensors()))
    capsys.readouterr()
    index = {"weight_map": dict.fromkeys(gpt2_tensors(), "another.safetensors")}
    repo.files["model.safetensors.index.json"] = json.dumps(index).encode()
    repo.commit = "beef" + "0" * 36
    found = refusal(["import", "hub:them/tiny", "--out", tmp_path / "2"], capsys)
    assert "has no another.safetensors, which model.safetensors.index.json lists" in found


def test_a_model_of_the_hub_that_cannot_be_had_is_one_line(
    imported: Path,
    hub: HubServer,
    hub_cache: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(source: str) -> str:
        return refusal(["import", source, "--out", tmp_path / "run"], capsys)

    hub.repos["them/pickles"] = repository(imported.parent / "gpt2-tiny")
    del hub.repos["them/pickles"].files["model.safetensors"]
    assert "hub:them/pickles has no model.safetensors: a model of" in refuse("hub:them/pickles")
    assert f"there is no such model repository on {hub.url}" in refuse("hub:them/nobody")
    assert "names no repository: write hub:OWNER/NAME" in refuse("hub:gpt2")
    hub.repos["them/tiny"] = repository(imported.parent / "gpt2-tiny")
    hub.faults["model.safetensors"] = ["corrupt"]
    damaged, _, rest = refuse("hub:them/tiny").partition(" is not the ")
    assert rest == "model.safetensors that hub:them/tiny lists: remove it and try again"
    Path(damaged).unlink()
    main(["import", "hub:them/tiny", "--out", str(tmp_path / "good")])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refuse("hub:them/other")
    assert not (tmp_path / "run").exists()

"""The class that is written beside the weights, loaded as a stranger loads it, against quintic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quintic.config import ModelConfig
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.export.export import export
from quintic.export.hf import class_of, from_hf, hf_config, to_hf, unheld_switches
from quintic.export.remote_code import FIELDS, MODULE, QUINTIC, config_json, write_remote_code
from quintic.export.source import open_source
from quintic.generate import generate_ids
from quintic.model.base import LanguageModel
from quintic.model.build import build_model
from quintic.recipes import get_recipe

SMALL = ModelConfig(layers=4, width=32, heads=2, context=32, vocab_size=96)
END = 5

NOT_HELD: dict[str, dict[str, Any]] = {
    "token_smear": {"token_smear": True},
    "key_smear": {"key_smear": True},
    "bigram_embeddings": {"bigram_embeddings": 31},
    "value_embeddings": {"value_embeddings": 1},
    "value_embeddings of all layers": {"value_embeddings": 2},
    "x0_skip": {"x0_skip": True},
    "unet_skips": {"unet_skips": True},
    "unet_skips of three layers": {"unet_skips": True, "layers": 3},
    "window": {"window": 7},
    "window of the token itself": {"window": 1},
    "learned positions": {"positions": "learned"},
    "layernorm": {"norm": "layernorm"},
    "softcap": {"logit_softcap": 3.0},
    "embed_norm without qk_norm": {"embed_norm": True, "qk_norm": False},
}
"""Switches with each of which no class of transformers computes the model."""

COMBINED: dict[str, dict[str, Any]] = {
    "all": {
        "token_smear": True,
        "key_smear": True,
        "bigram_embeddings": 64,
        "value_embeddings": 2,
        "x0_skip": True,
        "unet_skips": True,
        "window": 9,
        "norm": "layernorm",
        "activation": "gelu",
        "logit_softcap": 3.0,
        "embed_norm": True,
        "qk_norm": False,
        "tied_head": False,
        "document_mask": True,
        "eot_id": END,
    },
    "all that is left, with learned positions": {
        "token_smear": True,
        "key_smear": True,
        "value_embeddings": 1,
        "x0_skip": True,
        "positions": "learned",
        "document_mask": True,
        "eot_id": END,
    },
    "speedrun": {
        name: getattr(get_recipe("speedrun").model, name) for name in ("tied_head", "embed_norm")
    }
    | {"value_embeddings": 2},
}

EVERY = NOT_HELD | COMBINED


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the source of a class to where it is told, and not into the home."""
    pytest.importorskip("transformers")
    import transformers.dynamic_module_utils as theirs

    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "HF_MODULES_CACHE", folder)
        yield


def drawn(config: ModelConfig) -> LanguageModel:
    """A model none of whose parameters is zero or one, and whose text is no repetition."""
    model = build_model(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = 0.4 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + own if parameter.ndim == 1 and "bias" not in name else own)
    return model.eval()


def written(model: LanguageModel, folder: Path) -> Path:
    """A folder that transformers loads, of a whole vocabulary."""
    folder.mkdir(exist_ok=True)
    config = model.config
    assert config.vocab_size is not None
    (folder / "config.json").write_text(
        json.dumps(hf_config(config, vocab_size=config.vocab_size, eot_id=END))
    )
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    save_file(to_hf(config, parameters, config.vocab_size), folder / "model.safetensors")
    write_remote_code(folder)
    return folder


def loaded(folder: Path, **options: Any) -> Any:
    """The model that a stranger loads, who has no quintic."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == QUINTIC
    assert type(model).__module__.startswith("transformers_modules.")
    return model.eval()


def sample(rows: int = 2, length: int = 32) -> Tensor:
    """Ids of several documents a row."""
    generator = torch.Generator().manual_seed(2)
    ids_BT = torch.randint(6, 96, (rows, length), generator=generator)
    ids_BT[:, 0], ids_BT[0, length // 3], ids_BT[-1, length // 2] = END, END, END
    return ids_BT


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("switches", EVERY)
@torch.no_grad()
def test_logits_text_and_loss_are_quintics_with_every_switch(switches: str, tmp_path: Path) -> None:
    ours = drawn(replace(SMALL, **EVERY[switches]))
    theirs = loaded(written(ours, tmp_path / "out"))
    ids_BT = sample()
    expected = ours(ids_BT)
    assert_near(theirs(ids_BT).logits, expected)
    # The prompt by the cache, in parts: one of several tokens, then one at a time.
    cache, parts = None, []
    for part in ids_BT.split([9, 4, *[1] * 19], dim=1):
        output = theirs(part, past_key_values=cache, use_cache=True)
        cache = output["cache"] if "cache" in output else output["past_key_values"]
        parts.append(output.logits)
    assert_near(torch.cat(parts, dim=1), expected)
    # Greedy text, to the end of the context.
    prompt = [END, 17, END, 40]
    text = list(generate_ids(ours, prompt, tokens=28, temperature=0))
    assert len(set(text)) > 2
    for use_cache in (True, False):
        found = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=28,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert found[0, 4:].tolist() == text
    loss = theirs(ids_BT, labels=ids_BT).loss
    torch.testing.assert_close(loss, ours.loss(ids_BT[:, :-1], ids_BT[:, 1:]))


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("switches", ["x0_skip", "all", "all that is left, with learned positions"])
@torch.no_grad()
def test_a_batch_with_padding_gives_what_each_text_gives_alone(
    switches: str, tmp_path: Path
) -> None:
    theirs = loaded(written(drawn(replace(SMALL, **EVERY[switches])), tmp_path / "out"))
    texts = [[END, 9, 60, 33, END, 71], [END, 41, 90]]
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = [theirs.generate(torch.tensor([text]), **options)[0, len(text) :] for text in texts]
    left = torch.tensor([texts[0], [END] * 3 + texts[1]])
    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    for use_cache in (True, False):
        both = theirs.generate(left, attention_mask=mask, use_cache=use_cache, **options)
        assert both[:, 6:].tolist() == [text.tolist() for text in alone]
    assert theirs._attn_mask(left, mask, left, 0).any(-1).all()
    # On the right, as lm-eval and training pad.
    right = torch.tensor([texts[0], texts[1] + [END] * 3])
    logits = theirs(right, attention_mask=mask.flip(1)).logits[1, :3]
    assert_near(logits, theirs(right[1:, :3]).logits[0])


@pytest.mark.usefixtures("modules")
@torch.no_grad()
def test_beams_samples_and_drafts_are_what_they_are_without_a_cache(tmp_path: Path) -> None:
    theirs = loaded(written(drawn(replace(SMALL, **EVERY["all"])), tmp_path / "out"))
    ids, options = torch.tensor([[END, 9, END, 33]]), {"eos_token_id": None, "pad_token_id": 0}
    beams = [
        theirs.generate(ids, num_beams=3, max_new_tokens=12, use_cache=use_cache, **options)
        for use_cache in (True, False)
    ]
    assert torch.equal(*beams)
    # A draft that is not taken is cut off the cache again.
    drafted = theirs.generate(
        ids, prompt_lookup_num_tokens=3, do_sample=False, max_new_tokens=12, **options
    )
    greedy = theirs.generate(ids, do_sample=False, use_cache=False, max_new_tokens=12, **options)
    assert torch.equal(drafted, greedy)
    torch.manual_seed(0)
    texts = theirs.generate(
        ids, do_sample=True, top_k=20, num_return_sequences=3, max_new_tokens=12, **options
    )
    assert len({tuple(text.tolist()) for text in texts}) == 3


@pytest.mark.usefixtures("modules")
@torch.no_grad()
def test_saved_again_it_is_the_same_model_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for switches in ("all", "x0_skip"):
        ours = drawn(replace(SMALL, **EVERY[switches]))
        theirs = loaded(written(ours, tmp_path / f"first-{switches}"))
        again = tmp_path / f"again-{switches}"
        theirs.save_pretrained(again)
        assert (again / MODULE.name).read_bytes() == MODULE.read_bytes()
        ids_BT = sample()
        assert torch.equal(loaded(again)(ids_BT).logits, theirs(ids_BT).logits)
        tensors = load_file(again / "model.safetensors")
        config, back = from_hf(json.loads((again / "config.json").read_text()), tensors)
        assert config == ours.config
        parameters = dict(ours.named_parameters())
        assert back.keys() == parameters.keys()
        assert all(torch.equal(back[name], parameters[name]) for name in back)


@pytest.mark.usefixtures("modules")
@torch.no_grad()
def test_bfloat16_computes_as_quintic_computes_in_bfloat16(tmp_path: Path) -> None:
    config = replace(SMALL, **EVERY["all"])
    master = drawn(config)
    ours = build_model(config, compute_dtype=torch.bfloat16).eval()
    rounded = {name: value.bfloat16().float() for name, value in master.state_dict().items()}
    ours.load_state_dict(rounded)
    theirs = loaded(written(master, tmp_path / "out"), dtype=torch.bfloat16)
    ids_BT = sample()
    found, expected = theirs(ids_BT).logits, ours(ids_BT)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * expected.abs().max().item())


@pytest.mark.usefixtures("modules")
def test_what_it_does_not_compute_is_refused(tmp_path: Path) -> None:
    theirs = loaded(written(drawn(replace(SMALL, positions="learned")), tmp_path / "out"))
    ids_BT = sample()
    for arguments, message in (
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "takes input_ids"),
        ({"input_ids": ids_BT, "output_attentions": True}, "does not return attentions"),
        (
            {"input_ids": ids_BT, "attention_mask": torch.ones(2, 31)},
            r"the shape \(2, 31\) and must have \(2, 32\)",
        ),
        ({"input_ids": sample(length=33)}, "33 tokens are more than the 32 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            theirs(**arguments)
    with pytest.raises(ValueError, match="takes a dynamic cache"):
        theirs.generate(ids_BT[:, :4], max_new_tokens=2, cache_implementation="static")


@pytest.mark.usefixtures("modules")
def test_a_fresh_model_has_numbers_everywhere_and_shows_its_hidden_states(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = written(drawn(replace(SMALL, **EVERY["all"])), tmp_path / "out")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    weights = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(weights).items() if "skips" not in n}, weights)
    partly = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    for fresh in (model, partly):
        assert [skip.weight.tolist() for skip in fresh.skips] == [[1], [1]]
    output = model(sample(), output_hidden_states=True, logits_to_keep=3)
    assert len(output.hidden_states) == 5
    kept = output.logits
    assert kept.shape == (2, 3, 96)
    torch.testing.assert_close(kept, model(sample()).logits[:, -3:])
    model(sample(), labels=sample()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("modules")
@torch.no_grad()
def test_new_tokens_get_rows_in_every_table(tmp_path: Path) -> None:
    theirs = loaded(written(drawn(replace(SMALL, **EVERY["all"])), tmp_path / "out"))
    ids_BT = sample()
    before = theirs(ids_BT).logits
    theirs.resize_token_embeddings(100)
    assert torch.equal(theirs(ids_BT).logits[..., :96], before)
    assert theirs(torch.full((1, 3), 99)).logits.isfinite().all()


@pytest.mark.usefixtures("modules")
def test_a_trainer_of_transformers_trains_and_evaluates_it(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    theirs = loaded(written(drawn(replace(SMALL, **EVERY["all"])), tmp_path / "out"))
    texts = [{"input_ids": ids_T, "labels": ids_T} for ids_T in sample()]
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    arguments = TrainingArguments(tmp_path / "trainer", max_steps=3, learning_rate=0.01, **options)
    trainer = Trainer(theirs, arguments, train_dataset=texts, eval_dataset=texts)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1


# The export ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("modules")
def test_the_defaults_of_the_class_are_quintics() -> None:
    from quintic.export.modeling_quintic import QuinticConfig

    theirs, ours = QuinticConfig(), ModelConfig(vocab_size=50_304)
    assert {name: getattr(theirs, name) for name in FIELDS.values()} == {
        theirs: getattr(ours, name) for name, theirs in FIELDS.items()
    }
    assert config_json(ours, vocab_size=50_304, eot_id=END).keys() - {
        *("architectures", "auto_map", "model_type", "dtype"),
    } == {name for name in QuinticConfig.__annotations__ if name[0] != "_"}


@pytest.mark.usefixtures("modules")
def test_a_run_is_exported_with_its_padding_cut(
    text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", asked.append)
    trained = open_source(text_run, Console(quiet=True))
    source = replace(trained, model=drawn(replace(SMALL, vocab_size=384, **EVERY["all"])))
    assert source.tokenizer.vocab_size == 320
    said: list[str] = []
    export(source, "hf", tmp_path / "out", said.append)
    text = " ".join(said)
    assert "no class of transformers has model.token_smear True, model.key_smear True" in text
    assert "logits of transformers on 2 x 32 tokens differ" in text
    assert "document_mask" not in text
    assert not asked  # transformers would on a terminal, before it runs the source
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count('from_pretrained("FOLDER OR OWNER/NAME", trust_remote_code=True)') == 2
    theirs, ids_BT = loaded(tmp_path / "out"), sample()
    with torch.no_grad():
        assert_near(theirs(ids_BT).logits, source.model(ids_BT)[..., :320])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer("def f")["input_ids"] == source.tokenizer.encode("def f")


@pytest.mark.parametrize(
    ("switches", "named"),
    [
        ("value_embeddings", "model.value_embeddings 1"),
        ("x0_skip", "model.x0_skip True"),
        ("unet_skips", "model.unet_skips True"),
        ("window", "model.window 7"),
        ("learned positions", "model.positions learned"),
        ("layernorm", "model.norm layernorm"),
        ("softcap", "model.logit_softcap 3 without model.embed_norm"),
        ("embed_norm without qk_norm", "model.embed_norm True without model.qk_norm"),
    ],
)
def test_what_no_class_of_transformers_computes_is_named(switches: str, named: str) -> None:
    config = replace(SMALL, **NOT_HELD[switches])
    assert (class_of(config), unheld_switches(config)) == (QUINTIC, [named])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "config.json: width is None"),
        ({"norm": "batch"}, "config.json: model.norm is 'batch'"),
        ({"num_hidden_layers": 5}, "layers.4.attention.k.weight is missing"),
        ({"value_embeddings": 0}, "value_embed.weight is too much"),
        ({"window": 33}, "config.json: model.window is 33 and model.context 32"),
    ],
)
def test_what_quintic_cannot_compute_is_not_read_back(
    change: Mapping[str, Any], message: str
) -> None:
    config = replace(SMALL, **EVERY["all"])
    assert class_of(config) == QUINTIC
    json_config = hf_config(config, vocab_size=96, eot_id=END)
    tensors = to_hf(config, {n: p.detach() for n, p in drawn(config).named_parameters()}, 96)
    assert from_hf(json_config, tensors)[0] == config
    with pytest.raises(QuinticError, match=message):
        from_hf({**json_config, **change}, tensors)

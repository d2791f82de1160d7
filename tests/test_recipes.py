"""The recipes: each builds a run whose figures are those of its card; a config in a file is one."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench.results import RESULTS

from quintic.cli.main import main
from quintic.config import Config, differing_fields, resolve_vocabulary
from quintic.errors import QuinticError
from quintic.model.build import meta_model
from quintic.optim.param_groups import assign_parameters, check_param_specs
from quintic.recipes import RECIPES, get_recipe, read_recipe


def test_the_five_recipes_are_there() -> None:
    assert {"laptop", "gpt2", "modded", "modded-adamw", "speedrun"} <= set(RECIPES)


@pytest.mark.parametrize("name", list(RECIPES))
def test_each_recipe_builds_a_model_and_has_a_card(name: str) -> None:
    config, recipe = get_recipe(name), RECIPES[name]
    assert config.recipe == name
    assert get_recipe(name) == config
    assert recipe.summary.endswith((".", ":")) or "." in recipe.summary
    assert f"quintic train {name}".removesuffix(" laptop") in (recipe.build.__doc__ or "")
    assert recipe.hardware
    assert recipe.expected
    config = resolve_vocabulary(config, config.data.embedded_vocab)
    model = meta_model(config.model)
    check_param_specs(model, assign_parameters(model, config.optim))


def test_modded_is_the_originals_run() -> None:
    config = get_recipe("modded")
    model, muon, adamw, train = config.model, config.optim.muon, config.optim.adamw, config.train
    assert model.architecture == "gpt"
    assert (model.layers, model.width, model.heads, model.head_width) == (12, 768, 6, 128)
    assert (model.context, model.vocab_size) == (1024, 50_304)
    assert config.data.tokenizer == "gpt2"
    assert config.data.order == "stream"
    assert config.optim.matrices == "muon"
    assert (muon.lr, muon.momentum, muon.nesterov) == (3.6e-4, 0.95, True)
    assert (muon.scale, muon.ns_steps, muon.ns_dtype) == ("max_dim", 5, "auto")
    assert (muon.momentum_warmup_steps, muon.weight_decay) == (0, 0)
    assert (adamw.lr, adamw.betas, adamw.weight_decay) == (3.6e-3, (0.9, 0.95), 0)
    assert config.optim.clip_norm is None
    assert (config.optim.schedule.kind, config.optim.schedule.warmup_steps) == ("trapezoid", 0)
    assert (train.steps, config.cooldown_steps, config.batch_sequences) == (5100, 1450, 512)
    assert train.steps * train.batch_tokens == 2_673_868_800  # 2.67B
    assert (train.eval_every, train.eval_tokens) == (125, 10_485_760)
    assert train.precision == "auto"  # bfloat16 on GPU


def test_modded_adamw_differs_from_modded_in_what_its_card_says_only() -> None:
    modded, baseline = get_recipe("modded"), get_recipe("modded-adamw")
    assert set(differing_fields(modded, baseline)) == {
        "recipe",
        "optim.matrices",
        "optim.adamw.matrix_lr",
    }
    adamw = baseline.optim.adamw
    assert baseline.optim.matrices == "adamw"
    assert (adamw.matrix_lr, adamw.lr) == (1.8e-3, 3.6e-3)
    assert (adamw.betas, adamw.weight_decay) == ((0.9, 0.95), 0)


def test_speedrun_is_modded_with_what_the_ladder_kept_in_fewer_tokens() -> None:
    rungs = json.loads((RESULTS / "ladder.json").read_text())["rungs"]
    kept = {field for rung in rungs[1:] if rung["kept"] for field in rung["technique"]["changes"]}
    assert kept
    modded, speedrun = get_recipe("modded"), get_recipe("speedrun")
    assert set(differing_fields(modded, speedrun)) == {"recipe", "train.steps"} | kept
    assert speedrun.tokens < modded.tokens


def test_gpt2_is_the_run_of_llm_c() -> None:
    config = get_recipe("gpt2")
    model, adamw, schedule, train = (
        config.model,
        config.optim.adamw,
        config.optim.schedule,
        config.train,
    )
    assert model.architecture == "gpt2"
    assert (model.layers, model.width, model.heads, model.context) == (12, 768, 12, 1024)
    assert model.vocab_size == 50_304  # 50,257 padded
    assert config.optim.matrices == "adamw"
    assert (adamw.lr, adamw.matrix_lr, adamw.betas) == (6e-4, None, (0.9, 0.95))
    assert adamw.weight_decay == 0.1
    assert config.optim.clip_norm == 1.0
    assert (schedule.kind, schedule.warmup_steps) == ("cosine", 700)
    assert (train.steps, train.batch_tokens) == (18_865, 524_288)
    assert train.steps * train.batch_tokens == pytest.approx(9.9e9, rel=0.002)


def test_laptop_is_the_default_and_needs_nothing_but_python() -> None:
    config = get_recipe("laptop")
    assert config.data.path == "embedded"
    assert config.data.tokenizer is None
    assert config.model.vocab_size is None
    assert config.train.device == "auto"
    vocabulary = resolve_vocabulary(config, config.data.embedded_vocab).model.vocab_size
    assert vocabulary == config.data.embedded_vocab
    parameters = meta_model(replace(config.model, vocab_size=vocabulary)).parameter_count()
    assert parameters < 20e6  # small enough for minutes on a CPU


def test_an_unknown_recipe_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(QuinticError) as caught:
        get_recipe("moded")
    message = str(caught.value)
    assert message.startswith("there is no recipe 'moded': did you mean modded?")
    assert all(name in message for name in RECIPES)
    with pytest.raises(QuinticError, match="there is no recipe 'zzzz': the recipes are"):
        get_recipe("zzzz")


@pytest.mark.parametrize(("file", "of"), [("config.json", "a run"), ("best.json", "a sweep")])
def test_a_folder_in_place_of_a_recipe_names_the_file_in_it(
    tmp_path: Path, file: str, of: str
) -> None:
    (tmp_path / file).write_text("{}")
    message = f"{tmp_path} is the folder of {of} and no recipe: name its {tmp_path / file} for"
    with pytest.raises(QuinticError, match=re.escape(message)):
        get_recipe(str(tmp_path))


def test_a_recipe_cannot_be_changed_by_whoever_asked_for_it() -> None:
    first: Config = get_recipe("modded")
    with pytest.raises(AttributeError):
        first.train.steps = 1  # type: ignore[misc]
    assert first.override({"train.steps": 2000}) != get_recipe("modded")


# Recipes in files -----------------------------------------------------------------------------


def test_a_config_in_a_file_is_a_recipe_and_keeps_its_name(tmp_path: Path) -> None:
    config = get_recipe("modded-adamw").override({"optim.adamw.betas": (0.8, 0.99)})
    path = tmp_path / "best.json"
    path.write_text(json.dumps(config.to_dict()))
    assert read_recipe(path) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: "),
        ("\ufffd\x00", "is not valid JSON: "),
        ("[" * 100_000, "is not valid JSON: "),
        ("[1, 2]", "a config is an object with sections, and this is [1, 2]: restore it"),
        ('{"train": {"stesp": 3}}', "there is no field train.stesp: did you mean train.steps?"),
        ('{"train": {"steps": -1}}', "train.steps is -1: it must be positive"),
        ('{"train": {"steps": 8, "steps": 9}}', "it has 'steps' twice in one object: keep one"),
        ('{"train": {}, "model": {}, "train": {}}', "it has 'train' twice in one object: keep one"),
        (
            '{"model": {"width": 10, "heads": 3}}',
            "choose a multiple, for example model.width 12\n",
        ),
        (
            '{"train": {"cuda_graphs": true}}',
            "leave it at False, or use train.compile true\n",
        ),
        (
            '{"train": {"cache_bf16_weights": true, "sharding": "fsdp"}}',
            "use train.sharding zero1, or train.cache_bf16_weights false\n",
        ),
        (
            '{"recipe": "../away"}',
            "recipe is '../away': it names the folder of the run, so it must",
        ),
        (None, None),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_file_that_is_no_config_is_refused_in_one_line(
    command: str,
    content: str | None,
    message: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as caught:
        main([command, str(path)])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    if content is None:
        assert err.startswith(f"quintic: there is no recipe file {path}: name the best.json of a")
    else:
        assert err.startswith(f"quintic: {path}{':' if message != 'is not valid JSON: ' else ''} ")
        assert message is not None
        assert message in err


def test_a_recipe_file_comes_first_and_does_not_continue_a_run_of_another_recipe(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps(get_recipe("modded").to_dict()))
    for arguments, message in {
        ("--train.steps", "3", str(path)): f"the recipe '{path}' must come first: quintic train",
        (str(path), "--resume", str(tiny_run)): f"{tiny_run} holds a run of laptop, which cannot "
        "continue as modded",
    }.items():
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        assert capsys.readouterr().err.startswith(f"quintic: {message}")

"""The ladder: every field of a rung follows from its depth, by the rules of docs/scaling.md."""

import json
import math
import re
from pathlib import Path

import pytest

from quintic import run_dir
from quintic.cli.main import main
from quintic.cli.parsing import opening_notes, parse
from quintic.config import differing_fields, resolve_vocabulary
from quintic.ladder import Rung, parse_rung
from quintic.model.build import meta_model
from quintic.optim.param_groups import assign_parameters, check_param_specs
from quintic.plan.devices import device_of
from quintic.recipes import RECIPES, find_recipe, get_recipe
from tests.conftest import TINY_VOCAB, refusal
from tests.test_cli import output

Capture = pytest.CaptureFixture[str]


def test_rung_12_is_the_model_of_modded_with_other_steps_and_rates() -> None:
    modded, rung = get_recipe("modded"), get_recipe("ladder:12")
    assert set(differing_fields(modded, rung)) == {
        *("recipe", "model.vocab_size", "data.tokenizer", "optim.schedule.cooldown_fraction"),
        *(f"optim.muon.{name}" for name in ("lr", "scale", "weight_decay", "cautious")),
        *("optim.adamw.lr", "train.steps", "train.eval_every", "train.eval_tokens"),
    }
    assert rung.tokens == pytest.approx(20 * 84_934_656, rel=1e-3)


@pytest.mark.parametrize(
    ("depth", "width", "heads", "batch_tokens", "steps"),
    [
        (1, 64, 1, 2048, 480),
        (4, 256, 4, 32_768, 1920),
        (11, 704, 11, 262_144, 4991),
        (12, 768, 6, 524_288, 3240),
        (13, 896, 7, 524_288, 4778),
        (48, 3072, 24, 8_388_608, 12_960),
    ],
)
def test_sizes_batch_and_steps_follow_from_the_depth(
    depth: int, width: int, heads: int, batch_tokens: int, steps: int
) -> None:
    config = get_recipe(f"ladder:{depth}")
    model, train = config.model, config.train
    assert (model.layers, model.width, model.heads, model.context) == (depth, width, heads, 1024)
    assert (train.batch_tokens, train.steps) == (batch_tokens, steps)
    assert (train.compile, train.cpu_kernels) == (
        (True, "plain") if depth >= 8 else (False, "fused")
    )
    assert train.sharding == ("fsdp" if depth >= 32 else "zero1")
    assert math.ceil(steps / train.eval_every) == 10
    assert (train.eval_tokens, config.data.path) == (524_288, "data/fineweb10B")


@pytest.mark.parametrize("depth", range(1, 49))
def test_every_rung_trains_on_20_tokens_a_parameter_of_its_blocks(depth: int) -> None:
    config = resolve_vocabulary(get_recipe(f"ladder:{depth}"), 4096)
    model = meta_model(config.model)
    assert config.tokens / model.blocks_parameter_count() == pytest.approx(20, rel=0.002)
    check_param_specs(model, assign_parameters(model, config.optim))
    steps_at_full_rate = config.train.steps * (1 - 0.5 * config.optim.schedule.cooldown_fraction)
    muon = config.optim.muon
    assert muon.lr * muon.weight_decay * steps_at_full_rate == pytest.approx(0.6, rel=0.01)


def test_learning_rates_follow_batch_tokens_and_width() -> None:
    """The reference is `modded`: 3.6e-4 at max_dim and 768, AdamW 3.6e-3, 524,288 of 2.67B."""
    for rung in (Rung(12), Rung(3, 5), Rung(30, 0.5)):
        horizon = rung.tokens_per_parameter * rung.parameters / 2_673_868_800
        factor = math.sqrt(rung.batch_tokens / 524_288) * horizon**-0.32
        assert rung.muon_lr == pytest.approx(0.0099766 * factor, rel=5e-3)
        assert rung.adamw_lr == pytest.approx(
            3.6e-3 * factor * math.sqrt(768 / rung.width), rel=5e-3
        )


def test_tokens_a_parameter_are_the_second_number() -> None:
    config = get_recipe("ladder:2:2.5")
    assert config.tokens == pytest.approx(2.5 * 393_216, rel=2e-3)
    assert config.recipe == "ladder:2:2.5"
    assert parse_rung("ladder:2:20") == parse_rung("ladder:2") == Rung(2)
    assert get_recipe("ladder:1:0.001").train.steps == 1


@pytest.mark.parametrize("depth", ["0", "x", "49", "1000", "-1", "6.5", "", "6:", "6:1:2", "٦"])
def test_a_depth_that_is_none_is_refused_in_one_line(depth: str, capsys: Capture) -> None:
    assert refusal(["train", f"ladder:{depth}"], capsys) == (
        f"there is no recipe 'ladder:{depth}': a rung is ladder:N, N blocks deep, a whole number "
        "from 1 to 48, such as ladder:6, or ladder:N:T with T tokens a parameter"
    )


@pytest.mark.parametrize("ratio", ["0", "0.0", "10001"])
def test_tokens_a_parameter_out_of_range_are_refused(ratio: str, capsys: Capture) -> None:
    assert refusal(["train", f"ladder:6:{ratio}"], capsys) == (
        f"there is no recipe 'ladder:6:{ratio}': its tokens a parameter must be above 0 and at "
        "most 10,000, such as ladder:6:10"
    )


def test_tokens_a_parameter_are_an_option_of_rungs_too(capsys: Capture) -> None:
    for command in ("train", "sweep", "plan"):
        for option in (["--tokens-per-parameter", "2.5"], ["--tokens_per_parameter=2.5"]):
            assert parse([command, "ladder:2", *option]).config == get_recipe("ladder:2:2.5")
    assert parse(["train", "ladder:2", "--tokens-per-parameter", "20"]).recipe == "ladder:2"
    small = parse(["train", "ladder:2", "--tokens-per-parameter", "1e-3", "--train.steps", "3"])
    assert (small.recipe, small.train.steps) == ("ladder:2:0.001", 3)
    with pytest.raises(SystemExit):
        main(["train", "ladder:6:10", "--help"])
    shown = " ".join(re.sub("[│┃]", " ", capsys.readouterr().out).split())
    assert re.search(r"--tokens-per-parameter .*? from which batch, .*? \(default: 10.0\)", shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["laptop", "--tokens-per-parameter", "10"],
            "--tokens-per-parameter is of the rungs ladder:N, whose batch, steps and rates follow "
            "from it, and laptop is none: name one first, or give --train.steps",
        ),
        (
            ["ladder:2:5", "--tokens-per-parameter", "10"],
            "ladder:2:5 says its tokens a parameter, and --tokens-per-parameter others, 10: leave "
            "one of the two out",
        ),
        *(
            (
                ["ladder:2", "--tokens-per-parameter", given],
                f"--tokens-per-parameter is {given}: it must be above 0 and at most 10,000",
            )
            for given in ("0", "-1", "nan", "10001")
        ),
        (
            ["ladder:2", "--tokens-per-parameter", "many"],
            "--tokens-per-parameter is 'many': it must be a number or None",
        ),
    ],
)
def test_an_option_of_rungs_that_makes_no_sense_is_one_line(
    arguments: list[str], message: str, capsys: Capture
) -> None:
    assert refusal(["plan", *arguments], capsys) == message


def test_what_a_replaced_size_leaves_as_it_was_is_said() -> None:
    arguments = ["train", "ladder:3", "--model.width", "384", "--model.layers=3", "--train.steps=9"]
    config = parse(arguments).config
    assert (config.train.batch_tokens, config.optim.muon) == (
        get_recipe("ladder:3").train.batch_tokens,
        get_recipe("ladder:3").optim.muon,
    )
    assert opening_notes(config, arguments) == [
        "note: --model.width 384 replaces the 192 of ladder:3 and nothing else: steps, rates and "
        "all other fields stay those of the rung"
    ]


def test_a_name_near_the_ladder_is_led_to_it(capsys: Capture) -> None:
    assert "did you mean ladder:N?" in refusal(["train", "laddr:6"], capsys)
    assert find_recipe("laddr:6") is None
    must_come_first = refusal(["train", "--train.steps", "3", "ladder:6"], capsys)
    assert must_come_first.startswith("the recipe 'ladder:6' must come first")


def test_every_field_of_a_rung_can_be_replaced() -> None:
    command = parse(["sweep", "ladder:3:10", "--optim.muon.lr", "0.05", "--model.width", "384"])
    changed = differing_fields(get_recipe("ladder:3:10"), command.config)
    assert changed == ["model.width", "optim.muon.lr"]
    assert (command.optim.muon.lr, command.model.width) == (0.05, 384)


def test_a_rung_trains_into_a_folder_without_colons(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--data.path", str(tiny_data), "--model.context", "32", "--model.vocab-size"]
    few = ["--train.steps", "2", "--train.batch-tokens", "64", "--train.eval-tokens", "64"]
    quiet = ["--train.no-report", "--train.log-to", "--train.sample-tokens", "0"]
    main(["train", "ladder:1", *sizes, str(TINY_VOCAB), *few, *quiet])
    config = run_dir.read_config(tmp_path / "runs" / "ladder-1-1")
    assert (config.recipe, config.model.width, config.train.steps) == ("ladder:1", 64, 2)
    for named in (["ladder:1"], []):
        resume = ["--resume", "runs/ladder-1-1", "--tokens-per-parameter"]
        assert refusal(["train", *named, *resume, "5"], capsys) == (
            "runs/ladder-1-1 holds a run of ladder:1, which cannot continue as ladder:1:5: leave "
            "--tokens-per-parameter out, or name another folder"
        )
        assert parse(["train", *named, *resume, "20"]).config == config


def test_recipes_shows_rungs_with_sizes_operations_and_hours(capsys: Capture) -> None:
    text = output(["recipes", "--ladder"], capsys)
    found = re.search(
        r"^ +ladder:12 +768 +84\.93M +123\.6M +1\.699B +524,288 +3,240 +1\.4e\+18 ", text, re.M
    )
    assert found, text
    # 1.699e9 tokens x 0.798 GFLOP, at 52 GFLOP/s and 444 TFLOP/s.
    hours = text[found.end() :].splitlines()[0].split()
    assert [float(hours[0].replace(",", "")), hours[1]] == [7300, "h"]
    assert hours[2:] == ["51", "min"]
    h100 = " ".join(text.partition("hours on one H100: ")[2].split())
    assert h100.startswith("a prediction, at 444 TFLOP/s; none was measured: 45% of the peak, ")
    assert "measured for modded on one H200 (docs/gpu.md" in h100
    assert h100.endswith("the same peak in bfloat16, 989 TFLOP/s, and so the same hours")


def test_recipes_as_json_have_the_numbers_of_the_tables(capsys: Capture) -> None:
    found = json.loads(output(["recipes", "--ladder", "--json"], capsys))
    rung = next(one for one in found["rungs"] if one["recipe"] == "ladder:12")
    assert (rung["parameters"]["blocks"], rung["batch_tokens"]) == (84_934_656, 524_288)
    assert rung["tokens"] == rung["steps"] * 524_288 == 3240 * 524_288
    by_device = {speed["device"]: speed["flops_per_s"] for speed in found["speeds"]}
    assert by_device["H100"] == device_of("h100").rate
    assert {name: 3600 * hours for name, hours in rung["hours"].items()} == {
        name: pytest.approx(rung["flops"] / speed) for name, speed in by_device.items()
    }
    recipes = json.loads(output(["recipes", "--json"], capsys))["recipes"]
    modded = next(one for one in recipes if one["recipe"] == "modded")
    assert (modded["tokens"], modded["expected_loss"]) == (2_673_868_800, "3.28 FineWeb")
    assert [one["recipe"] for one in recipes] == list(RECIPES)

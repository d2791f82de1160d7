"""`quintic plan`: what fits, how long it takes, and which figure is what."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from bench.results import RESULTS

from quintic.cli.main import main
from quintic.console import hours_text
from quintic.model.build import meta_model
from quintic.plan.devices import GPUS, device_of
from quintic.plan.memory import KEPT_LEAST, KEPT_MOST
from quintic.plan.plan import Plan, make_plan
from quintic.plan.rates import CPU_CORE, H200
from quintic.plan.text import conclusions, figures, memory_table
from quintic.recipes import get_recipe
from tests.conftest import refusal

Capture = pytest.CaptureFixture[str]
SMALL = {"model.vocab_size": 320, "model.context": 64, "train.compile": False}


@pytest.fixture(scope="module")
def plan() -> Plan:
    config = get_recipe("ladder:2").override({**SMALL, "train.eval_tokens": 1024})
    return make_plan(config, gpu="H100", gpus=2, hours=1.0)


def test_the_measured_rates_are_those_of_the_results() -> None:
    trained = json.loads((RESULTS / "gpu-nvidia-h200-train.json").read_text())["train"][0]
    assert (trained["recipe"], trained["way"]) == ("modded", "as it is")
    assert trained["batch_tokens"] / trained["step_ms"] * 1000 == pytest.approx(
        H200.tokens_per_s, abs=1
    )
    assert get_recipe("modded").model == H200.model
    run = RESULTS / "ladder" / "00-modded-seed1"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(step["tokens_per_s"] for step in steps if "tokens_per_s" in step)
    assert speeds[len(speeds) // 2] == pytest.approx(CPU_CORE.tokens_per_s, rel=0.002)
    model = json.loads((run / "config.json").read_text())["model"]
    assert {name: model[name] for name in ("layers", "width", "context", "vocab_size")} == {
        name: getattr(CPU_CORE.model, name) for name in ("layers", "width", "context", "vocab_size")
    }


def test_every_device_has_a_peak_and_its_memory() -> None:
    assert {name: device_of(name).type for name in GPUS} == dict.fromkeys(GPUS, "cuda")
    h100, a100 = device_of("h100"), device_of("A100-40gb")
    assert (h100.peak_flops, h100.memory_bytes) == (989e12, 80e9)
    assert (a100.peak_flops, a100.memory_bytes) == (312e12, 40e9)
    assert a100.rate / h100.rate == pytest.approx(312 / 989)


def test_time_is_tokens_over_the_rate_and_the_floor_is_the_peak(plan: Plan) -> None:
    assert plan.floor_tokens_per_s == pytest.approx(2 * 989e12 / plan.flops_per_step * 8192)
    share = H200.flops_per_s / 989e12
    assert plan.tokens_per_s == pytest.approx(share * (plan.floor_tokens_per_s or 0))
    assert plan.hours == pytest.approx(plan.config.tokens / plan.tokens_per_s / 3600)
    # Newton-Schulz is part of the operations: 2 x 4 of 128 x 128 and 2 x 2 of 128 x 512.
    square, tall = 6 * 128**3, 4 * 128**2 * 512 + 2 * 128**3
    newton_schulz = 5 * (8 * square + 4 * tall)
    assert plan.flops_per_step == 8192 * plan.flops_per_token + newton_schulz
    assert plan.flops == plan.flops_per_step * 960


def test_disk_is_what_checkpoints_and_tokens_take(plan: Plan) -> None:
    parameters, blocks = plan.parameters, 2 * 12 * 128**2
    assert (plan.blocks, parameters) == (blocks, blocks + 384 * 128 - 64 * 128)
    assert plan.checkpoint_bytes == 4 * parameters + 4 * blocks + 8 * (parameters - blocks) + 4
    assert plan.checkpoints == 4  # the newest two, the best, the one before the cooldown
    assert plan.shard_bytes == 2 * (plan.config.tokens + 1024)
    wide = make_plan(plan.config.override({"model.vocab_size": 65_537}), gpu="H100", gpus=2)
    assert wide.shard_bytes == 4 * (plan.config.tokens + 1024)


def test_what_is_resident_on_a_cpu_is_as_it_was_measured(plan: Plan) -> None:
    assert plan.resident_bytes is None, "a GPU's memory is counted by PyTorch"
    settings = json.loads((RESULTS / "plan-memory.json").read_text())["settings"].values()
    ratios = [
        one["measured_kept_bytes"] / one["predicted_bytes"]
        for one in settings
        if "measured_kept_bytes" in one
    ]
    assert math.floor(10 * min(ratios)) / 10 == KEPT_LEAST
    assert math.ceil(10 * max(ratios)) / 10 == KEPT_MOST


def test_the_largest_micro_batch_that_fits_is_chosen_without_what_costs_time(plan: Plan) -> None:
    assert plan.chosen is not None
    setting = plan.chosen.setting
    assert (setting.micro_batch, setting.sharding, setting.checkpointing) == (64, "zero1", False)
    assert plan.passes == 1
    table = memory_table(plan)
    assert table.header == ["micro-batch", "activations", "zero1", "fsdp"]
    assert [row[0] for row in table.rows] == ["1", "2", "4", "8", "16", "32", "64"]


def test_what_no_device_has_sequences_for_costs_time(plan: Plan) -> None:
    """128 sequences on three devices: 32 at a time are 2 passes with room for 192, 8 at a time 6
    with room for 144, 4 at a time 11 with room for 132."""
    assert plan.config.batch_sequences == 128
    three = make_plan(plan.config, gpu="H100", gpus=3)
    assert three.chosen is not None
    assert (three.chosen.setting.micro_batch, three.passes) == (4, 11)
    assert three.busy == 128 / 132
    assert three.tokens_per_s == pytest.approx(plan.tokens_per_s * 3 / 2 * 128 / 132)
    assert any("3% of the devices' passes have no sequences" in line for line in figures(three))


def test_of_micro_batches_the_largest_that_fits_is_named_however_many_are_larger() -> None:
    few = {"model.vocab_size": 4096, "train.compile": False, "train.loss": "plain"}
    plan = make_plan(get_recipe("ladder:12").override(few), gpu="rtx3090", gpus=1)
    sizes = {p.setting.micro_batch for p in plan.settings}
    assert sizes == {2**n for n in range(10)}
    assert plan.chosen is not None
    chosen = plan.chosen.setting
    plain = [p for p in plan.settings if not p.setting.checkpointing]
    fitting = {p.setting.micro_batch for p in plain if p.fits}
    assert chosen.micro_batch == max(fitting) and not chosen.checkpointing
    assert {2 * chosen.micro_batch} <= sizes - fitting


def test_every_figure_says_what_it_is(plan: Plan) -> None:
    lines = list(figures(plan))
    assert all(line.endswith("]") and "[" in line for line in lines)
    (speed,) = (line for line in lines if line.startswith("tokens/s:"))
    assert "[prediction: 45% of the peak, measured for modded on one H200 (docs/gpu.md" in speed
    assert "communication is not counted" in speed
    said = list(conclusions(plan))
    assert said[0] == (
        "fits: --train.micro-batch 64 --train.sharding zero1, 1 pass a step on each device"
    )
    assert f"in {hours_text(3600)}: {plan.steps_in_hours:,} steps of this config" in said[1]


def test_hours_give_the_steps_and_the_deepest_rung_that_they_suffice_for(plan: Plan) -> None:
    assert plan.steps_in_hours == int(3600 * plan.tokens_per_s / 8192)
    assert plan.rung is not None
    depth = int(plan.rung.removeprefix("ladder:"))
    budget = 3600 * plan.device.rate * 2
    for rung, fits in ((depth, True), (depth + 1, False)):
        config = get_recipe(f"ladder:{rung}").override({"model.vocab_size": 320})
        flops = meta_model(config.model).flops_per_token() * config.tokens
        assert (flops <= budget) is fits


def test_a_model_that_fits_nowhere_is_said_to() -> None:
    big = {"model.width": 8192, "model.heads": 64, "model.layers": 8, "model.vocab_size": 512}
    config = get_recipe("ladder:12").override({**big, "train.micro_batch": 1})
    plan = make_plan(config, gpu="l4", gpus=1)
    assert plan.chosen is None
    (said,) = conclusions(plan)
    assert said.startswith("no setting fits: the smallest takes ")
    assert "and a device has 22.35; use more devices" in said
    table = memory_table(plan)
    peaks = [i for i, name in enumerate(table.header) if name in ("peak", "checkpointing")]
    assert all(row[i].endswith(", too much") for row in table.rows for i in peaks)


def test_json_has_every_figure(capsys: Capture, tmp_path: Path) -> None:
    capsys.readouterr()
    few = ["--model.vocab-size", "320", "--model.context", "64", "--train.micro-batch", "4"]
    main(["plan", "ladder:1:0.5", "--gpu", "cpu", *few, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    main(["plan", "ladder:1:0.5", "--gpu", "cpu", *few])
    assert "resident at most, GiB: 0.0" in capsys.readouterr().out
    assert found["recipe"] == "ladder:1:0.5"
    assert found["device"]["name"] == "cpu"
    assert found["floor_tokens_per_s"] is None
    assert {s["micro_batch"] for s in found["settings"]} == {4}
    memory = found["chosen"]["memory_bytes"]
    held = memory["weights"] + memory["gradients"] + memory["optimizer"]
    assert memory["peak"] == held + max(memory["activations"], memory["update"])
    low, high = found["resident_bytes"]
    assert (low, high) == (round(KEPT_LEAST * memory["peak"]), round(KEPT_MOST * memory["peak"]))
    assert found["vocabulary"] == {"size": 320, "from": "the config"}
    assert found["hours"] * 3600 * found["tokens_per_s"] == pytest.approx(found["tokens"])


def test_where_nothing_says_a_vocabulary_it_is_gpt2s(capsys: Capture, tiny_data: Path) -> None:
    capsys.readouterr()
    main(["plan", "ladder:1", "--data.path", "nowhere", "--train.micro-batch", "1"])
    assert "vocabulary 50,304 (from GPT-2, since nowhere is not there)" in capsys.readouterr().out
    refused = refusal(["plan", "ladder:1", "--data.path", str(tiny_data)], capsys)
    assert refused.startswith(f"the vocabulary of {tiny_data} is unknown")


def test_the_precision_of_a_plan_may_be_named(plan: Plan) -> None:
    named = plan.config.override({"train.precision": "bfloat16", "train.device": "cuda"})
    assert make_plan(named, gpu="H100", gpus=2, hours=1.0).chosen == plan.chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--gpu", "h1000"],
            "--gpu is 'h1000': it must be one of b200, h200, h100, a100, a100-40gb, l40s, l4, "
            "a10g, rtx5090, rtx4090, rtx3090, or cpu for this machine's",
        ),
        (["--gpus", "0"], "--gpus is 0: it must be at least 1"),
        (["--gpus", "many"], "--gpus is 'many': it must be an integer"),
        (["--hours", "0"], "--hours is 0: it must be positive and finite"),
        (["--hours", "inf"], "--hours is inf: it must be positive and finite"),
        (["--hours", "nan"], "--hours is nan: it must be positive and finite"),
        (
            ["--gpu", "cpu", "--gpus", "2"],
            "--gpus is 2 and --gpu is cpu: a plan is of one process there",
        ),
        (
            ["--gpus", "64"],
            "a batch of 2 sequences cannot be divided among 64 processes: start at most 2, or "
            "use --train.batch-tokens 65536",
        ),
        (
            ["--train.device", "cpu"],
            "train.device is cpu and --gpu is h100: use --train.device auto, or --gpu cpu",
        ),
        (
            ["--gpu", "cpu", "--train.device", "cuda"],
            "train.device is cuda and --gpu is cpu: use --train.device auto, or a --gpu of that "
            "kind",
        ),
        (
            ["--gpu", "l4", "--train.precision", "float32"],
            "train.precision is float32: a plan for l4 is of bfloat16, in which its memory is "
            "counted and its speed known; use --train.precision auto",
        ),
        (
            ["--gpu", "cpu", "--train.precision", "float64"],
            "train.precision is float64: a plan for cpu is of float32, in which its memory is "
            "counted and its speed known; use --train.precision auto",
        ),
        (
            ["--gpu", "A100", "--train.float8-head"],
            "train.float8_head multiplies in float8, which a100 cannot: use --train.no-float8-head",
        ),
        (
            ["--gpu", "cpu", "--train.loss", "fused"],
            "train.loss fused is for GPUs and --gpu is cpu: leave it out",
        ),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: Capture) -> None:
    assert refusal(["plan", "ladder:1", *options], capsys) == message

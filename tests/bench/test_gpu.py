"""`python -m bench.gpu` at a toy size on the CPU: the same program that a GPU gets."""

import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.changes import parse_changes
from bench.gpu.__main__ import main
from bench.gpu.budget import Budget
from bench.gpu.floor import floor, traffic
from bench.gpu.parity import (
    CHECKS,
    Check,
    check_blocks,
    check_model,
    check_rotary,
    error,
    run_checks,
    run_marked_tests,
)
from bench.gpu.steps import (
    AS_IS,
    PLAIN,
    PlainStepper,
    QuinticStepper,
    measure_way,
    with_random_shards,
)
from bench.gpu.training import sized, steps_within, unpacked

from quintic.config import Config
from quintic.errors import QuinticError
from quintic.recipes import RECIPES, get_recipe
from tests.conftest import TINY_VOCAB, tiny_config

CPU = torch.device("cpu")

TOY = [
    *(
        "model.layers=2",
        "model.value_embeddings=1",
        "model.width=32",
        "model.heads=2",
        "model.context=32",
    ),
    *(f"model.vocab_size={TINY_VOCAB}", "train.batch_tokens=256", "train.micro_batch=4"),
]
ABSENT = ("tyro", "orjson", "httpx2", "zstandard", "platformdirs", "pytorch_optimizer")
"""What a GPU machine without network may lack."""


def figures_of(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "gpu-cpu.json").read_text())
    return figures


def test_the_whole_program_runs_end_to_end_on_packed_shards_with_the_plain_loop_beside_it(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for shard in tiny_data.glob("*.bin"):
        (packed / f"{shard.name}.xz").write_bytes(lzma.compress(shard.read_bytes(), preset=0))
    main(
        [
            *("--device", "cpu", "--recipes", "laptop", "--set", *TOY, "--rounds", "2"),
            *("--parts", "floor", "ceilings", "steps", "train", "--plain", "eager"),
            *("--switch", "optim.muon.ns_steps=3", "train.micro_batch=3", "train.compile=false"),
            *("--only-switches", "--data", str(packed), "--minutes", "0.05"),
            *("--budget", "600", "--out", str(tmp_path / "out")),
        ]
    )
    figures = figures_of(tmp_path / "out")
    assert figures["environment"]["command"] == "python -m bench.gpu"
    assert figures["ceilings"]["product_tflops"] > 0 and figures["ceilings"]["copy_tb_per_s"] > 0
    assert figures["floor"]["laptop"]["floor_tokens_per_s"] > 0
    rows = {row["way"]: row for row in figures["steps"]}
    # What the recipe says itself is not measured twice; what cannot be is refused in words.
    assert list(rows) == [PLAIN, AS_IS, "optim.muon.ns_steps 3", "train.micro_batch 3"]
    assert "must divide" in rows["train.micro_batch 3"]["refused"]
    for name in (PLAIN, AS_IS, "optim.muon.ns_steps 3"):
        row = rows[name]
        assert len(row["steps_ms"]) == 2 and row["step_ms"] > 0 and row["micro_batch"] == 4
        assert row["tokens_per_s"] == pytest.approx(256 / row["step_ms"] * 1000, rel=0.01)
        shares = row["shares"]
        assert all(shares[part] > 0 for part in ("forward", "backward", "optimizer"))
        assert sum(shares.values()) < 1.05
        kernels = row["longest_kernels"]
        assert 5 < len(kernels) <= 15
        assert kernels == sorted(kernels, key=lambda kernel: -kernel["ms"])
        assert "mm" in " ".join(kernel["kernel"] for kernel in kernels)
    assert rows[AS_IS]["times_the_plain_loop"] == pytest.approx(
        rows[PLAIN]["step_ms"] / rows[AS_IS]["step_ms"], abs=1e-3
    )
    (trained,) = figures["train"]
    assert trained["finished"] and trained["steps"] == trained["of_steps"]
    losses = [point["val_loss"] for point in trained["val_losses"]]
    # How many steps fit depends on what else runs here.
    assert len(losses) >= 2 and losses[-1] == trained["final_val_loss"] < losses[0]
    assert not (tmp_path / "out" / "train-laptop" / "checkpoints").exists()
    last = capsys.readouterr().out.strip().splitlines()[-8:]
    assert any(line.startswith("trained") for line in last) and last[-1].startswith("written to")


def test_what_has_no_time_left_is_skipped_in_words_and_what_was_measured_is_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *("--device", "cpu", "--recipes", "laptop", "--set", *TOY),
            *("--parts", "floor", "ceilings", "parity", "--budget", "5.5"),
            *("--out", str(tmp_path)),
        ]
    )
    figures = figures_of(tmp_path)
    assert "ceilings" not in figures and figures["floor"]["laptop"]["gflop_per_token"] > 0
    assert figures["parity"]["checks"] == []
    assert figures["said"][0].startswith("skipped ceilings: it needs about 5 s")
    assert f"note: {figures['said'][0]}" in capsys.readouterr().out


def test_a_recipe_that_does_not_exist_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, message in (
        (["--recipes", "moded"], "there is no recipe 'moded'"),
        (["--set", "model.layer=3"], "did you mean model.layers?"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["--device", "cpu", "--parts", "floor", *arguments])
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_nothing_but_pytorch_and_numpy_is_needed_of_what_a_gpu_machine_may_lack() -> None:
    code = (
        f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
        "import bench.gpu.__main__, tests.conftest"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c not in (check_model, check_rotary, check_blocks)]
)
def test_every_fast_path_that_needs_no_compiler_agrees_with_its_reference(check: Any) -> None:
    results = list(check(CPU))
    assert results and all(result.passed for result in results), results


def test_a_check_fails_where_the_fast_way_is_wrong_or_not_a_number() -> None:
    exact = torch.randn(50, dtype=torch.float64)
    rounded = error(exact.bfloat16(), exact)
    assert 1e-4 < rounded < 1e-2
    assert Check("same", rounded, rounded).passed
    assert not Check("coarser", 2.5 * rounded, rounded).passed
    assert not Check("no number", error(exact * torch.nan, exact), rounded).passed


def test_a_check_that_raises_has_failed_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(device: torch.device) -> Any:
        raise RuntimeError("no such kernel")

    def sound(device: torch.device) -> Any:
        yield Check("sound", 0.0, 0.0)

    monkeypatch.setattr("bench.gpu.parity.CHECKS", (broken, sound))
    failed, passed = run_checks(CPU, Budget(100))
    assert not failed["passed"] and failed["raised"] == "no such kernel"
    assert passed["passed"] and "no such kernel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "passed"), [(1.0, True), (1.0, False), (1e-4, None)], ids=["pass", "fail", "slow"]
)
def test_marked_tests_that_do_not_end_have_not_failed(
    share: float, passed: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = f"import pytest\n@pytest.mark.device\ndef test_it(): assert {passed is not False}\n"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = device\n")
    monkeypatch.setattr("bench.gpu.parity.ROOT", tmp_path)
    budget = Budget(100)
    found = run_marked_tests(budget, share)
    assert found.get("passed") is passed
    if passed is None:
        assert found["skipped"] == "not finished"
        assert budget.said == ["the marked tests did not end within 0 s"]
    else:
        assert ("1 passed" if passed else "1 failed") in found["summary"]


def test_the_plain_loop_and_quintic_take_the_same_steps(tmp_path: Path) -> None:
    # Else their times could not be compared: same weights, same batch, same update.
    config = tiny_config(Path("unused"), {"train.micro_batch": 4, "train.steps": 100})
    config = with_random_shards(config, tmp_path)
    ours, plain = QuinticStepper(config, CPU), PlainStepper(config, CPU, compiled=False)
    weights = [dict(s.named_parameters()) for s in (ours.run.state.model, plain._loop.model)]
    with torch.no_grad():
        for name, weight in weights[1].items():
            weight.copy_(weights[0][name])
    before = {name: weight.detach().clone() for name, weight in weights[0].items()}
    for step in range(2):  # in the first, most matrices have no gradient yet
        inputs_BT, targets_BT = ours.run.loader.batch(step)
        plain._inputs, plain._targets = inputs_BT.split(4), targets_BT.split(4)
        assert len(ours.step().forward) == len(plain.step().forward) == 2
    ours.close()
    for name, weight in weights[0].items():
        moved = (weight - before[name]).norm()
        assert moved > 0
        assert (weight - weights[1][name]).norm() < 2e-3 * moved, name


def test_a_micro_batch_that_does_not_fit_is_halved_and_that_is_said(tmp_path: Path) -> None:
    tried = []

    def build(config: Config) -> QuinticStepper:
        tried.append(config.train.micro_batch)
        if config.train.micro_batch != 2:
            raise torch.OutOfMemoryError("too large")
        return QuinticStepper(config, CPU)

    config = tiny_config(Path("unused"), {"train.micro_batch": 8, "train.steps": 100})
    budget = Budget(100)
    figures = measure_way(build, with_random_shards(config, tmp_path), CPU, 1, budget)
    assert tried == [8, 4, 2] and figures["micro_batch"] == 2
    assert [line.split("micro-batch ")[1] for line in budget.said] == [
        f"{size} does not fit, half of it next" for size in (8, 4)
    ]
    with pytest.raises(torch.OutOfMemoryError):
        measure_way(build, config.override({"train.micro_batch": 1}), CPU, 1, budget)


def test_a_run_is_sized_to_its_minutes_with_a_tenth_for_validation(tiny_data: Path) -> None:
    gpt2 = get_recipe("gpt2")
    assert steps_within(gpt2, 60.0, step_ms=500.0) == 108
    config = sized(gpt2, tiny_data, 108)
    train = config.train
    assert train.steps == 108
    assert config.optim.schedule.warmup_steps == 10  # of 700, for 18,865 steps
    assert train.eval_every == 10 and train.eval_tokens == 1024  # all that there is
    assert train.checkpoint_every > train.steps
    with pytest.raises(QuinticError, match="0 s are less than a step of 500 ms"):
        steps_within(gpt2, 0.4, step_ms=500.0)


def test_recipes_train_for_the_same_steps_where_these_are_asked_for(
    tiny_data: Path, tmp_path: Path
) -> None:
    main(
        [
            *("--device", "cpu", "--recipes", "modded", "speedrun", "--parts", "train"),
            *("--set", *TOY, "model.layers=6", "train.compile=false", "--data", str(tiny_data)),
            *("--steps", "20", "--minutes", "0.0001", "--out", str(tmp_path)),
        ]
    )
    trained = figures_of(tmp_path)["train"]
    assert [row["recipe"] for row in trained] == ["modded", "speedrun"]
    for row in trained:
        assert row["finished"] and row["steps"] == row["of_steps"] == 20
        # A tenth of the time, at three times the speed, over 11 validations; 1,999 are there.
        assert row["eval_tokens"] == 3 * 20 * 256 // 9 // 11 // 32 * 32
    assert [p["step"] for p in trained[0]["val_losses"]] == list(range(0, 21, 2))


def test_shards_that_are_not_packed_are_used_where_they_lie(
    tiny_data: Path, tmp_path: Path
) -> None:
    with unpacked(tiny_data) as folder:
        assert folder == tiny_data
    for shard in tiny_data.glob("*.bin"):
        shutil.copy(shard, tmp_path / shard.name)
    first = next(iter(sorted(tmp_path.glob("*.bin"))))
    packed = first.with_name(f"{first.name}.xz")
    packed.write_bytes(lzma.compress(first.read_bytes(), preset=0))
    content = first.read_bytes()
    first.unlink()
    with unpacked(tmp_path) as folder:
        assert (folder / first.name).read_bytes() == content
        assert {path.name for path in folder.glob("*.bin")} == {
            path.name for path in tiny_data.glob("*.bin")
        }


def test_changes_are_read_as_json_and_else_as_text() -> None:
    changes = parse_changes("train.compile=false,optim.muon.lr=1e-3,train.loss=plain")
    assert changes == {"train.compile": False, "optim.muon.lr": 1e-3, "train.loss": "plain"}
    assert parse_changes("train.micro-batch=null") == {"train.micro_batch": None}


def test_a_budget_counts_down_and_remembers_what_it_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    budget = Budget(0.2)
    assert budget.allows(0.1, "something short")
    clock[0] += 0.15
    assert not budget.allows(0.1, "something else")
    assert len(budget.said) == 1 and "skipped something else" in budget.said[0]
    assert 0 <= budget.left_s < 0.06


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_floor_of_every_recipe_is_the_larger_of_two_times(recipe: str) -> None:
    found = floor(get_recipe(recipe))
    ms = 1000 * get_recipe(recipe).train.batch_tokens / found["floor_tokens_per_s"]
    assert ms == pytest.approx(max(found["arithmetic_ms"], found["memory_ms"]), rel=0.1)


def test_the_floor_of_modded_is_what_the_docs_say() -> None:
    found = floor(get_recipe("modded"))
    docs = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    for value in (
        f"{found['gflop_per_token']:.3f} GFLOP",
        f"{found['mb_per_token']:.2f} MB",
        f"{found['arithmetic_ms']:.0f} ms",
        f"{found['memory_ms']:.0f} ms",
        f"{found['floor_tokens_per_s']:,} tokens/s",
    ):
        assert value in docs, value


def test_traffic_grows_with_micro_batches_only_where_weights_move() -> None:
    def of(micro_batch: int) -> dict[str, float]:
        config: Config = get_recipe("modded").override({"train.micro_batch": micro_batch})
        return dict(vars(traffic(config)))

    one, two = of(64), of(32)
    changed = {name for name in one if one[name] != two[name]}
    assert changed == {"casts", "weights", "weight_gradients"}
    assert all(two[name] == 2 * one[name] for name in changed)

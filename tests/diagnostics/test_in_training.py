"""Diagnostics change nothing, and are the same for every number of processes and after a stop."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quintic.config import Config
from quintic.diagnostics.record import DIAGNOSTICS, read_diagnostics, to_line
from quintic.distributed.world import ALONE, World
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, read_records
from quintic.run_checkpoints import checkpoints
from tests.conftest import main, tiny_arguments, tiny_config
from tests.multiprocess.test_same_result import train_here
from tests.multiprocess.worlds import run_world

EVERY = ["--train.diagnostics-every", "3"]


@pytest.fixture(scope="module")
def measured_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like `tiny_run`, with diagnostics; tests must not change it."""
    folder = tmp_path_factory.mktemp("diagnostics") / "run"
    main([*tiny_arguments(tiny_data), *EVERY, "--out", str(folder)])
    return folder


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in read_diagnostics(folder)]


def test_training_is_the_same_bit_for_bit(tiny_run: Path, measured_run: Path) -> None:
    def losses(folder: Path) -> list[tuple[int, float | None, float | None]]:
        records = read_records(folder / METRICS)
        return [(r["step"], r.get("train_loss"), r.get("val_loss")) for r in records]

    def tensors(folder: Path) -> dict[str, torch.Tensor]:
        newest = checkpoints(folder / "checkpoints")[-1]
        return {n: t for path in newest.glob("*.safetensors") for n, t in load_file(path).items()}

    assert losses(measured_run) == losses(tiny_run)
    one, other = tensors(tiny_run), tensors(measured_run)
    assert one.keys() == other.keys() and len(one) > 20
    assert [name for name in one if not one[name].equal(other[name])] == []
    assert not (tiny_run / DIAGNOSTICS).exists()


def test_a_record_of_every_third_step(measured_run: Path) -> None:
    records = read_diagnostics(measured_run)
    assert records == read_diagnostics(str(measured_run / DIAGNOSTICS))
    assert [(r["step"], r["tokens"]) for r in records] == [(n, n * 256) for n in (0, 3, 6, 9)]
    last = records[-1]
    assert last.keys() == {"step", "tokens", "band", "matrices", "layers", "seconds"}
    assert len(last["matrices"]) == 12 and len(last["layers"]) == 2
    for facts in last["matrices"].values():
        low, _, median, _, high = facts["update"]
        assert 0 < low <= median <= high <= last["band"][1] + 1e-4
        assert facts["polynomial_error"] < 1e-3
        assert 0 < facts["update_to_weight"] < 2
    # Output projections start at zero, so nothing has a gradient behind them at step 0.
    first = records[0]["matrices"]
    assert first["layers.0.attention.q.weight"]["gradient_stable_rank"] is None
    assert first["layers.0.attention.o.weight"]["update_to_weight"] is None
    with pytest.raises(QuinticError, match=r"train with --train.diagnostics-every N"):
        read_diagnostics(measured_run / "other.jsonl")


def test_a_resumed_run_measures_what_it_does_again_and_a_longer_one_goes_on(
    measured_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, longer = tmp_path / "stopped", tmp_path / "longer"
    shutil.copytree(measured_run, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000012")
    with (stopped / DIAGNOSTICS).open("a") as file:
        file.write('{"step": 12, "tok')
    main(["train", "--resume", str(stopped)])
    assert untimed(stopped) == untimed(measured_run)
    said = capsys.readouterr().out
    assert f"diagnostics every 3 steps, in {stopped / DIAGNOSTICS}" in said
    assert "diagnostics of 4 steps took " in said
    main(["train", "--resume", str(measured_run), "--train.steps", "16", "--out", str(longer)])
    assert [record["step"] for record in untimed(longer)] == [0, 3, 6, 9, 12, 15]
    assert untimed(longer)[:2] == untimed(measured_run)[:2]
    # What is measured no more is cut back all the same.
    shutil.rmtree(stopped / "checkpoints" / "step-00000012")
    main(["train", "--resume", str(stopped), "--train.diagnostics-every", "None"])
    assert [record["step"] for record in read_diagnostics(stopped)] == [0, 3, 6]


def test_what_is_not_finite_is_null() -> None:
    line = to_line({"step": 1, "matrices": {"m": {"update": [math.nan, 1.0]}}, "x": math.inf})
    assert line == '{"step": 1, "matrices": {"m": {"update": [null, 1.0]}}, "x": null}\n'


KINDS: dict[str, dict[str, Any]] = {
    "muon": {"optim.muon.normuon": True, "optim.muon.weight_decay": 0.1, "model.window": 5},
    "adamw": {"optim.matrices": "adamw", "optim.adamw.weight_decay": 0.1, "model.x0_skip": True},
    "gpt2": {"model.architecture": "gpt2"},
}


def diagnosed(world: World, configs: dict[str, Config], root: Path) -> None:
    for name, config in configs.items():
        train_here(world, config, root / name)


@pytest.fixture(scope="module")
def kinds(tiny_data: Path) -> dict[str, Config]:
    common = {
        **{"model.width": 16, "model.context": 16, "train.batch_tokens": 128},
        **{"train.precision": "float64", "train.steps": 3, "train.eval_tokens": 16},
        **{"optim.clip_norm": 0.5, "train.micro_batch": 2, "train.diagnostics_every": 2},
    }
    return {
        f"{name}-{sharding}": tiny_config(
            tiny_data, {**common, **changes, "train.sharding": sharding}
        )
        for name, changes in KINDS.items()
        for sharding in ("zero1", "fsdp")
    }


@pytest.fixture(scope="module")
def alone(kinds: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diagnosed")
    diagnosed(ALONE, {name: c for name, c in kinds.items() if name.endswith("zero1")}, root)
    return root


def assert_same(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where} {name}")
    elif isinstance(expected, list) and any(isinstance(v, dict | list) for v in expected):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where} {number}")
    elif expected is None or (isinstance(expected, list) and None in expected):
        assert found == expected, where
    else:  # of several singular values, the smallest are exact to the largest's rounding
        largest = max(abs(v) for v in expected) if isinstance(expected, list) else 0
        # A polynomial error is rounding itself: 1e-8 of the momentum, which the polynomial lifts.
        floor = 1e-5 if where.endswith("polynomial_error") else 1e-6 * largest
        assert found == pytest.approx(expected, rel=1e-6, abs=floor), where


@pytest.mark.parametrize("size", [2, 3])
def test_the_numbers_are_those_of_one_process(
    kinds: dict[str, Config], alone: Path, size: int, tmp_path: Path
) -> None:
    run_world(size, diagnosed, kinds, tmp_path)
    for name in kinds:
        expected = untimed(alone / f"{name.partition('-')[0]}-zero1")
        assert [record["step"] for record in expected] == [0, 2]
        assert_same(untimed(tmp_path / name), expected, name)

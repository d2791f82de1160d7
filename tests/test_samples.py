"""Samples along the way: one of each validation, and training knows nothing of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import World
from quintic.generate import generate_ids
from quintic.metrics_file import METRICS, read_records
from quintic.resuming import resume
from quintic.run import Run
from quintic.run_dir import CHECKPOINTS, SAMPLES, read_config
from quintic.samples import PROMPT_TOKENS
from quintic.setup import start
from quintic.train import train_run
from quintic.trained import load_trained
from tests.conftest import tiny_config
from tests.multiprocess.worlds import run_world

TEXT: dict[str, Any] = {"model.vocab_size": None, "train.sample_tokens": 64}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


def losses(folder: Path) -> list[tuple[int, float | None, float | None]]:
    records = read_records(folder / METRICS)
    return [(r["step"], r.get("train_loss"), r.get("val_loss")) for r in records]


def trained(folder: Path, config: Config) -> Run:
    run = start(config, folder, Console(quiet=True))
    assert train_run(run, Console(quiet=True))
    return run


@pytest.fixture(scope="module")
def sampled(text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampled") / "run"
    trained(folder, tiny_config(text_data, TEXT))
    return folder


def test_each_validation_has_a_sample_that_continues_the_validation_text(
    sampled: Path, text_data: Path
) -> None:
    found = lines(sampled)
    assert [(s["step"], s["tokens"]) for s in found] == [(n, n * 256) for n in (0, 5, 10, 12)]
    model = load_trained(sampled, device="cpu")
    dataset = model.open_data(Console(quiet=True))
    tokenizer = dataset.load_tokenizer()
    prompt = dataset.val.read(0, PROMPT_TOKENS).tolist()
    ids = generate_ids(
        model.model,
        prompt,
        tokens=64,
        temperature=0.8,
        top_k=50,
        seed=model.config.train.seed,
        vocab_size=tokenizer.vocab_size,
        stop_id=tokenizer.eot_id,
    )
    assert found[-1]["text"] == tokenizer.decode_bytes(ids).decode(errors="replace")
    for sample in found:
        assert sample["prompt"] == tokenizer.decode_bytes(prompt).decode()
        assert 0 <= sample["sample_s"] < 60
    assert found[0]["text"] != found[-1]["text"]


def test_training_is_the_same_bit_for_bit_without_samples(
    sampled: Path, text_data: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "run", tiny_config(text_data, {**TEXT, "train.sample_tokens": 0}))
    assert losses(tmp_path / "run") == losses(sampled)
    assert not (tmp_path / "run" / SAMPLES).exists()


def test_a_resumed_run_has_each_sample_once(tmp_path: Path, sampled: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(sampled, folder)
    shutil.rmtree(folder / CHECKPOINTS / "step-00000012")
    with (folder / SAMPLES).open("a") as file:
        file.write('{"step": 13, "to')  # as of a process that was killed
    run = resume(folder, read_config(folder), Console(quiet=True))
    assert run.state.step == 8
    assert train_run(run, Console(quiet=True))
    again, once = ([{**s, "sample_s": 0} for s in lines(f)] for f in (folder, sampled))
    assert again == once


def test_what_goes_wrong_with_a_sample_is_said_once_and_ends_no_run(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tiny_config(tiny_data, {"train.sample_tokens": 64}), tmp_path / "run", Console())
    assert train_run(run, Console())
    said = [line for line in capsys.readouterr().out.splitlines() if "sample" in line]
    assert len(said) == 1
    assert said[0].startswith("no samples along the way: dataset ")
    assert said[0].endswith("with --tokenizer in other commands")
    assert not (tmp_path / "run" / SAMPLES).exists()


def train_among(world: World, config: Config, folder: Path) -> None:
    run = start(config, folder, Console(quiet=True), world)
    train_run(run, Console(quiet=True))


@pytest.mark.parametrize(("sharding", "steps"), [("zero1", [0, 3]), ("fsdp", None)])
def test_of_several_processes_one_takes_samples_and_none_of_sharded_weights(
    text_data: Path, tmp_path: Path, sharding: str, steps: list[int] | None
) -> None:
    changes = {**TEXT, "train.sharding": sharding, "train.steps": 3}
    run_world(2, train_among, tiny_config(text_data, changes), tmp_path / "run")
    folder = tmp_path / "run"
    found = [s["step"] for s in lines(folder)] if (folder / SAMPLES).exists() else None
    assert found == steps

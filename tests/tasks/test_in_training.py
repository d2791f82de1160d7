"""Scores while a model trains: the same on any number of processes, and after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from quintic.cli.main import main
from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import ALONE, World
from quintic.metrics_file import METRICS, read_records
from quintic.setup import set_up
from quintic.tasks import loglikelihood
from quintic.tasks.score import read_scores
from quintic.train import score_run
from tests.conftest import refusal, tiny_arguments, tiny_config
from tests.multiprocess.worlds import run_world
from tests.tasks.material import write_task

SIZE = {"model.vocab_size": None, "model.context": 128, "train.batch_tokens": 256}


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for task in ("piqa", "lambada_openai"):
        write_task(folder, task, count=8)
    return folder


def scored(world: World, config: Config) -> dict[str, dict[str, float]]:
    loglikelihood.BATCH_TOKENS["cpu"] = 256  # several batches, not as many on each process
    run = set_up(config, Path("unused"), Console(quiet=True), world)
    assert run.tasks is not None
    return score_run(run, run.tasks)


@pytest.mark.parametrize(("size", "sharding"), [(2, "zero1"), (3, "fsdp")])
def test_scores_are_the_same_on_several_processes(
    text_data: Path, task_data: Path, size: int, sharding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loglikelihood.BATCH_TOKENS, "cpu", 256)
    changes: dict[str, Any] = {
        **SIZE,
        **{"train.micro_batch": None, "train.batch_tokens": 384, "train.precision": "float64"},
        **{"train.sharding": sharding, "train.eval_task_data": str(task_data)},
    }
    config = tiny_config(text_data, {**changes, "train.eval_tasks": "piqa,lambada_openai"})
    alone = scored(ALONE, config)
    assert alone.keys() == {"piqa", "lambada_openai"}
    for found in run_world(size, scored, config):
        for task, metrics in alone.items():
            assert found[task] == pytest.approx(metrics, rel=1e-12), task


def test_a_run_is_scored_every_so_often_and_a_resumed_one_as_one_that_never_stopped(
    text_data: Path, task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        **{"--model.vocab-size": None, "--model.context": 128, "--train.batch-tokens": 256},
        **{"--train.micro-batch": 1, "--train.eval-tasks": "piqa,lambada_openai"},
        **{"--train.eval-tasks-every": 4, "--train.eval-task-data": task_data},
    }
    arguments = [str(part) for option in options.items() for part in option]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = [*tiny_arguments(text_data), *arguments]
    main([*command, "--train.checkpoint-every", "6", "--out", str(whole)])
    out = capsys.readouterr().out
    assert "step 8/12  piqa/acc 0." in out and "_stderr" not in out
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000012")
    shutil.rmtree(stopped / "scores")
    main(["train", "--resume", str(stopped)])

    def curve(folder: Path) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in record.items() if not name.endswith("_s")}
            for record in read_records(folder / METRICS)
            if "tasks_s" in record
        ]

    assert [record["step"] for record in curve(whole)] == [0, 4, 8, 12]
    assert curve(stopped) == curve(whole)
    last, piqa = curve(whole)[-1], read_scores(whole)["piqa"]
    acc = piqa.metrics["acc"]
    assert (acc.value, acc.stderr) == (last["piqa/acc"], last["piqa/acc_stderr"])
    assert last["piqa/chance"] == piqa.chance == 0.5
    assert "lambada_openai/chance" not in last
    main(["evaluate", str(whole), "--tasks", "piqa", "--task-data", str(task_data)])
    assert read_scores(whole)["piqa"].metrics["acc"].value == curve(whole)[-1]["piqa/acc"]
    main(["compare", str(whole), str(stopped)])
    assert "piqa" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--train.eval-tasks", "pika"], "there is no task pika (did you mean piqa?)"),
        (["--train.eval-tasks", "arc_easy"], "has no data of arc_easy"),
        (
            ["--train.eval-tasks", "piqa", "--train.eval-task-data", "nowhere"],
            "--train.eval-task-data nowhere is no folder",
        ),
        (["--train.eval-tasks-every", "5"], "eval_tasks"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_training(
    text_data: Path,
    task_data: Path,
    options: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--train.eval-task-data", str(task_data)] if "--train.eval-tasks" in options else []
    out = tmp_path / "run"
    command = [*tiny_arguments(text_data), "--model.vocab-size", "None", *data, *options]
    assert expected in refusal([*command, "--out", out], capsys)
    assert not out.exists()

"""lm-evaluation-harness computes the same scores with the exported model, item by item, and with
quintic's own model in its loop.

It is of the extra `lm-eval`; without it and transformers the tests are skipped.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.tasks import YAML, lm_eval_task

from quintic.cli.main import main
from quintic.console import Console
from quintic.data.tokenizer import Tokenizer
from quintic.tasks.lm_eval_results import kept_scores
from quintic.tasks.score import read_scores
from quintic.trained import Trained, load_trained
from tests.tasks.material import train_for_tasks, write_tasks

pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")
from quintic.tasks.lm_eval_model import QuinticLM  # noqa: E402 - it needs lm_eval


@pytest.fixture(scope="module", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


@pytest.fixture(scope="module")
def run(text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose context holds most items and cuts some, and its export beside it."""
    folder = train_for_tasks(text_data, tmp_path_factory.mktemp("lm-eval") / "run")
    main(["export", str(folder), "--to", "hf", "--out", str(folder.parent / "hf")])
    return folder


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), pairs=4, count=24)


@pytest.fixture(scope="module")
def theirs(run: Path) -> Any:
    """Their own model of the export."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(run.parent / "hf"), device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return load_trained(run)


@pytest.fixture(scope="module")
def tokenizer(trained: Trained) -> Tokenizer:
    return trained.load_tokenizer(Console(quiet=True))


def their_samples(model: Any, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=model, tasks=tasks, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    assert found is not None
    return dict(found)


@pytest.mark.parametrize("task", [*YAML])
def test_scores_are_those_of_lm_eval_item_by_item(
    task: str, run: Path, theirs: Any, task_data: Path, tmp_path: Path
) -> None:
    main(["evaluate", str(run), "--tasks", task, "--task-data", str(task_data)])
    own = read_scores(run)[task]
    found = their_samples(theirs, [lm_eval_task(task, task_data / f"{task}.jsonl")])
    samples = sorted(found["samples"][task], key=lambda sample: int(sample["doc_id"]))
    assert len(samples) == 24
    for metric, values in own.items.items():
        theirs_by_item = [float(np.mean(sample[metric])) for sample in samples]
        if metric == "perplexity":
            np.testing.assert_allclose(values, theirs_by_item, rtol=1e-4)
        else:
            assert list(values) == theirs_by_item, metric
        total = found["results"][task][f"{metric},none"]
        assert own.metrics[metric].value == pytest.approx(total, rel=1e-4)


def test_blimp_is_that_of_lm_eval_item_by_item(
    run: Path, theirs: Any, task_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(run), "--tasks", "blimp", "--task-data", str(task_data)])
    own = read_scores(run)["blimp"]
    files = sorted((task_data / "blimp").iterdir())
    found = their_samples(theirs, [lm_eval_task("blimp", file) for file in files])
    by_subtask: dict[str, list[float]] = {}
    for subtask, value in zip(own.subtasks, own.items["acc"], strict=True):
        by_subtask.setdefault(subtask, []).append(float(value))
    assert by_subtask == {
        file.stem: [
            sample["acc"]
            for sample in sorted(found["samples"][file.stem], key=lambda s: int(s["doc_id"]))
        ]
        for file in files
    }
    means = [found["results"][file.stem]["acc,none"] for file in files]
    assert own.metrics["acc"].value == pytest.approx(float(np.mean(means)))


REQUESTS: dict[str, dict[str, Any]] = {
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "greedy": {
        "output_type": "generate_until",
        "doc_to_text": "{{text[:40]}}",
        "doc_to_target": "x",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 10, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
"""Tasks of lm-eval of the two kinds that quintic's own do not have."""


def test_quintics_model_answers_in_lm_eval_as_its_export_does(
    trained: Trained, tokenizer: Tokenizer, theirs: Any, task_data: Path, tmp_path: Path
) -> None:
    """Choices, whole texts in windows of a context and one short of a window, and greedy text."""
    texts = [{"text": "The lazy dog sleeps all day. " * 30}, {"text": "Hello world"}, {"text": "x"}]
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts))
    tasks = [
        {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            **request,
        }
        for name, request in REQUESTS.items()
    ]
    tasks.append(lm_eval_task("piqa", task_data / "piqa.jsonl"))
    own, other = (their_samples(m, tasks) for m in (QuinticLM(trained.model, tokenizer), theirs))
    kept = {scores.task: scores for scores in kept_scores(own)}
    assert kept["lm-eval-piqa"].source.startswith(f"lm-eval {version('lm_eval')}, version 1.0 of ")
    by_item = [s["acc"] for s in sorted(own["samples"]["piqa"], key=lambda s: s["doc_id"])]
    assert list(kept["lm-eval-piqa"].items["acc"]) == by_item
    assert kept["lm-eval-greedy"].items.keys() == {"exact_match"}
    bits = "bits_per_byte,none"
    assert kept["lm-eval-rolling"].totals["bits_per_byte"].value == own["results"]["rolling"][bits]
    assert own["results"]["rolling"][bits] == pytest.approx(other["results"]["rolling"][bits], 1e-5)

    def answers(found: dict[str, Any], task: str) -> list[Any]:
        return [s["resps"] for s in sorted(found["samples"][task], key=lambda s: s["doc_id"])]

    assert answers(own, "greedy") == answers(other, "greedy")
    for task in ("rolling", "piqa"):
        ours, others = (np.ravel(np.array(answers(f, task), dtype=object)) for f in (own, other))
        np.testing.assert_allclose(ours.astype(float), others.astype(float), rtol=1e-4, atol=1e-4)

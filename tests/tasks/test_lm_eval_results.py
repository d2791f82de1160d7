"""What lm-eval computes is kept as quintic's own scores are; results as lm-eval 0.4.13 gives them.

`tests/integration/test_lm_eval.py` has the same with lm-eval itself.
"""

from __future__ import annotations

import importlib.machinery
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintic.cli.main import main
from quintic.compare.groups import Group
from quintic.compare.task_scores import compare_tasks, task_conclusions
from quintic.tasks.lm_eval_results import kept_scores
from quintic.tasks.score import read_scores, save_scores
from tests.compare.records import record


def samples(answers: str = "none", **metrics: list[Any]) -> list[dict[str, Any]]:
    """The samples of a task, the last first, since lm-eval promises no order."""
    rows = [
        dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)
    ]
    return [
        {"doc_id": i, "filter": answers, "metrics": [*metrics], "doc_hash": f"doc {i}", **row}
        for i, row in reversed([*enumerate(rows)])
    ]


def results() -> dict[str, Any]:
    def row(name: str, **values: Any) -> dict[str, Any]:
        named = {key.replace("__", ","): value for key, value in values.items()}
        return {"name": name, "alias": name, "sample_len": 4, **named}

    logs = [-1.0, -2.0, -3.0, -4.0]
    found = {
        "piqa": samples(acc=[0.0, 1.0, 1.0, 1.0], acc_norm=[1.0, 1.0, 0.0, 0.0]),
        "lambada_openai": samples(perplexity=logs, acc=[0, 0, 1, 0]),
        "wikitext": samples(word_perplexity=[(log, 3) for log in logs]),
        "gsm8k": [
            *samples("strict", exact_match=[0.0, 1.0, 0.0, 0.0], bleu=[["x", "y"]] * 4),
            *samples("loose", exact_match=[0.0, 1.0, 1.0, 0.0], bleu=[["x", "x"]] * 4),
        ],
        "mmlu_a": samples(acc=[1.0, 0.0]),
        "mmlu_b": samples(acc=[1.0, 1.0, 1.0, 1.0]),
        "blimp_a": samples(acc=[1.0, 0.0]),
        "blimp_b": samples(acc=[1.0, 1.0, 1.0, 1.0]),
    }
    rows = {
        "piqa": row("piqa", acc__none=0.75, acc_stderr__none=0.25, acc_norm__none=0.5),
        "lambada_openai": row(
            "lambada_openai", perplexity__none=math.exp(2.5), acc__none=0.25, acc_stderr__none=0.25
        ),
        "wikitext": row("wikitext", word_perplexity__none=2.3, word_perplexity_stderr__none="N/A"),
        "gsm8k": row(
            "gsm8k",
            exact_match__strict=0.25,
            exact_match_stderr__strict=np.float32(0.25),
            bleu__strict=np.float32(7.5),
            bleu_stderr__strict=np.float32(0.5),
            exact_match__loose=0.5,
            bleu__loose=100.0,
        ),
        "mmlu_a": row("mmlu_a", acc__none=0.5),
        "mmlu_b": row("mmlu_b", acc__none=1.0),
        "mmlu_stem": row("mmlu_stem", acc__none=5 / 6),
        "mmlu": row("mmlu", acc__none=5 / 6, sample_count={"acc,none": 6}),
        "blimp_a": row("blimp_a", acc__none=0.5),
        "blimp_b": row("blimp_b", acc__none=1.0),
        "blimp": row("blimp", acc__none=0.75),
        "loose group": {"name": "loose group", "alias": "loose group"},
    }
    return {
        "results": rows,
        "groups": {name: rows[name] for name in ("mmlu", "mmlu_stem", "blimp")},
        "group_subtasks": {
            "mmlu": ["mmlu_stem"],
            "mmlu_stem": ["mmlu_a", "mmlu_b"],
            "blimp": ["blimp_a", "blimp_b"],
            "loose group": ["piqa"],
        },
        "versions": dict.fromkeys(rows, 1.0),
        "n-shot": dict.fromkeys(rows, 0) | {"gsm8k": 5},
        "lm_eval_version": "0.4.13",
        "samples": found,
    }


def test_what_is_a_mean_of_items_is_kept_by_item_and_the_rest_as_it_is(tmp_path: Path) -> None:
    for scores in kept_scores(results()):
        save_scores(tmp_path, 7, scores)
    kept = read_scores(tmp_path)
    assert sorted(kept) == [
        f"lm-eval-{task}"
        for task in ("blimp", "gsm8k", "lambada_openai", "mmlu", "piqa", "wikitext")
    ]
    piqa = kept["lm-eval-piqa"]
    assert piqa.source == "lm-eval 0.4.13, version 1.0 of the task, 0 examples before a question"
    assert piqa.step == 7 and not piqa.totals
    assert {name: list(values) for name, values in piqa.items.items()} == {
        "acc": [0, 1, 1, 1],
        "acc_norm": [1, 1, 0, 0],
    }
    words = kept["lm-eval-lambada_openai"]
    assert list(words.items["perplexity"]) == [-1, -2, -3, -4]
    assert words.metrics["perplexity"].value == pytest.approx(math.exp(2.5))
    text = kept["lm-eval-wikitext"]
    assert not text.items
    assert (text.metrics["word_perplexity"].value, str(text.metrics["word_perplexity"])) == (
        2.3,
        "2.3000",
    )
    answers = kept["lm-eval-gsm8k"]
    assert "5 examples" in answers.source
    assert list(answers.items["exact_match (strict)"]) == [0, 1, 0, 0]
    assert list(answers.items["exact_match (loose)"]) == [0, 1, 1, 0]
    assert {name: str(score) for name, score in answers.totals.items()} == {
        "bleu (strict)": "7.5000 ± 0.5000",
        "bleu (loose)": "100.00",
    }
    by_size, by_task = kept["lm-eval-mmlu"], kept["lm-eval-blimp"]
    assert by_size.subtasks == ["mmlu_a"] * 2 + ["mmlu_b"] * 4
    assert by_size.metrics["acc"].value == pytest.approx(5 / 6)
    assert by_task.metrics["acc"].value == 0.75
    for scores, share in ((by_size, 1 / 3), (by_task, 1 / 2)):
        # Of the two items that differ, the mean has a standard deviation of sqrt(1/8).
        stderr = scores.metrics["acc"].stderr
        assert stderr == pytest.approx(share * math.sqrt(1 / 8), rel=0.1)


def test_other_questions_and_other_prompts_are_other_items() -> None:
    def fingerprint(name: str, value: str) -> str:
        changed = results()
        changed["samples"]["piqa"][0][name] = value
        return next(s for s in kept_scores(changed) if s.task == "lm-eval-piqa").fingerprint

    same = fingerprint("doc_hash", "doc 3")
    assert same == fingerprint("filter", "none")
    assert len({same, fingerprint("doc_hash", "x"), fingerprint("prompt_hash", "x")}) == 3


def test_two_models_are_compared_by_items_where_answers_are_right_or_wrong(tmp_path: Path) -> None:
    runs = {"a": results(), "b": results()}
    for sample in runs["b"]["samples"]["piqa"]:
        sample["acc"], sample["acc_norm"] = 0.0, 0.25 * sample["doc_id"]
    changes = {"acc,none": 0.0, "acc_norm,none": 0.375}
    runs["b"]["results"]["piqa"] |= changes
    runs["b"]["results"]["wikitext"]["word_perplexity,none"] = 2.5
    del runs["b"]["results"]["gsm8k"]["bleu,loose"]
    groups = []
    for label, found in runs.items():
        (tmp_path / label).mkdir()
        for scores in kept_scores(found):
            save_scores(tmp_path / label, 7, scores)
        groups.append(Group(label, (record(str(tmp_path / label), [5.0, 4.0]),)))
    told = {line.split(":")[0]: line for line in task_conclusions(compare_tasks(groups))}
    assert "0 items only it got right, 3 only the other, McNemar" in told["lm-eval-piqa acc"]
    for metric, gap in (("piqa acc_norm", "0.1250 lower"), ("wikitext word_perplexity", "0.2000")):
        assert gap in told[f"lm-eval-{metric}"]
        assert told[f"lm-eval-{metric}"].endswith("with one run on a side that is not tested.")
    assert "lm-eval-gsm8k bleu (strict)" in told
    assert "lm-eval-gsm8k bleu (loose)" not in told


def test_the_command_keeps_prints_and_writes_json(
    text_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def run_lm_eval(trained: Any, tokenizer: Any, tasks: list[str], limit: int | None) -> Any:
        asked.append((tasks, limit))
        return "their table", results()

    for name in ("lm_eval", "quintic.tasks.lm_eval_model"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="a test")
        monkeypatch.setitem(sys.modules, name, module)
    vars(module)["run_lm_eval"] = run_lm_eval
    run = tmp_path / "run"
    run.mkdir()
    for path in text_run.iterdir():
        (run / path.name).symlink_to(path)
    command = ["evaluate", str(run), "--lm-eval", "piqa, mmlu"]
    main([*command, "--limit", "2"])
    out = capsys.readouterr().out
    assert "their table" in out and "scores of the first items alone are not kept" in out
    assert not (run / "scores").exists()
    main([*command, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["checkpoint"].startswith(str(run))
    gsm8k = shown["tasks"]["lm-eval-gsm8k"]
    assert gsm8k["source"].startswith("lm-eval 0.4.13, ")
    assert gsm8k["metrics"]["bleu (strict)"] == {"value": 7.5, "stderr": 0.5}
    assert "items" not in gsm8k
    assert asked == [(["piqa", "mmlu"], 2), (["piqa", "mmlu"], None)]
    assert list(read_scores(run)["lm-eval-piqa"].items["acc"]) == [0, 1, 1, 1]

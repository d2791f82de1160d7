"""Scores of a run on tasks: the command, its files, and what is counted."""

from __future__ import annotations

import json
import math
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintic.cli.main import main
from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.load_tokenizer import load_tokenizer
from quintic.errors import QuinticError
from quintic.tasks import score
from quintic.tasks.data import Item, TaskData, hub_data, local_data
from quintic.tasks.definitions import TASKS, Question, named_tasks
from quintic.tasks.loglikelihood import (
    LogLikelihood,
    Scored,
    joined,
    log_likelihoods,
    scored_pieces,
)
from quintic.tasks.score import TaskScores, encode_pair, read_scores, score_task
from quintic.trained import Trained, load_trained
from tests.conftest import refusal
from tests.data.hub_server import HubServer, Repo
from tests.tasks.material import record, train_for_tasks, write_task, write_tasks


@pytest.fixture(scope="module")
def run(text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose context holds the items."""
    return train_for_tasks(text_data, tmp_path_factory.mktemp("tasks-run") / "run")


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return load_trained(run)


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), pairs=2, count=8)


def given(
    task: str, answers: list[int], choices: int, monkeypatch: pytest.MonkeyPatch, nats: Any
) -> TaskData:
    """A task whose continuations have the log-likelihoods `nats`, one row for each item."""
    items = [
        Item(Question([("a", " b")] * choices, answer, [1, 10, 2][:choices]), task, task)
        for answer in answers
    ]
    flat = [LogLikelihood(float(n), n > -1) for row in nats for n in row]
    monkeypatch.setattr(score, "log_likelihoods", lambda *a: flat)
    return TaskData(TASKS[task], items, "made up")


def test_a_choice_is_right_where_it_is_likeliest_and_by_character_where_it_is_so_for_its_length(
    trained: Trained, text_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(text_data))
    nats = [[-3, -8, -4], [-3, -8, -4], [-5, -50, -5], [-2, -2, -3]]
    data = given("piqa", [0, 1, 2, 0], 3, monkeypatch, nats)
    found = score_task(trained.model, tokenizer, data)
    # Of equal ones the first counts; by character they are 3, 0.8 and 2 nats for the first.
    assert list(found.items["acc"]) == [1, 0, 0, 1]
    assert list(found.items["acc_norm"]) == [0, 1, 1, 0]
    assert found.metrics["acc"].value == 0.5
    assert found.chance == pytest.approx(1 / 3)


def test_a_last_word_has_an_accuracy_and_a_perplexity(
    trained: Trained, text_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = given("lambada_openai", [0, 0], 1, monkeypatch, [[-0.5], [-4.5]])
    found = score_task(trained.model, load_tokenizer(str(text_data)), data)
    assert found.metrics["acc"].value == 0.5
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(2.5))
    # Resampling two items gives means of 0.5, 2.5 and 4.5 nats with 1/4, 1/2 and 1/4.
    drawn = np.exp([0.5, 2.5, 2.5, 4.5])
    assert found.metrics["perplexity"].stderr == pytest.approx(drawn.std(), rel=0.1)
    assert found.chance == 0


def test_the_standard_error_of_a_mean_of_subtasks_is_that_of_their_items() -> None:
    random = np.random.default_rng(3)
    values = np.concatenate([random.random(300) < 0.9, random.random(100) < 0.5]).astype(float)
    names = ["easy"] * 300 + ["hard"] * 100
    found = TaskScores("t", "", "", names, {"easy": "x", "hard": "y"}, {"acc": values}, 0.5)
    easy, hard = values[:300], values[300:]
    assert found.metrics["acc"].value == pytest.approx((easy.mean() + hard.mean()) / 2)
    expected = math.hypot(easy.std() / math.sqrt(300), hard.std() / math.sqrt(100)) / 2
    assert found.metrics["acc"].stderr == pytest.approx(expected, rel=0.1)
    assert found.by_group()["y"]["acc"] == found.by_subtask()["hard"]["acc"]
    assert TaskScores.from_dict(json.loads(json.dumps(found.to_dict()))).metrics == found.metrics


def test_a_pair_is_cut_where_the_two_together_are_cut(text_data: Path) -> None:
    tokenizer = load_tokenizer(str(text_data))
    eot = tokenizer.eot_id
    (plain,) = encode_pair(tokenizer, "", " return", 100)
    assert plain == Scored([eot, *tokenizer.encode(" return")], len(tokenizer.encode(" return")))
    # The blank at the context's end is scored with the continuation.
    (moved,) = encode_pair(tokenizer, "def  ", "other", 100)
    context, whole = tokenizer.encode("def"), tokenizer.encode("def  other")
    assert moved == Scored(context + whole[len(context) :], len(whole) - len(context))
    (cut,) = encode_pair(tokenizer, "argument + other " * 30, "return", 20)
    assert len(cut.ids) == 20
    assert cut.ids[-cut.scored :] == tokenizer.encode("argument + other return")[-cut.scored :]


def test_a_continuation_longer_than_the_context_is_scored_in_pieces_and_each_token_once() -> None:
    assert scored_pieces([*range(9)], 4, 5) == [Scored([4, 5, 6, 7, 8], 4)]
    assert scored_pieces([*range(9)], 6, 4) == [
        Scored([2, 3, 4, 5], 3),
        Scored([5, 6, 7, 8], 3),
    ]
    # The last piece has as much before it as fits.
    assert scored_pieces([*range(9)], 8, 4)[-1] == Scored([5, 6, 7, 8], 2)
    both = joined([LogLikelihood(-2.0, True), LogLikelihood(-3.0, False)])
    assert both == LogLikelihood(-5.0, False)


def test_every_task_is_scored_printed_and_kept(
    run: Path, task_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(run), "--tasks", ",".join(TASKS), "--task-data", str(task_data)]
    main(command)
    out = capsys.readouterr().out
    kept = read_scores(run)
    assert kept.keys() == TASKS.keys()
    for task, scores in kept.items():
        assert str(scores.metrics["acc"]) in out, task
        assert scores.items.keys() == set(TASKS[task].metrics)
    assert kept["blimp"].count() == 134
    assert "term_1" in out
    assert "wh_island" not in out
    main([*command[:3], "blimp,piqa", *command[4:], "--subtasks", "--limit", "1", "--json"])
    shown = json.loads(capsys.readouterr().out)["tasks"]
    assert len(shown["blimp"]["subtasks"]) == 67
    assert set(shown) == {"blimp", "piqa"}
    assert read_scores(run)["blimp"].count() == 134  # a part is not kept


def test_records_give_the_questions_of_their_tasks() -> None:
    hellaswag = {
        "activity_label": "Tea",
        "ctx_a": "[header] How to boil [title] Water.  Then",
        "ctx_b": "a kettle",
        "endings": [" sings [step] on. ", "b", "c", "d"],
        "label": "2",
    }
    found = TASKS["hellaswag"].question(hellaswag)
    assert found.pairs[0] == ("Tea: How to boil. Water. Then A kettle", " sings on.")
    assert (found.answer, found.characters[0]) == (2, len("sings on."))
    winogrande = {"sentence": "Ann met Bo since _ was in.", "answer": "2"}
    found = TASKS["winogrande"].question({**winogrande, "option1": "Ann", "option2": "Bo"})
    assert found.pairs[1] == ("Ann met Bo since Bo", " was in.")
    assert found.answer == 1
    assert TASKS["lambada_openai"].question({"text": "a b  c"}).pairs == [("a b ", " c")]
    assert TASKS["lambada_openai"].question({"text": "c"}).pairs == [("", " c")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"goal": "a", "sol1": "b", "label": 0}, "line 1, is no item of piqa (sol2 is missing)"),
        ({"goal": "a", "sol1": "b", "sol2": "c", "label": 2}, "the answer is number 2 of 2"),
        ({"goal": "a", "sol1": "b", "sol2": 3, "label": 1}, "is no item of piqa (object of type"),
        ({"goal": "a", "sol1": "b", "sol2": "", "label": 1}, "(a choice is empty)"),
        ([1, 2], "is no item of piqa (list indices must be integers"),
        ({"goal": "a", "sol1": "b", "sol2": "c", "label": True}, "its label is True, which is no"),
        ({"goal": "a", "sol1": "b", "sol2": "c", "label": 1.7}, "its label is 1.7, which is no"),
    ],
)
def test_a_record_of_another_shape_is_named(
    run: Path, content: Any, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "piqa.jsonl").write_text(json.dumps(content) + "\n")
    command = ["evaluate", run, "--tasks", "piqa", "--task-data", tmp_path]
    assert expected in refusal(command, capsys)


@pytest.mark.parametrize(
    ("files", "task", "expected"),
    [
        ({}, "piqa", "has no data of piqa: put piqa.jsonl"),
        ({"piqa.jsonl": b""}, "piqa", "has no items of piqa: it is empty"),
        ({"piqa.jsonl": b"{"}, "piqa", "piqa.jsonl, line 1, cannot be read"),
        ({"piqa.json": b"{}"}, "piqa", "piqa.json cannot be read (ValueError: it is no list)"),
        ({"piqa.jsonl": b"\n{\n"}, "piqa", "piqa.jsonl, line 2, cannot be read"),
        ({"piqa/a.jsonl": b"{}", "piqa/b.jsonl": b"{}"}, "piqa", "both hold data of piqa"),
        ({"piqa.parquet": b"PAR1"}, "piqa", "piqa.parquet cannot be read"),
        ({"piqa.zip": b"PK"}, "piqa", "piqa.zip cannot be unpacked"),
        ({"piqa.json": b"[]", "piqa.jsonl": b"{}"}, "piqa", "both hold data of piqa"),
        ({"blimp/causative.jsonl": b"{}"}, "blimp", "has no adjunct_island: the 67 subtasks"),
        ({"blimp.jsonl": b"{}"}, "blimp", "has blimp, which is none: the 67 subtasks"),
    ],
)
def test_files_that_are_no_task_are_named(
    run: Path,
    files: dict[str, bytes],
    task: str,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = ["evaluate", run, "--tasks", task, "--task-data", tmp_path]
    assert expected in refusal(command, capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--tasks", "hellaswagg"], "no task hellaswagg (did you mean hellaswag?)"),
        (["--tasks", ","], "--tasks names none"),
        (["--tasks", "piqa,piqa@a1"], "--tasks names piqa at two revisions: leave one out"),
        (["--tasks", "piqa@a1", "--task-data", "."], "piqa@a1 is a revision of the hub's data and"),
        (["--lm-eval", ","], "--lm-eval ',' names no task: lm-eval ls tasks lists"),
        (["--tasks", "piqa", "--text", "a"], "--text is for files and --tasks for tasks"),
        (["--tasks", "piqa", "--data", "d"], "--data is for a dataset and --tasks for tasks"),
        (["--task-data", "d"], "--task-data is for --tasks: leave it out"),
        (["--tasks", "piqa", "--limit", "0"], "--limit is 0"),
        (["--tasks", "piqa", "--task-data", "nowhere"], "--task-data nowhere is no folder"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    run: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(["evaluate", run, *options], capsys)


def test_items_longer_than_the_context_are_scored_and_said(
    text_run: Path, task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(text_run, tmp_path / "run")
    command = ["evaluate", str(run), "--tasks", "piqa", "--task-data", str(task_data)]
    main(command)
    assert re.search(
        r"piqa: \d items? with a choice longer than the model's context of \d+ tokens, which was "
        "scored in pieces",
        " ".join(capsys.readouterr().out.split()),
    )
    kept = read_scores(run)["piqa"]
    assert 0 < kept.in_pieces < kept.count() == 8
    # Together the pieces are the continuation, and the likelihood is the sum of its tokens.
    model, spec = load_trained(run).model, str(run / TOKENIZER_FILE)
    tokenizer, context = load_tokenizer(spec), load_trained(run).model.config.context
    pair = ("Goal", " word" * context)
    pieces = encode_pair(tokenizer, *pair, context + 1)
    assert len(pieces) > 1
    ids = [token for piece in pieces for token in piece.ids[-piece.scored :]]
    assert tokenizer.decode(ids) == pair[1]
    found = joined(log_likelihoods(model, pieces, tokenizer.vocab_size))
    expected = sum(
        log_likelihoods(model, [Scored(p.ids[: len(p.ids) - k], 1)], tokenizer.vocab_size)[0].nats
        for p in pieces
        for k in range(p.scored)
    )
    assert found.nats == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("task", "changes", "expected"),
    [
        ("hellaswag", {"endings": ["one"], "label": 0}, "no list of two or more"),
        ("hellaswag", {"endings": "abcd"}, "its endings are no list"),
        ("arc_easy", {"answerKey": "Z"}, "its answer 'Z' is none of the labels"),
        ("arc_easy", {"choices": {"text": ["a", "b"], "label": list("ABCD1234")}}, "have 8 labels"),
        ("openbookqa", {"choices": {"text": "ab", "label": "1A"}, "answerKey": "1"}, "no list of"),
        ("winogrande", {"answer": ""}, "its answer is '' and not 1 or 2"),
        ("winogrande", {"sentence": "none"}, "its sentence has no blank"),
        ("hellaswag", {"activity_label": None}, "its activity_label is None and no text"),
        ("hellaswag", {"ctx_a": 3}, "its ctx_a is 3 and no text"),
        ("arc_easy", {"question": None}, "its question is None and no text"),
        ("piqa", {"goal": None}, "its goal is None and no text"),
        ("sciq", {"question": ["Q"]}, "its question is ['Q'] and no text"),
    ],
)
def test_choices_of_another_shape_are_named(
    task: str, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    line = json.dumps({**record(task, 1), **changes})
    (tmp_path / f"{task}.jsonl").write_text(line + "\n")
    with pytest.raises(QuinticError, match="line 1, is no item of") as caught:
        local_data(TASKS[task], tmp_path)
    assert expected in str(caught.value)


def test_packed_files_are_one_for_each_subtask(tmp_path: Path) -> None:
    for names, expected in (
        (["train.jsonl", "valid.jsonl"], "both hold data of piqa"),
        (["README"], "has no .jsonl, .json, .parquet in it"),
    ):
        with zipfile.ZipFile(tmp_path / "piqa.zip", "w") as packed:
            for name in names:
                packed.writestr(name, json.dumps(record("piqa", 0)))
        with pytest.raises(QuinticError, match=expected):
            local_data(TASKS["piqa"], tmp_path)
    with zipfile.ZipFile(tmp_path / "blimp.zip", "w") as packed:
        for folder in "ab":
            packed.writestr(f"{folder}/causative.jsonl", json.dumps(record("blimp", 0)))
    with pytest.raises(QuinticError, match="both hold data of blimp"):
        local_data(TASKS["blimp"], tmp_path)


def test_a_model_without_numbers_has_no_scores(
    trained: Trained, text_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = given("piqa", [0, 0], 2, monkeypatch, [[math.nan, math.nan], [-1, -2]])
    with pytest.raises(QuinticError, match="not numbers"):
        score_task(trained.model, load_tokenizer(str(text_data)), data)


def test_one_item_has_no_standard_error(
    trained: Trained, text_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = given("piqa", [0], 2, monkeypatch, [[-1, -2]])
    found = score_task(trained.model, load_tokenizer(str(text_data)), data).metrics["acc"]
    assert (found.stderr, str(found)) == (None, "1.0000")


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "scores" / "step-00000001"
    folder.mkdir(parents=True)
    for content in ("{}", "[1]", "", '{"items": {"subtask": [], "acc": []}}'):
        (folder / "piqa.json").write_text(content)
        with pytest.raises(QuinticError, match=r"piqa\.json cannot be read as scores"):
            read_scores(tmp_path)


# The hub ------------------------------------------------------------------------------------------


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import BufferOutputStream
    from pyarrow import parquet as pq

    sink = BufferOutputStream()
    pq.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants as hub_constants

    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("task", ["arc_easy", "blimp"])
def test_data_of_the_hub_comes_once_and_names_its_commit(
    task: str, hub: HubServer, hub_cache: Path, tmp_path: Path
) -> None:
    of, configs = TASKS[task], TASKS[task].subtasks or (TASKS[task].config,)
    rows = {c: [record(task, n, c if of.subtasks else "") for n in range(3)] for c in configs}
    files = {f"{c}/{of.split}/0000.parquet": parquet(rows[c]) for c in configs}
    files[f"{configs[0]}/other/0000.parquet"] = b"not this"
    hub.repos[of.repo_id] = repo = Repo(files)
    found = hub_data(of, lambda now: None, print)
    assert found.source == f"hub:{of.repo_id}@{repo.commit}"
    assert len(found.items) == 3 * len(configs)
    asked = len(hub.requests)
    again = hub_data(of, lambda now: None, print)
    assert len(hub.requests) == asked  # the cache has it
    assert (again.fingerprint, again.source) == (found.fingerprint, found.source)
    [pinned] = named_tasks(f"{task}@{repo.commit[:8]}", "--tasks")
    assert hub_data(pinned, lambda now: None, print).source == found.source
    assert len(hub.requests) == asked
    other = replace(of, revision="0" * 40)
    with pytest.raises(QuinticError, match=f"hub:{of.repo_id}@{'0' * 40}"):
        hub_data(other, lambda now: None, print)
    write_task(tmp_path, task, 3)
    assert local_data(of, tmp_path).fingerprint == found.fingerprint


def test_a_repository_without_the_split_is_named(hub: HubServer, hub_cache: Path) -> None:
    hub.repos["baber/piqa"] = Repo({"default/train/0000.parquet": b""})
    with pytest.raises(QuinticError, match="has no files in default/validation"):
        hub_data(TASKS["piqa"], lambda now: None, print)


def test_without_a_network_it_is_one_line(
    run: Path, hub_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "baber/piqa" in refusal(["evaluate", run, "--tasks", "piqa"], capsys)

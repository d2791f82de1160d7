"""Made-up records of every task, in the form that its authors chose."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from quintic.cli.main import main
from quintic.tasks.definitions import TASKS
from tests.conftest import tiny_arguments

WORDS = (
    "the",
    "a",
    "return",
    "self",
    "value",
    "argument",
    "function",
    "list",
    "open",
    "file",
    "read",
    "write",
    "name",
    "class",
    "import",
    "of",
    "to",
    "in",
    "and",
    "or",
    "not",
    "is",
    "with",
    "as",
    "for",
    "if",
    "else",
    "None",
    "True",
    "len",
    "range",
    "key",
    "item",
    "line",
    "text",
    "number",
)


def sentence(draw: random.Random, least: int = 3, most: int = 9) -> str:
    words = [draw.choice(WORDS) for _ in range(draw.randint(least, most))]
    return " ".join(words).capitalize()


def record(task: str, number: int, subtask: str = "") -> dict[str, Any]:
    """A record, the same for the same number."""
    draw = random.Random(f"{task} {subtask} {number}")
    s = lambda: sentence(draw)  # noqa: E731
    if task == "blimp":
        shared = s()
        good, bad = f"{shared} {s()}.", f"{shared} {s()}."
        return {
            "sentence_good": good,
            "sentence_bad": bad,
            "UID": subtask,
            "linguistics_term": f"term_{len(subtask) % 3}",
        }
    if task == "hellaswag":
        return {
            "activity_label": s(),
            "ctx_a": f"[header] How to {s()} [title] {s()}.  {s()}",
            "ctx_b": draw.choice(["", "the", s().lower()]),
            "endings": [f" {s()} [step] {s()}. " for _ in range(4)],
            "label": str(draw.randrange(4)),
        }
    if task == "lambada_openai":
        return {"text": f'{s()}, "{s()}."  {s()} {draw.choice(WORDS)}'}
    if task.startswith("arc") or task == "openbookqa":
        labels = draw.choice(["ABCD", "1234"])
        key = draw.choice(labels)
        choices = {"text": [s() for _ in labels], "label": list(labels)}
        if task == "openbookqa":
            return {"question_stem": s(), "choices": choices, "answerKey": key}
        return {"question": f"{s()}?", "choices": choices, "answerKey": key}
    if task == "piqa":
        return {"goal": f"{s()}?", "sol1": s(), "sol2": s(), "label": draw.randrange(2)}
    if task == "winogrande":
        return {
            "sentence": f"{s()} because _ {s()}.",
            "option1": draw.choice(WORDS),
            "option2": s(),
            "answer": draw.choice("12"),
        }
    assert task == "sciq"
    names = ("question", "distractor1", "distractor2", "distractor3", "correct_answer")
    return {"support": draw.choice(["", f" {s()}. {s()}."]), **{name: s() for name in names}}


def train_for_tasks(data: Path, folder: Path) -> Path:
    """Train a tiny run whose context holds most items, and return its folder."""
    size = ["--model.vocab-size", "None", "--model.context", "128", "--train.micro-batch", "1"]
    main([*tiny_arguments(data), *size, "--train.batch-tokens", "128", "--out", str(folder)])
    return folder


def write_tasks(folder: Path, *, pairs: int, count: int) -> Path:
    """Write data of every task, `pairs` of each paradigm of BLiMP, and return the folder."""
    for task in TASKS:
        write_task(folder, task, count=pairs if task == "blimp" else count)
    return folder


def write_task(folder: Path, task: str, count: int = 12) -> None:
    """Write data of a task into a folder as `--task-data` wants it."""
    subtasks = TASKS[task].subtasks
    for subtask in subtasks or [""]:
        path = folder / task / f"{subtask}.jsonl" if subtasks else folder / f"{task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record(task, n, subtask)) for n in range(count)]
        path.write_text("".join(line + "\n" for line in lines))

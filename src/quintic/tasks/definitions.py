"""The tasks: what a record of each says, and which continuations behind which contexts it asks for.

Contexts, continuations and metrics are those of lm-evaluation-harness 0.4.13 without examples
(zero-shot), so that scores compare with published ones: read in its tasks' yaml files
(https://github.com/EleutherAI/lm-evaluation-harness/tree/v0.4.13/lm_eval/tasks) and compared with
what it computes in tests/integration/test_lm_eval.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from quintic.errors import QuinticError
from quintic.tasks.blimp import PARADIGMS

Record = Mapping[str, Any]
"""A record of a task's data, as its JSON or Parquet has it."""


class Question(NamedTuple):
    """What an item asks for: the likeliest of several continuations, or whether one is the model's
    own."""

    pairs: Sequence[tuple[str, str]]
    """Context and continuation of each choice; an empty context is the beginning of a document."""
    answer: int
    """Index of the right choice."""
    characters: Sequence[int]
    """Length of each choice as it is written, which `acc_norm` divides by."""


@dataclass(frozen=True)
class Task:
    """A standard task and where the Hugging Face hub has its data."""

    name: str
    kind: Literal["choice", "pair", "last word"]
    question: Callable[[Record], Question]
    fields: str
    """The fields that a record must have, for messages."""
    repo_id: str
    split: str
    config: str = "default"
    subtasks: Sequence[str] = ()
    """Configs of the repository, where the task is the unweighted mean of several."""
    group_field: str | None = None
    """The field that sorts subtasks into groups."""
    revision: str | None = None
    """Branch or commit of the repository that is wanted; None: the hub's Parquet, as it is."""

    @property
    def metrics(self) -> Sequence[str]:
        """Return the names of its metrics; the first is the one that a run is judged by."""
        return {
            "choice": ("acc", "acc_norm"),
            "pair": ("acc",),
            "last word": ("acc", "perplexity"),
        }[self.kind]


def choose(context: str, choices: Sequence[str], answer: int) -> Question:
    """Return the question which choice follows a context, each behind a blank; raises TypeError or
    ValueError where there are no choices, or not the one that is the answer."""
    if not isinstance(choices, list) or len(choices) < 2:
        raise TypeError("its choices are no list of two or more")
    if not 0 <= answer < len(choices):
        raise ValueError(f"the answer is number {answer} of {len(choices)} choices")
    return Question([(context, f" {c}") for c in choices], answer, [len(c) for c in choices])


def _text(record: Record, name: str) -> str:
    """Return a field that a longer text is made of, in which null would be the word None."""
    if not isinstance(value := record[name], str):
        raise TypeError(f"its {name} is {value!r} and no text")
    return value


def _number(value: Any) -> int:
    """Return the number of a choice, which some write as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"its label is {value!r}, which is no number of a choice")
    return int(value)


def _labelled(context: str, choices: Record, label: str) -> Question:
    """Return the question which of the choices follows; they are lists of texts and of labels."""
    texts, labels = choices["text"], list(choices["label"])
    if label not in labels:
        raise ValueError(f"its answer {label!r} is none of the labels")
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} choices have {len(labels)} labels")
    return choose(context, texts, labels.index(label))


def _blimp(record: Record) -> Question:
    return choose("", [record["sentence_good"], record["sentence_bad"]], 0)


def _arc(record: Record) -> Question:
    context = f"Question: {_text(record, 'question')}\nAnswer:"
    return _labelled(context, record["choices"], record["answerKey"])


def _hellaswag(record: Record) -> Question:
    context = f"{_text(record, 'activity_label')}: {_text(record, 'ctx_a')} "
    context += _text(record, "ctx_b").capitalize()
    if not isinstance(record["endings"], list):
        raise TypeError("its endings are no list")
    endings = [_without_wikihow_marks(ending) for ending in record["endings"]]
    return choose(_without_wikihow_marks(context), endings, _number(record["label"]))


def _without_wikihow_marks(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _lambada(record: Record) -> Question:
    context, _, word = record["text"].rpartition(" ")
    return Question([(context, f" {word}")], 0, [len(word)])


def _openbookqa(record: Record) -> Question:
    return _labelled(record["question_stem"], record["choices"], record["answerKey"].lstrip())


def _piqa(record: Record) -> Question:
    context = f"Question: {_text(record, 'goal')}\nAnswer:"
    return choose(context, [record["sol1"], record["sol2"]], _number(record["label"]))


def _sciq(record: Record) -> Question:
    context = f"{record['support'].lstrip()}\nQuestion: {_text(record, 'question')}\nAnswer:"
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    return choose(context, [record[name] for name in names], 3)


def _winogrande(record: Record) -> Question:
    """The choices differ in the context, and the continuation is the same."""
    before, blank, after = record["sentence"].partition("_")
    if not blank:
        raise ValueError("its sentence has no blank, which is written _")
    options = [before + record[name] for name in ("option1", "option2")]
    ending = f" {after.strip()}"
    if (answer := str(record["answer"])) not in ("1", "2"):
        raise ValueError(f"its answer is {answer!r} and not 1 or 2")
    pairs = [(option, ending) for option in options]
    return Question(pairs, int(answer) - 1, [len(option) for option in options])


_ARC_FIELDS = "question, choices (text, label) and answerKey"

TASKS = {
    task.name: task
    for task in (
        Task(
            "blimp",
            "pair",
            _blimp,
            "sentence_good and sentence_bad",
            "nyu-mll/blimp",
            "train",
            subtasks=PARADIGMS,
            group_field="linguistics_term",
        ),
        Task(
            "hellaswag",
            "choice",
            _hellaswag,
            "activity_label, ctx_a, ctx_b, endings and label",
            "Rowan/hellaswag",
            "validation",
        ),
        Task(
            "lambada_openai",
            "last word",
            _lambada,
            "text",
            "EleutherAI/lambada_openai",
            "test",
        ),
        Task(
            "arc_easy",
            "choice",
            _arc,
            _ARC_FIELDS,
            "allenai/ai2_arc",
            "test",
            config="ARC-Easy",
        ),
        Task(
            "arc_challenge",
            "choice",
            _arc,
            _ARC_FIELDS,
            "allenai/ai2_arc",
            "test",
            config="ARC-Challenge",
        ),
        Task(
            "piqa",
            "choice",
            _piqa,
            "goal, sol1, sol2 and label",
            "baber/piqa",
            "validation",
        ),
        Task(
            "winogrande",
            "pair",
            _winogrande,
            "sentence, option1, option2 and answer",
            "allenai/winogrande",
            "validation",
            config="winogrande_xl",
        ),
        Task(
            "openbookqa",
            "choice",
            _openbookqa,
            "question_stem, choices (text, label) and answerKey",
            "allenai/openbookqa",
            "test",
            config="main",
        ),
        Task(
            "sciq",
            "choice",
            _sciq,
            "support, question, distractor1 to distractor3 and correct_answer",
            "allenai/sciq",
            "test",
        ),
    )
}
"""The tasks by name."""


ALIASES = {"lambada": "lambada_openai"}


def named_tasks(names: str, option: str) -> list[Task]:
    """Return the tasks of a list with commas, each NAME or NAME@REVISION of the hub's data; raises
    `QuinticError` for a name of none, one that is there twice, or none."""
    chosen: dict[str, Task] = {}
    for part in filter(None, map(str.strip, names.split(","))):
        name, _, revision = part.partition("@")
        name = ALIASES.get(name, name)
        if name not in TASKS:
            close = difflib.get_close_matches(name.lower(), TASKS, n=1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise QuinticError(
                f"there is no task {name}{meant}: choose among {', '.join(TASKS)}; quintic "
                "evaluate --lm-eval runs those of lm-evaluation-harness"
            )
        task = replace(TASKS[name], revision=revision or None)
        if chosen.setdefault(name, task) != task:
            raise QuinticError(f"{option} names {name} at two revisions: leave one out")
    if not chosen:
        raise QuinticError(f"{option} names none: choose among {', '.join(TASKS)}")
    return list(chosen.values())

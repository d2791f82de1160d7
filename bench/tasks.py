"""Items per second of `quintic evaluate --tasks` beside lm-evaluation-harness, on the same model.

    python -m bench.tasks RUN --task-data DIR     # writes docs/results/tasks-DEVICE-Nthreads.json

lm-eval has the run's export in transformers, on the same device with the same threads, in batches
of its own choosing, and the same items in the same files; both read, tokenize, score and count.
BLiMP's pairs are in DIR; a task of four endings each, in HellaSwag's form, is made of the run's
validation data: the sentence that follows, and three of other texts. It needs the extras `lm-eval`
and `hf`, and accelerate.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.results import print_table, write_result
from quintic.console import Console
from quintic.data.tokenizer import Tokenizer
from quintic.export.export import export
from quintic.export.source import open_source
from quintic.tasks.data import local_data
from quintic.tasks.definitions import TASKS
from quintic.tasks.score import TaskScores, score_task
from quintic.trained import Trained, load_trained

YAML = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "sciq": "sciq/sciq.yaml",
}
"""lm-eval's definition of each task; a paradigm of BLiMP has that of all of them."""


def lm_eval_task(name: str, file: Path) -> dict[str, Any]:
    """Return lm-eval's own task, which takes its data from a file and its name from that."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks"
    config: dict[str, Any] = load_yaml(path / YAML.get(name, "blimp/adjunct_island.yaml"))
    for key in ("dataset_name", "training_split", "validation_split", "test_split", "tag"):
        config.pop(key, None)
    split = TASKS[name].split
    return config | {
        "task": file.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(file)}},
        "test_split" if split == "test" else "validation_split": split,
    }


def documents(trained: Trained, tokenizer: Tokenizer) -> list[str]:
    """Return texts of the run's validation data."""
    val = trained.open_data(Console(quiet=True)).val
    ids = val.read(0, min(len(val), 2_000_000))
    starts = [int(i) for i in (ids == tokenizer.eot_id).nonzero()[0]]
    return [
        tokenizer.decode_bytes(ids[start + 1 : end]).decode(errors="replace")
        for start, end in itertools.pairwise(starts)
    ]


def write_endings(texts: Sequence[str], count: int, path: Path) -> None:
    """Write questions in HellaSwag's form: how three sentences of a text go on, by its next one or
    by one of three other texts."""
    draw = random.Random(0)
    sentences = [
        found
        for text in texts
        if len(found := re.findall(r"[A-Z][^.!?\n]{30,200}[.!?]", text)) >= 4
    ]
    lines = []
    for number in range(count):
        first, second, third, right = sentences[number % len(sentences)][:4]
        endings = [draw.choice(draw.choice(sentences)) for _ in range(4)]
        label = draw.randrange(4)
        endings[label] = right
        context = {"activity_label": first, "ctx_a": second, "ctx_b": third}
        lines.append(json.dumps({**context, "endings": endings, "label": str(label)}) + "\n")
    path.write_text("".join(lines))


def split_pairs(folder: Path, out: Path, limit: int | None) -> list[Path]:
    """Write BLiMP's paradigms as a file each, as lm-eval takes them, and return these."""
    source, files = local_data(TASKS["blimp"], folder, limit), []
    by_subtask: dict[str, list[str]] = {}
    for item in source.items:
        good, bad = (continuation[1:] for _, continuation in item.question.pairs)
        row = {"sentence_good": good, "sentence_bad": bad, "linguistics_term": item.group}
        by_subtask.setdefault(item.subtask, []).append(json.dumps(row) + "\n")
    (out / "blimp").mkdir()
    for subtask, lines in by_subtask.items():
        files.append(out / "blimp" / f"{subtask}.jsonl")
        files[-1].write_text("".join(lines))
    return files


def by_quintic(trained: Trained, tokenizer: Tokenizer, task: str, folder: Path) -> TaskScores:
    """Read a task and score it, errors by bootstrap included."""
    scores = score_task(trained.model, tokenizer, local_data(TASKS[task], folder))
    assert scores.metrics
    return scores


def by_lm_eval(model: Any, task: str, files: Sequence[Path]) -> dict[str, list[Any]]:
    """Let lm-eval do the same, with errors by formula as it has them for a mean."""
    import lm_eval

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = lm_eval.simple_evaluate(
            model=model, tasks=[lm_eval_task(task, file) for file in files], bootstrap_iters=0
        )
    assert found is not None
    return dict(found["samples"])


def agree(own: TaskScores, theirs: dict[str, list[Any]]) -> int:
    """Return on how many items the two differ in `acc`."""
    expected = [
        sample["acc"]
        for name in dict.fromkeys(own.subtasks)
        for sample in sorted(theirs[name], key=lambda sample: int(sample["doc_id"]))
    ]
    return sum(int(a != b) for a, b in zip(own.items["acc"], expected, strict=True))


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what an action returns, its seconds and its seconds of processor time."""
    began, busy = time.perf_counter(), time.process_time()
    found = action()
    return found, time.perf_counter() - began, time.process_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--task-data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, help="of each paradigm of BLiMP; default all")
    parser.add_argument("--endings", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch", default="auto", help="lm-eval's batch size")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import lm_eval.evaluator  # noqa: F401  # seconds, which are no task's
    from lm_eval.models.huggingface import HFLM

    trained = load_trained(options.run)
    tokenizer = trained.load_tokenizer(Console(quiet=True))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(open_source(options.run, Console(quiet=True)), "hf", folder / "hf", print)
        files = {"blimp": split_pairs(options.task_data, folder, options.pairs)}
        files["hellaswag"] = [folder / "hellaswag.jsonl"]
        write_endings(documents(trained, tokenizer), options.endings, files["hellaswag"][0])
        batch = options.batch if options.batch == "auto" else int(options.batch)
        model = HFLM(pretrained=str(folder / "hf"), device=str(trained.device), batch_size=batch)
        for task, found in files.items():
            for _ in range(options.rounds):
                own, own_s, own_busy_s = timed(
                    partial(by_quintic, trained, tokenizer, task, folder)
                )
                theirs, their_s, their_busy_s = timed(partial(by_lm_eval, model, task, found))
                rows.append(
                    {
                        "task": task,
                        "items": own.count(),
                        "items_that_differ": agree(own, theirs),
                        "quintic_s": round(own_s, 2),
                        "lm_eval_s": round(their_s, 2),
                        "times": round(their_s / own_s, 2),
                        "quintic_processor_s": round(own_busy_s, 2),
                        "lm_eval_processor_s": round(their_busy_s, 2),
                        "times_processor": round(their_busy_s / own_busy_s, 2),
                    }
                )
                print_table(list(rows[-1]), [list(rows[-1].values())])
    threads = torch.get_num_threads()
    facts = {"parameters": trained.model.parameter_count(), "vocab_size": tokenizer.vocab_size}
    name = f"tasks-{trained.device.type}-{threads}threads"
    print(write_result(name, {**facts, "tasks": rows}, trained.device))


if __name__ == "__main__":
    main()

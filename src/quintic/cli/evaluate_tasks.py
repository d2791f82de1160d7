"""quintic evaluate RUN --tasks and --lm-eval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from quintic.cli.options import Evaluate
from quintic.console import Console, ScoringProgress, Table
from quintic.data.load_tokenizer import load_tokenizer
from quintic.distributed.world import World
from quintic.errors import QuinticError, counted, require_package
from quintic.tasks.data import load_data
from quintic.tasks.definitions import named_tasks
from quintic.tasks.score import Score, TaskScores, save_scores, score_task
from quintic.trained import Trained


def evaluate_tasks(command: Evaluate, trained: Trained, console: Console, world: World) -> None:
    """Print a model's scores on standard tasks, and keep them in its run's folder; several
    processes share the work, and the first prints and keeps."""
    assert command.tasks is not None
    tasks = named_tasks(command.tasks, "--tasks")
    tokenizer = load_tokenizer(trained.tokenizer_spec(console, command.tokenizer))
    # All data first: nothing is scored in vain because of a file that is missing.
    speaking = Console(quiet=command.json or not world.is_main)
    with world.first_on_each_node():
        data = [load_data(task, command.task_data, speaking, command.limit) for task in tasks]
    found = []
    for task_data in data:
        with ScoringProgress(speaking, task_data.task.name, len(task_data.items)) as bar:
            found.append(score_task(trained.model, tokenizer, task_data, bar.show, world))
    if not world.is_main:
        return
    if command.json:
        print(json.dumps(_as_json(trained, found), indent=1))
    else:
        console.line(f"{trained.checkpoint.path}, without examples (zero-shot)")
        _print(found, command.subtasks, console)
        for scores in found:
            if scores.in_pieces:
                console.line(
                    f"{scores.task}: {counted(scores.in_pieces, 'item')} with a choice longer than "
                    f"the model's context of {trained.model.config.context} tokens, which was "
                    "scored in pieces, each behind as much of the item as fits"
                )
    _keep(command, trained, found, speaking)


def _keep(
    command: Evaluate, trained: Trained, found: Sequence[TaskScores], console: Console
) -> None:
    if command.limit is not None:
        console.line("scores of the first items alone are not kept")
        return
    for scores in found:
        folder = save_scores(trained.folder, trained.checkpoint.state["step"], scores)
    console.line(f"kept, item by item, in {folder}; quintic compare tests the difference of two")


def _as_json(trained: Trained, found: Sequence[TaskScores]) -> Mapping[str, object]:
    shown = {scores.task: scores.to_dict() for scores in found}
    for content in shown.values():
        del content["items"], content["totals"]  # which the run's folder keeps
    return {"checkpoint": str(trained.checkpoint.path), "tasks": shown}


def _print(found: Sequence[TaskScores], subtasks: bool, console: Console) -> None:
    metrics = list(dict.fromkeys(metric for scores in found for metric in scores.items))
    header = ["task", "items", *metrics, "chance"]
    rows = []
    for scores in found:
        chance = f"{scores.chance:.4f}" if scores.chance else "-"
        rows.append([scores.task, f"{scores.count():,}", *_cells(scores.metrics, metrics), chance])
    console.table(Table(header, rows))
    for scores in found:
        if len(scores.groups) > 1:
            parts = scores.by_subtask() if subtasks else scores.by_group()
            console.table(
                Table(
                    [scores.task, "items", *scores.items],
                    [
                        [name, f"{scores.count(name):,}", *_cells(part, list(scores.items))]
                        for name, part in parts.items()
                    ],
                )
            )
    console.line("±: standard error over the items, by bootstrap")
    for scores in found:
        console.line(f"{scores.task}: {scores.source}")


def _cells(scores: Mapping[str, Score], metrics: Sequence[str]) -> list[str]:
    return [str(scores[metric]) if metric in scores else "-" for metric in metrics]


def evaluate_with_lm_eval(command: Evaluate, trained: Trained, console: Console) -> None:
    """Print what lm-evaluation-harness finds out about a model, and keep it in its run's folder."""
    assert command.lm_eval is not None
    names = [name for name in map(str.strip, command.lm_eval.split(",")) if name]
    if not names:
        raise QuinticError(
            f"--lm-eval {command.lm_eval!r} names no task: lm-eval ls tasks lists those of "
            "lm-evaluation-harness"
        )
    require_package("lm_eval", "lm-eval", "--lm-eval")
    from quintic.tasks.lm_eval_model import run_lm_eval
    from quintic.tasks.lm_eval_results import kept_scores

    tokenizer = load_tokenizer(trained.tokenizer_spec(console, command.tokenizer))
    table, results = run_lm_eval(trained, tokenizer, names, command.limit)
    found = kept_scores(results)
    if command.json:
        print(json.dumps(_as_json(trained, found), indent=1))
    else:
        console.line(f"{trained.checkpoint.path}, by lm-evaluation-harness")
        print(table)
    _keep(command, trained, found, Console(quiet=command.json))

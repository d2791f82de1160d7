"""Scores on standard tasks while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quintic.config import Config
from quintic.console import Console
from quintic.data.dataset import Dataset
from quintic.data.tokenizer import Tokenizer
from quintic.distributed.world import World
from quintic.model.base import LanguageModel
from quintic.tasks.data import TaskData, load_data
from quintic.tasks.definitions import named_tasks
from quintic.tasks.score import TaskScores, score_task


@dataclass(frozen=True)
class TrainingTasks:
    """The tasks of a run, read before it begins, so that none is missing hours later."""

    data: Sequence[TaskData]
    tokenizer: Tokenizer
    every: int | None

    def due(self, step: int, *, done: bool) -> bool:
        """Return whether the model is scored after so many steps."""
        return done or (self.every is not None and step % self.every == 0)

    def score(
        self, model: LanguageModel, world: World, on_progress: Callable[[str], None]
    ) -> list[TaskScores]:
        """Return the scores of all tasks, on every process; `on_progress` gets what is done now."""
        found = []
        for data in self.data:
            name = f"scoring {data.task.name}"
            on_progress(name)

            def show(fraction: float, name: str = name) -> None:
                on_progress(f"{name}, {fraction:.0%}")

            found.append(score_task(model, self.tokenizer, data, show, world))
        return found


def open_tasks(
    config: Config, dataset: Dataset, console: Console, world: World
) -> TrainingTasks | None:
    """Return the tasks that a run is scored on; None where it names none.

    Raises `QuinticError` for a task that there is not, data that cannot be had, and a tokenizer
    that nobody knows.
    """
    train = config.train
    if train.eval_tasks is None:
        return None
    folder = None if train.eval_task_data is None else Path(train.eval_task_data)
    tasks = named_tasks(train.eval_tasks, "--train.eval-tasks")
    with world.first_on_each_node():
        option = "--train.eval-task-data"
        data = [load_data(task, folder, console, option=option) for task in tasks]
    return TrainingTasks(data, dataset.load_tokenizer(), train.eval_tasks_every)

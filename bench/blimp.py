"""BLiMP by phenomenon as lm-evaluation-harness scores quintic's own model, for docs/tasks.md.

    python -m bench.blimp RUN --task-data DIR     # writes docs/results/blimp/RUN-lm-eval.json

As `quintic evaluate RUN --lm-eval blimp` does, from the files that `--tasks blimp` takes, and with
a group for each phenomenon, of which lm-eval has none. It needs the extra `lm-eval`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.results import print_table, write_result
from bench.tasks import lm_eval_task, split_pairs
from quintic.console import Console
from quintic.tasks.data import local_data
from quintic.tasks.definitions import TASKS
from quintic.trained import load_trained


def group(name: str, children: Iterable[Any]) -> Any:
    """Return a group of lm-eval's whose accuracy is the unweighted mean, as of its own blimp."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    made = Group(name, aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=False)])
    for child in children:
        made.add(child)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--task-data", type=Path, required=True)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import lm_eval
    from lm_eval.api.task import ConfigurableTask

    from quintic.tasks.lm_eval_model import QuinticLM

    trained = load_trained(options.run)
    model = QuinticLM(trained.model, trained.load_tokenizer(Console(quiet=True)))
    items = local_data(TASKS["blimp"], options.task_data).items
    terms = {item.subtask: item.group for item in items}
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            file.stem: ConfigurableTask(config=lm_eval_task("blimp", file))
            for file in split_pairs(options.task_data, Path(folder), None)
        }
        parts = [
            group(term, [task for name, task in tasks.items() if terms[name] == term])
            for term in sorted({*terms.values()})
        ]
        found = lm_eval.simple_evaluate(
            model=model, tasks=[group("blimp", parts)], log_samples=False
        )
    assert found is not None
    scores = {
        name: {"acc": float(row["acc,none"]), "stderr": float(row["acc_stderr,none"])}
        for name, row in found["results"].items()
    }
    groups = ["blimp", *sorted({*terms.values()})]
    print_table(["", "acc", "stderr"], [[name, *scores[name].values()] for name in groups])
    figures = {"lm_eval": found["lm_eval_version"], "scores": scores}
    name = f"blimp/{options.run.name}-lm-eval"
    print(write_result(name, figures, trained.device, module="bench.blimp"))


if __name__ == "__main__":
    main()

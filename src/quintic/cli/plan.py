"""quintic plan."""

from __future__ import annotations

import json
from collections.abc import Sequence

from quintic.cli.options import Plan
from quintic.console import Console
from quintic.plan.plan import make_plan
from quintic.plan.text import conclusions, figures, heading, memory_table, memory_title


def run(command: Plan, _arguments: Sequence[str]) -> None:
    """Print what a training will take; nothing is trained or written."""
    plan = make_plan(command.config, gpu=command.gpu, gpus=command.gpus, hours=command.hours)
    if command.json:
        print(json.dumps(plan.to_dict(), indent=1))
        return
    console = Console()
    console.line(heading(plan))
    console.line(memory_title(plan))
    console.table(memory_table(plan))
    for figure in figures(plan):
        console.line(figure)
    for sentence in conclusions(plan):
        console.line(f"- {sentence}")

"""quintic evaluate."""

from __future__ import annotations

from collections.abc import Sequence

from quintic.cli.options import Evaluate
from quintic.console import Console
from quintic.data.loader import validation_batches
from quintic.errors import counted
from quintic.evaluate import validation_loss
from quintic.report import score_lines
from quintic.trained import load_trained


def run(command: Evaluate, _arguments: Sequence[str]) -> None:
    """Print the validation loss of a run's checkpoint."""
    console = Console()
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    dataset = trained.open_data(console, path=command.data, tokenizer=command.tokenizer)
    config = trained.config
    tokens = config.train.eval_tokens if command.tokens is None else command.tokens
    batches = validation_batches(
        dataset.val, config.model.context, tokens, config.train.micro_batch or 1
    )
    loss = validation_loss(trained.model.loss, batches, trained.device)
    for problem in trained.checkpoint.damaged:
        console.line(f"skipped: {problem}")
    console.line(f"{trained.checkpoint.path}, {counted(tokens, 'validation token')}")
    for line in score_lines(dataset, loss, tokens):
        console.line(line)

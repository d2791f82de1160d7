"""quintic evaluate."""

from __future__ import annotations

from collections.abc import Sequence

from quintic.cli.evaluate_tasks import evaluate_tasks, evaluate_with_lm_eval
from quintic.cli.options import Evaluate
from quintic.console import Console, EvaluationProgress, Table
from quintic.data.document import read_document
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.loader import rolling_batches, validation_batches
from quintic.device import choose_device
from quintic.distributed.failures import first_failure_speaks
from quintic.distributed.rendezvous import connect, launched_size
from quintic.distributed.signals import stop_with_launcher
from quintic.distributed.world import World
from quintic.errors import QuinticError, counted
from quintic.evaluate import add_up, gzip_bytes, sum_losses
from quintic.run_lines import score_lines
from quintic.trained import Trained, load_trained


def run(command: Evaluate, _arguments: Sequence[str]) -> None:
    """Print the loss of a run's checkpoint, on a dataset or on files, or its scores on tasks, which
    several processes share where torchrun started them."""
    _check(command)
    if launched_size() > 1:
        stop_with_launcher()
    world = connect(choose_device(command.device).type)
    with first_failure_speaks(world):
        if world.size > 1 and command.tasks is None:
            raise QuinticError(
                f"{world.size} processes would do the same, since only --tasks is divided among "
                "them: start one, without torchrun"
            )
        _evaluate(command, Console(quiet=not world.is_main), world)


def _evaluate(command: Evaluate, console: Console, world: World) -> None:
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    for problem in trained.checkpoint.damaged:
        console.line(f"skipped: {problem}")
    if command.tasks is not None:
        evaluate_tasks(command, trained, console, world)
    elif command.lm_eval is not None:
        evaluate_with_lm_eval(command, trained, console)
    elif command.text is not None:
        _evaluate_files(command, trained, console)
    else:
        _evaluate_dataset(command, trained, console)


def _check(command: Evaluate) -> None:
    """Raise `QuinticError` where options contradict each other."""
    if command.text is not None and not command.text:
        raise QuinticError("--text names no file: give one or more, - for standard input")
    if command.limit is not None and command.limit < 1:
        raise QuinticError(f"--limit is {command.limit}: it counts items and must be positive")
    what = {"--text": "files", "--tasks": "tasks", "--lm-eval": "tasks of lm-evaluation-harness"}
    values = {
        "--text": command.text,
        "--tasks": command.tasks,
        "--lm-eval": command.lm_eval,
    }
    chosen = [name for name, value in values.items() if value is not None] or ["a dataset"]
    if len(chosen) > 1:
        raise QuinticError(
            f"{chosen[0]} is for {what[chosen[0]]} and {chosen[1]} for {what[chosen[1]]}: "
            "leave one out"
        )
    for option, given, of in (
        ("--data", command.data is not None, ["a dataset"]),
        ("--split", command.split != "val", ["a dataset"]),
        ("--tokens", command.tokens is not None, ["a dataset"]),
        ("--task-data", command.task_data is not None, ["--tasks"]),
        ("--limit", command.limit is not None, ["--tasks", "--lm-eval"]),
        ("--subtasks", command.subtasks, ["--tasks"]),
        ("--json", command.json, ["--tasks", "--lm-eval"]),
    ):
        if given and chosen[0] not in of:
            raise QuinticError(
                f"{option} is for {' and '.join(of)}"
                + (f" and {chosen[0]} for {what[chosen[0]]}" if chosen[0] in what else "")
                + ": leave it out"
            )


def _evaluate_dataset(command: Evaluate, trained: Trained, console: Console) -> None:
    if command.data is None:
        dataset = trained.open_data(console, tokenizer=command.tokenizer)
    else:
        dataset = trained.open_other_data(
            command.data, command.split, console, tokenizer=command.tokenizer
        )
    own, stream = trained.trained_on(dataset), dataset.streams[command.split]
    train, context = trained.config.train, trained.config.model.context
    if command.tokens is not None or (own and command.split == "val"):
        tokens = train.eval_tokens if command.tokens is None else command.tokens
        batches = validation_batches(stream, context, tokens, train.micro_batch or 1)
    else:
        tokens = min(train.eval_tokens, len(stream) - 1)
        if not tokens:
            raise QuinticError(
                f"{dataset.path} has one {command.split} token, which no other precedes: name a "
                "dataset with more"
            )
        batches = rolling_batches(stream, context, tokens, train.micro_batch or 1)
    with EvaluationProgress(console, tokens) as bar:
        sums = sum_losses(
            trained.model.loss,
            bar.counting(batches),
            trained.device,
            special_ids=dataset.special_ids,
        )
    part = "validation" if command.split == "val" else "training"
    where = "" if own else f" of {dataset.path}"
    console.line(f"{trained.checkpoint.path}, {counted(tokens, f'{part} token')}{where}")
    for line in score_lines(dataset, command.split, sums, unigram=own):
        console.line(line)


def _evaluate_files(command: Evaluate, trained: Trained, console: Console) -> None:
    assert command.text is not None
    tokenizer = load_tokenizer(trained.tokenizer_spec(console, command.tokenizer))
    documents = [read_document(path, tokenizer) for path in command.text]
    train, context = trained.config.train, trained.config.model.context
    names, sums, sizes, gzipped = [], [], [], []
    for document in documents:
        tokens = len(document.ids) - 1  # all but the end of text before them
        batches = rolling_batches(document, context, tokens, train.micro_batch or 1)
        names.append(document.name)
        with EvaluationProgress(console, tokens) as bar:
            sums.append(sum_losses(trained.model.loss, bar.counting(batches), trained.device))
        sizes.append(len(document.text))
        gzipped.append(gzip_bytes(document.text))
    if len(documents) > 1:
        names.append("total")
        sums.append(add_up(sums))
        sizes.append(sum(sizes))
        gzipped.append(sum(gzipped))
    header = ["file", "tokens", "bytes", "loss", "perplexity", "bits per byte", "gzip -9"]
    rows = [
        [
            name,
            f"{losses.tokens:,}",
            f"{size:,}",
            f"{losses.mean:.4f}",
            f"{losses.perplexity:.2f}",
            f"{losses.bits_per_byte(size):.4f}",
            f"{8 * packed / size:.4f}",
        ]
        for name, losses, size, packed in zip(names, sums, sizes, gzipped, strict=True)
    ]
    console.line(f"{trained.checkpoint.path}, each file a document behind end of text")
    console.table(Table(header, rows))
    console.line(
        "loss: nats per token; bits per byte: of the file, by the model and by gzip -9; the model "
        f"sees at most {context:,} tokens at once"
    )

"""quintic export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quintic.cli.options import Export
from quintic.console import Console, TransferProgress
from quintic.errors import QuinticError, require_package
from quintic.export.card import model_title
from quintic.export.export import check_out, check_same, default_out, export
from quintic.export.source import Source, open_source


def run(command: Export, _arguments: Sequence[str]) -> None:
    """Write a run's model in the format of another tool, verified, and upload it if asked to."""
    if command.dtype is not None and command.to != "gguf":
        raise QuinticError(
            f"--dtype says how a gguf stores matrices, and --to is {command.to}: leave it out"
        )
    options = {} if command.dtype is None else {"dtype": command.dtype}
    out = command.out or default_out(command.run, "-".join([command.to, *options.values()]))
    there = command.push is not None and out.is_dir() and any(out.iterdir())
    if not there:
        check_out(out)
    if command.push is not None:
        require_package("huggingface_hub", "data", "--push")
        from quintic.export.push import check_push

        check_push(command.push)
    console = Console()
    source = open_source(
        command.run, console, which=command.checkpoint, tokenizer=command.tokenizer
    )
    if there:  # as after an upload that failed
        check_same(source, command.to, out, console.line, **options)
        console.line(f"{out} is this export already")
    else:
        export(source, command.to, out, console.line, **options)
        console.line(f"written {out}")
    if command.push is not None:
        try:
            _push(source, out, command.push, console)
        except QuinticError as error:
            raise QuinticError(
                f"{error}; {out} is whole, and the same command uploads it"
            ) from error


def _push(source: Source, folder: Path, target: str, console: Console) -> None:
    from quintic.export.push import push_model

    with TransferProgress(console, "pushed") as bar:
        pushed = push_model(folder, target, model_title(source), on_progress=bar.show)
    if pushed.kept_card:
        console.line("the repository has a card of its own, which stays as it is")
    console.line(f"pushed to {pushed.page}")

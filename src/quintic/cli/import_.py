"""quintic import; its module has another name, since `import` is Python's own word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quintic.cli.options import Import
from quintic.console import Console, TransferProgress
from quintic.errors import QuinticError, in_command, require_package
from quintic.export.export import check_out
from quintic.imports.run_folder import choose_tokenizer, write_run
from quintic.imports.source import read_model
from quintic.model.build import meta_model


def run(command: Import, _arguments: Sequence[str]) -> None:
    """Write a model of another tool as the folder of a run."""
    check_out(command.out)
    console = Console()
    if command.source.startswith("hub:"):
        path, revision = _fetch(command.source, console)
        source = command.source
    else:
        path, revision = Path(command.source), None
        source = path.resolve().name
    model = read_model(path, command.format, heads=command.heads, context=command.context)
    try:
        tokenizer, notes = choose_tokenizer(model, command.tokenizer)
    except QuinticError as error:
        raise QuinticError(f"{path}: {error}") from error
    write_run(model, tokenizer, command.out, source=source, revision=revision)
    parameters = meta_model(model.config).parameter_count()
    console.line(
        f"{command.source} is of {model.kind}: {parameters:,} parameters, {model.config.layers} x "
        f"{model.config.width}, context {model.config.context:,}, "
        f"vocabulary {model.config.vocab_size:,}"
    )
    for note in (*model.notes, *notes):
        console.line(f"note: {note}")
    console.line(
        f"written {command.out}; try it with quintic generate {in_command(command.out)}, train it "
        f"with quintic train RECIPE --init-from {in_command(command.out)}"
    )


def _fetch(source: str, console: Console) -> tuple[Path, str]:
    """Return the folder and the commit of a model of the hub, whose libraries only this needs."""
    for package in ("huggingface_hub", "httpx2"):
        require_package(package, "data", "quintic import hub:OWNER/NAME")
    from quintic.data.hub.client import HubRepo
    from quintic.imports.hub import fetch_model

    with TransferProgress(console, "fetched") as bar:
        return fetch_model(HubRepo.parse(source, "model"), bar.show, console.line)

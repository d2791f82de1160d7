"""quintic data fetch, build, import, export, push, info and check.

Each imports what it needs itself: the hub's libraries are slow to import, and so is PyTorch.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from quintic.cli.options import (
    Data,
    DataBuild,
    DataCheck,
    DataExport,
    DataFetch,
    DataImport,
    DataInfo,
    DataPush,
)
from quintic.cli.output_file import check_writable
from quintic.errors import QuinticError, counted, in_command, require_package

if TYPE_CHECKING:
    from quintic.console import Console
    from quintic.data.manifest import ShardRecord


_SAMPLE_TOKENS = 80


def run(command: Data, _arguments: Sequence[str]) -> None:
    """Run the command that follows the word `data`."""
    for package in ("huggingface_hub", "pyarrow"):
        require_package(package, "data", "quintic data")
    runs: dict[type, Callable[[Any], None]] = {
        DataFetch: _fetch,
        DataBuild: _build,
        DataImport: _import,
        DataExport: _export,
        DataPush: _push,
        DataInfo: _info,
        DataCheck: _check,
    }
    runs[type(command.action)](command.action)


def _fetch(command: DataFetch) -> None:
    from quintic.console import Console, TransferProgress
    from quintic.data.hub.fetch import fetch

    console = Console()
    with TransferProgress(console, "fetched") as bar:
        dataset = fetch(
            command.name,
            command.out,
            shards=command.shards,
            on_progress=bar.show,
            log=console.line,
        )
    for split, stream in dataset.streams.items():
        console.line(
            f"{split:<6} {counted(len(stream.shards), 'shard')}, {counted(len(stream), 'token')}"
        )
    console.line(f"{dataset.path} is whole; train on it with --data.path {dataset.path}")


def _build(command: DataBuild) -> None:
    from quintic.console import BuildProgress, Console
    from quintic.data.build.folder import SKIPPED_FILE
    from quintic.data.build.pipeline import build_dataset
    from quintic.data.build.settings import BuildSettings, default_name
    from quintic.data.manifest import SPLITS

    console = Console()
    # The end of the process looks for cycles in all that was loaded: a tenth of a second.
    atexit.register(gc.freeze)

    def unescaped(text: str | None) -> str | None:
        for escape, character in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
            text = text and text.replace(escape, character)
        return text

    settings = BuildSettings(
        inputs=command.inputs,
        name=default_name(command.out) if command.name is None else command.name,
        field=command.field or ("text" if command.messages is None else "messages"),
        separator=unescaped(command.separator),
        messages=unescaped(command.messages),
        tokenizer=command.tokenizer,
        shard_tokens=command.shard_tokens,
        val_share=command.val_share,
        shuffle=command.shuffle,
        kind=command.kind,
    )
    try:
        with BuildProgress(console) as progress:
            report = build_dataset(
                settings,
                command.out,
                workers=command.workers,
                max_bad=command.max_bad,
                on_progress=progress.show,
                log=console.line,
            )
    except KeyboardInterrupt:
        print("quintic: the same command continues this build", file=sys.stderr)
        raise
    for note in report.notes:
        console.line(f"note: {note}")
    if report.skipped:
        path = command.out / SKIPPED_FILE
        bad = counted(report.skipped, "bad document")
        console.line(f"skipped {bad}, all listed in {path}; the first:")
        with path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, 10):
                console.line(f"  {line.rstrip()}")
    for split in SPLITS:
        _line_of_split(console, split, [r for r in report.shards if r.split == split])
    done = "is built" if report.built else "was built before"
    next_step = f"train on it with: quintic train --data.path {in_command(command.out)}"
    if lacking := set(SPLITS) - {record.split for record in report.shards}:
        share = "larger" if "val" in lacking else "smaller"
        next_step = (
            f"training needs documents in both splits: build into another --out, with a {share} "
            f"--val-share or from more documents (--separator cuts text into several)"
        )
    console.line(f"{command.out} {done}; {next_step}")


def _line_of_split(console: Console, split: str, records: Sequence[ShardRecord]) -> None:
    documents, tokens = sum(r.documents for r in records), sum(r.tokens for r in records)
    console.line(
        f"{split}: {counted(documents, 'document')}, {counted(tokens, 'token')} in "
        f"{counted(len(records), 'shard')}"
    )


def _import(command: DataImport) -> None:
    from quintic.console import Console
    from quintic.data.build.settings import default_name
    from quintic.data.manifest import SPLITS
    from quintic.data.tokens.import_tokens import ImportSettings, import_tokens

    console = Console()
    settings = ImportSettings(
        tokenizer=command.tokenizer,
        name=default_name(command.out) if command.name is None else command.name,
        shard_tokens=command.shard_tokens,
        val_share=command.val_share,
        val_tokens=command.val_tokens,
        rows=command.rows,
        dtype=command.dtype,
    )
    report = import_tokens(command.source, command.out, settings, console.stage)
    for note in report.notes:
        console.line(f"note: {note}")
    for split in SPLITS:
        _line_of_split(console, split, [r for r in report.shards if r.split == split])
    line = f"{command.out} is made of {command.source}, token files of {report.kind}"
    if {record.split for record in report.shards} == set(SPLITS):
        line += f"; train on it with: quintic train --data.path {in_command(command.out)}"
    console.line(line)


def _export(command: DataExport) -> None:
    from quintic.console import Console
    from quintic.data.tokens.export_tokens import export_tokens

    console = Console()
    files = export_tokens(command.path, command.to, command.out, command.tokenizer, console.stage)
    console.line(f"written for {command.to}: {', '.join(str(file) for file in files)}")


def _push(command: DataPush) -> None:
    from quintic.console import Console, TransferProgress
    from quintic.data.hub.push import push

    console = Console()
    with TransferProgress(console, "pushed") as bar:
        pushed = push(
            command.path,
            command.to,
            tokenizer=command.tokenizer,
            private=command.private,
            on_progress=bar.show,
        )
    if pushed.kept_card:
        console.line("the repository has a card of its own, which stays as it is")
    console.line(f"pushed to {pushed.page}; fetch it with: quintic data fetch {command.to}")


def _info(command: DataInfo) -> None:
    from quintic.console import Console
    from quintic.data.description import describe_dataset
    from quintic.data.token_text import marked
    from quintic.data_info.figure import draw_description
    from quintic.data_info.page import write_page
    from quintic.data_info.table import splits_table

    files = {
        "figure": (command.figure, ".png", draw_description),
        "html": (command.html, ".html", write_page),
    }
    for option, (path, suffix, _) in files.items():
        if path is not None:
            if path.suffix != suffix:
                raise QuinticError(f"--{option} {path}: the file's name must end in {suffix}")
            check_writable(path, f"--{option}")
    info = describe_dataset(command.path, command.tokenizer, command.seed)
    for path, _, write in files.values():
        if path is not None:
            write(info, path)
    if command.json:
        print(json.dumps({**asdict(info), "path": str(info.path)}))
        return
    console = Console()
    console.line(f"dataset      {info.path}")
    vocabulary = "unknown" if info.vocab_size is None else f"{info.vocab_size:,}"
    console.line(f"tokenizer    {info.tokenizer or 'unknown'}, vocabulary {vocabulary}")
    console.line(f"fingerprint  {info.fingerprint}")
    console.table(splits_table(info))
    if len({source.name for source in info.sources}) > 1:
        for source in info.sources:
            console.line(
                f"source: {source.name}, {counted(source.tokens, f'{source.split} token')}"
            )
    for sample in info.samples:
        shown = sample.pieces[:_SAMPLE_TOKENS]
        console.line(f"sample: {'|'.join(marked(text) for text, _ in shown)}")
    for note in info.notes:
        console.line(f"note: {note}")
    for path, _, _ in files.values():
        if path is not None:
            console.line(f"written {path}")


def _check(command: DataCheck) -> None:
    from quintic.console import Console
    from quintic.data.verify import check_dataset

    console = Console()
    on_progress = None if command.json else partial(console.stage, "check")
    report = check_dataset(command.path, command.tokenizer, on_progress=on_progress)
    if command.json:
        print(json.dumps({**asdict(report), "path": str(report.path), "ok": report.ok}))
        if not report.ok:
            raise SystemExit(2)
        return
    for note in report.notes:
        console.line(f"note: {note}")
    for problem in report.problems:
        console.line(f"problem: {problem}")
    if not report.ok:
        raise QuinticError(
            f"{report.path} has {counted(len(report.problems), 'problem')}: see above"
        )
    size = f"{counted(report.shards, 'shard')}, {counted(report.tokens, 'token')}"
    console.line(f"{report.path} is in order: {size}")

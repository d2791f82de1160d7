"""quintic data fetch, build, push, info and check."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict

from quintic.cli.options import DataBuild, DataCheck, DataFetch, DataInfo, DataPush
from quintic.errors import QuinticError


def run_data_fetch(command: DataFetch) -> None:
    from quintic.console import Console, TransferProgress
    from quintic.data.hub.fetch import fetch

    console = Console()
    with TransferProgress(console, "fetched") as bar:
        dataset = fetch(
            command.name,
            command.out,
            shards=command.shards,
            progress=bar.show,
            say=console.line,
        )
    for split, stream in dataset.streams.items():
        console.line(f"{split:<6} {len(stream.shards):,} shards, {len(stream):,} tokens")
    console.line(f"{dataset.path} is whole; train on it with --data.path {dataset.path}")


def run_data_build(command: DataBuild) -> None:
    from quintic.console import BuildProgress, Console
    from quintic.data.build.folder import SKIPPED_FILE
    from quintic.data.build.pipeline import build_dataset
    from quintic.data.build.settings import BuildSettings, default_name
    from quintic.data.manifest import SPLITS

    console = Console()
    separator = command.separator
    for escape, character in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
        separator = separator and separator.replace(escape, character)
    settings = BuildSettings(
        inputs=command.inputs,
        name=default_name(command.out) if command.name is None else command.name,
        field=command.field,
        separator=separator,
        tokenizer=command.tokenizer,
        shard_tokens=command.shard_tokens,
        val_share=command.val_share,
        shuffle=command.shuffle,
    )
    try:
        with BuildProgress(console) as progress:
            report = build_dataset(
                settings,
                command.out,
                workers=command.workers,
                max_bad=command.max_bad,
                progress=progress.show,
            )
    except KeyboardInterrupt:
        print("quintic: the same command continues this build", file=sys.stderr)
        raise
    for note in report.notes:
        console.line(f"note: {note}")
    if report.skipped:
        path = command.out / SKIPPED_FILE
        console.line(f"skipped {report.skipped:,} bad documents, all listed in {path}; the first:")
        with path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, 10):
                console.line(f"  {line.rstrip()}")
    for split in SPLITS:
        records = [record for record in report.shards if record.split == split]
        documents, tokens = sum(r.documents for r in records), sum(r.tokens for r in records)
        console.line(
            f"{split}: {documents:,} documents, {tokens:,} tokens in {len(records):,} shards"
        )
    done = "is built" if report.built else "was built before"
    console.line(f"{command.out} {done}; train on it with: quintic train --data.path {command.out}")


def run_data_push(command: DataPush) -> None:
    from quintic.console import Console, TransferProgress
    from quintic.data.hub.push import push

    console = Console()
    with TransferProgress(console, "pushed") as bar:
        pushed = push(
            command.path,
            command.to,
            tokenizer=command.tokenizer,
            private=command.private,
            progress=bar.show,
        )
    if pushed.kept_card:
        console.line("the repository has a card of its own, which stays as it is")
    console.line(f"pushed to {pushed.page}; fetch it with: quintic data fetch {command.to}")


def run_data_info(command: DataInfo) -> None:
    from rich.console import Console
    from rich.table import Table

    from quintic.data.verify import describe_dataset

    info = describe_dataset(command.path, command.tokenizer)
    if command.json:
        print(json.dumps({**asdict(info), "path": str(info.path)}))
        return
    table = Table("split", "shards", "tokens", "documents", "bytes per token", "document tokens")
    for name, split in info.splits.items():
        lengths = ", ".join(f"{p}%: {length:,}" for p, length in split.document_tokens.items())
        table.add_row(
            name,
            f"{split.shards:,}",
            f"{split.tokens:,}",
            "unknown" if split.documents is None else f"{split.documents:,}",
            "unknown" if split.bytes_per_token is None else f"{split.bytes_per_token:.3f}",
            lengths or "unknown",
        )
    console = Console(highlight=False)
    console.print(f"dataset      {info.path}", markup=False, soft_wrap=True)
    vocabulary = "unknown" if info.vocab_size is None else f"{info.vocab_size:,}"
    console.print(
        f"tokenizer    {info.tokenizer or 'unknown'}, vocabulary {vocabulary}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"fingerprint  {info.fingerprint}", markup=False, soft_wrap=True)
    console.print(table)
    for sample in info.samples:
        console.print(f"sample: {sample!r}", markup=False, soft_wrap=True)
    for note in info.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def run_data_check(command: DataCheck) -> None:
    from quintic.console import Console
    from quintic.data.verify import check_dataset

    console = Console()
    progress = None if command.json else console.stage
    report = check_dataset(command.path, command.tokenizer, progress=progress)
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
        raise QuinticError(f"{report.path} has {len(report.problems)} problems: see above")
    console.line(f"{report.path} is in order: {report.shards} shards, {report.tokens:,} tokens")

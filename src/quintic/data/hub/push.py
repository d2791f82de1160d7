"""A dataset onto the Hugging Face hub, with a card that says what it is and how to train on it."""

from collections.abc import Callable
from pathlib import Path

from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.dataset import Dataset, open_dataset, split_of
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.hub.catalog import DATA_FOLDER
from quintic.data.hub.client import HubRepo, Transfer
from quintic.data.hub.upload import Pushed, repo_to_push, upload
from quintic.data.manifest import MANIFEST_FILE, Split
from quintic.data.shards import has_header
from quintic.data.verify import check_dataset
from quintic.errors import QuinticError

_CARD_MARK = "<!-- Written by `quintic data push`. Remove this line to keep a card of your own. -->"


def push(
    folder: Path,
    target: str,
    *,
    tokenizer: str | None = None,
    private: bool = False,
    on_progress: Callable[[Transfer], None] | None = None,
) -> Pushed:
    """Upload a dataset in one commit: nobody sees a part of it.

    Files that the hub has already are not sent again, so an interrupted push continues. `target`
    is hub:OWNER/NAME and is created if it is not there, as a private one where `private` is set;
    `tokenizer` is as in `open_dataset`; `on_progress` is called as shards have been uploaded.

    Raises `QuinticError` where the dataset is damaged, the repository holds other shards, or the
    hub refuses.
    """
    repo = repo_to_push(target, "dataset")
    _refuse_damaged(folder, tokenizer)
    dataset = open_dataset(folder, tokenizer)
    if any(not has_header(shard.path) for s in dataset.streams.values() for shard in s.shards):
        raise QuinticError(
            f"{folder} has token files of another tool: make a dataset of them with quintic data "
            f"import {folder} --out OUT, and push that"
        )
    files = _files(dataset)
    names = {file.name for file in files}

    def refuse_others(there: set[str]) -> None:
        for name in sorted(there - names):
            if name.endswith(".bin") and split_of(name) is not None:
                raise QuinticError(
                    f"{repo} already holds {name}, which is not of this dataset: push to another "
                    f"name, or delete it on {repo.page}"
                )

    return upload(
        repo,
        files,
        dataset_card(dataset, repo),
        mark=_CARD_MARK,
        message=f"{sum(map(len, dataset.streams.values())):,} tokens",
        private=private,
        check=refuse_others,
        on_progress=on_progress,
    )


def _refuse_damaged(folder: Path, tokenizer: str | None) -> None:
    report = check_dataset(folder, tokenizer)
    if not report.ok:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise QuinticError(
            f"{folder} was not pushed, it is damaged: {report.problems[0]}{more}; see "
            f"quintic data check {folder}"
        )


def _files(dataset: Dataset) -> list[Path]:
    own = [dataset.path / name for name in (MANIFEST_FILE, TOKENIZER_FILE)]
    shards = [shard.path for stream in dataset.streams.values() for shard in stream.shards]
    return [path for path in own if path.exists()] + shards


def dataset_card(dataset: Dataset, repo: HubRepo) -> str:
    """Return the README.md of a dataset on the hub."""
    name = repo.repo_id.split("/")[1]
    rows = "\n".join(_row(dataset, split) for split in dataset.streams)
    train = f"quintic train modded --data.path {DATA_FOLDER / name}"
    if dataset.manifest is None and dataset.tokenizer_spec == GPT2.name:
        train += f" --data.tokenizer {GPT2.name}"
    dtype = dataset.train.shards[0].dtype
    return f"""\
---
pretty_name: {name}
task_categories:
- text-generation
tags:
- quintic
- pretraining
- tokenized
---

{_CARD_MARK}

# {name}

Text as token ids in shards, ready for pretraining a language model.

| split | shards | tokens | documents | text |
|---|---|---|---|---|
{rows}

{_tokenizer_line(dataset)}

## Train on it

```
quintic data fetch {repo}
{train}
```

`quintic data fetch {repo} --shards N` fetches the first N training shards and the
validation.

## Format

`*_train_*.bin` and `*_val_*.bin`, taken by name, in the format of llm.c: a header of 256
little-endian int32 (magic, version, number of tokens), then the tokens as {dtype.name}. A document
begins with the end-of-text token; shards may end in the middle of one.
"""


def _row(dataset: Dataset, split: Split) -> str:
    stream = dataset.streams[split]
    documents, text = "unknown", "unknown"
    if dataset.manifest is not None:
        records = [record for record in dataset.manifest.shards if record.split == split]
        documents = f"{sum(record.documents for record in records):,}"
        text_bytes = sum(record.text_bytes for record in records)
        text = f"{text_bytes:,} bytes, {text_bytes / len(stream):.2f} a token"
    return f"| {split} | {len(stream.shards):,} | {len(stream):,} | {documents} | {text} |"


def _tokenizer_line(dataset: Dataset) -> str:
    if dataset.tokenizer_spec is None:
        return "Nothing here says which tokenizer made the ids."
    kind = (
        "GPT-2's (tiktoken's `r50k_base`)"
        if dataset.tokenizer_spec == GPT2.name
        else f"a byte-level BPE of its own, `{TOKENIZER_FILE}`"
    )
    line = f"Tokenizer: {kind}, {dataset.vocab_size:,} ids; {dataset.eot_id} is the end of text."
    if dataset.manifest:
        line += f" What each shard holds, with its SHA-256, says `{MANIFEST_FILE}`."
    return line

"""A dataset onto the Hugging Face hub, with a card that says what it is and how to train on it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from quintic.data.dataset import Dataset, open_dataset, split_of
from quintic.data.hub.catalog import DATA_FOLDER
from quintic.data.hub.client import HubRepo, Transfer, hub_api, hub_errors
from quintic.data.manifest import MANIFEST_FILE, Split
from quintic.data.tokenizer import GPT2, TOKENIZER_FILE
from quintic.data.verify import check_dataset
from quintic.errors import QuinticError

CARD_FILE = "README.md"

_CARD_MARK = "<!-- Written by `quintic data push`. Remove this line to keep a card of your own. -->"
_UPLOADS_AT_A_TIME = 4


@dataclass(frozen=True)
class Pushed:
    """The address of the repository, and whether its own card was kept."""

    page: str
    kept_card: bool


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
    repo = HubRepo.parse(target)
    if repo.revision is not None:
        raise QuinticError(
            f"{target} names a revision: a push makes a new one; write hub:{repo.repo_id}"
        )
    _refuse_damaged(folder, tokenizer)
    dataset = open_dataset(folder, tokenizer)
    files = _files(dataset)
    api = hub_api()
    with hub_errors(repo, "cannot be pushed to"), _without_bars():
        api.create_repo(repo.repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        kept_card = _has_own_card(api, repo, {file.name for file in files})
        additions = [CommitOperationAdd(file.name, str(file)) for file in files]
        _upload(api, repo, files, additions, on_progress)
        if not kept_card:
            additions.append(CommitOperationAdd(CARD_FILE, dataset_card(dataset, repo).encode()))
        api.create_commit(
            repo.repo_id,
            additions,
            commit_message=f"{sum(map(len, dataset.streams.values())):,} tokens",
            repo_type="dataset",
        )
    return Pushed(repo.page, kept_card)


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


def _has_own_card(api: HfApi, repo: HubRepo, names: set[str]) -> bool:
    """Return whether the repository's card is not ours; raises `QuinticError` for other shards."""
    there = {entry.rfilename for entry in api.dataset_info(repo.repo_id).siblings or []}
    for name in sorted(there - names):
        if name.endswith(".bin") and split_of(name) is not None:
            raise QuinticError(
                f"{repo} already holds {name}, which is not of this dataset: push to another name, "
                f"or delete it on {repo.page}"
            )
    if CARD_FILE not in there:
        return False
    with tempfile.TemporaryDirectory() as aside:
        card = api.hf_hub_download(
            repo.repo_id, CARD_FILE, repo_type="dataset", local_dir=aside, force_download=True
        )
        return _CARD_MARK not in Path(card).read_text(encoding="utf-8", errors="replace")


def _upload(
    api: HfApi,
    repo: HubRepo,
    files: list[Path],
    additions: list[CommitOperationAdd],
    on_progress: Callable[[Transfer], None] | None,
) -> None:
    """Send the files' content, a few at a time; it becomes visible with the commit."""
    sizes = [file.stat().st_size for file in files]
    for first in range(0, len(additions), _UPLOADS_AT_A_TIME):
        last = first + _UPLOADS_AT_A_TIME
        api.preupload_lfs_files(
            repo.repo_id,
            additions[first:last],
            repo_type="dataset",
            num_threads=_UPLOADS_AT_A_TIME,
            free_memory=False,
        )
        if on_progress:
            done = min(last, len(sizes))
            on_progress(Transfer(sum(sizes[:done]), sum(sizes), done, len(sizes)))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the client from drawing a bar for each file."""
    bars_were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not bars_were_disabled:
            enable_progress_bars()


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

"""Files onto the Hugging Face hub in one commit, beside a card that its owner may have written."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.hf_api import DatasetInfo, ModelInfo
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from quintic.data.hub.client import HubRepo, Transfer, hub_api, hub_errors
from quintic.errors import QuinticError

CARD_FILE = "README.md"
_UPLOADS_AT_A_TIME = 4


@dataclass(frozen=True)
class Pushed:
    """The address of the repository, and whether its own card was kept."""

    page: str
    kept_card: bool


def repo_to_push(target: str, kind: Literal["dataset", "model"]) -> HubRepo:
    """Read hub:OWNER/NAME; raises `QuinticError` for anything else."""
    repo = HubRepo.parse(target, kind)
    if repo.revision is not None:
        raise QuinticError(
            f"{target} names a revision: a push makes a new one; write hub:{repo.repo_id}"
        )
    return repo


def upload(
    repo: HubRepo,
    files: Sequence[Path],
    card: str,
    *,
    mark: str,
    message: str,
    private: bool = False,
    check: Callable[[set[str]], None] = lambda there: None,
    on_progress: Callable[[Transfer], None] | None = None,
) -> Pushed:
    """Upload files and a card in one commit: nobody sees a part of them.

    The repository is created if it is not there, as a private one where `private` is set. Files
    that the hub has already are not sent again, so that an interrupted push continues. A card there
    without the line `mark` is its owner's and stays. `check` gets the names of the files that are
    there, and `on_progress` is called as files have been uploaded.

    Raises `QuinticError` where the hub refuses, and as `check` does.
    """
    api = hub_api()
    with hub_errors(repo, "cannot be pushed to"), _without_bars():
        api.create_repo(repo.repo_id, repo_type=repo.kind, private=private or None, exist_ok=True)
        info = api.repo_info(repo.repo_id, repo_type=repo.kind)
        assert isinstance(info, DatasetInfo | ModelInfo)
        there = {entry.rfilename for entry in info.siblings or []}
        check(there)
        kept_card = CARD_FILE in there and mark not in _card_there(api, repo)
        additions = [CommitOperationAdd(file.name, str(file)) for file in files]
        _send(api, repo, files, additions, on_progress)
        if not kept_card:
            additions.append(CommitOperationAdd(CARD_FILE, card.encode()))
        api.create_commit(repo.repo_id, additions, commit_message=message, repo_type=repo.kind)
    return Pushed(repo.page, kept_card)


def _card_there(api: HfApi, repo: HubRepo) -> str:
    with tempfile.TemporaryDirectory() as aside:
        card = api.hf_hub_download(
            repo.repo_id, CARD_FILE, repo_type=repo.kind, local_dir=aside, force_download=True
        )
        return Path(card).read_text(encoding="utf-8", errors="replace")


def _send(
    api: HfApi,
    repo: HubRepo,
    files: Sequence[Path],
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
            repo_type=repo.kind,
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

"""The Hugging Face hub: names of its repositories, its client, and its errors as one line each."""

import os
import re
from dataclasses import dataclass
from typing import Self

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quintic import __version__
from quintic.errors import QuinticError

HUB_PREFIX = "hub:"

_DEFAULT_ENDPOINT = "https://huggingface.co"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def endpoint() -> str:
    """The hub's address, or that of the mirror which HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def hub_api() -> HfApi:
    """The hub's client; it takes its login from HF_TOKEN or from `hf auth login`."""
    return HfApi(endpoint=endpoint(), library_name="quintic", library_version=__version__)


@dataclass(frozen=True)
class HubRepo:
    """A dataset repository on the hub.

    Attributes:
        repo_id: OWNER/NAME.
        revision: a branch, tag or commit; None for the newest.
    """

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `hub:OWNER/NAME[@REVISION]`; raises `QuinticError` for anything else."""
        match = re.fullmatch(rf"{HUB_PREFIX}(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?", text, re.ASCII)
        if match is None:
            raise QuinticError(
                f"{text!r} names no repository: write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION"
            )
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return HUB_PREFIX + self.repo_id + (f"@{self.revision}" if self.revision else "")

    @property
    def page(self) -> str:
        """Address of the repository's page."""
        return f"{endpoint()}/datasets/{self.repo_id}"

    def file_url(self, path: str, commit: str) -> str:
        """Address of a file as it is in a commit, whatever is committed later."""
        return hf_hub_url(
            self.repo_id, path, repo_type="dataset", revision=commit, endpoint=endpoint()
        )


def hub_error(error: Exception, repo: HubRepo, doing: str) -> QuinticError:
    """What went wrong with a repository, and the way out, in one line.

    Args:
        error: what the client raised.
        repo: the repository.
        doing: what was not possible, as in "cannot be listed".
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return QuinticError(
            f"{repo} {doing}: HF_HUB_OFFLINE is set; unset it, or copy the files from a machine "
            "that has them"
        )
    if isinstance(error, GatedRepoError):
        return QuinticError(
            f"{repo} {doing}: it is gated; accept its conditions on {repo.page} and {_LOGIN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return QuinticError(
            f"{repo} {doing}: it has no revision {repo.revision!r}; {repo.page} lists them"
        )
    if isinstance(error, DisabledRepoError):
        return QuinticError(f"{repo} {doing}: the hub has disabled it; see {repo.page}")
    if isinstance(error, RepositoryNotFoundError):
        return QuinticError(
            f"{repo} {doing}: there is no such dataset repository on {endpoint()}, or you may not "
            f"see it (HTTP {status}); check the name; if it is private, {_LOGIN}"
        )
    if status in (401, 403):
        return QuinticError(
            f"{repo} {doing}: the hub denies permission (HTTP {status}); {_LOGIN}, with a token "
            "that may do this"
        )
    if isinstance(error, httpx2.TransportError):
        return QuinticError(
            f"{repo} {doing}: {endpoint()} cannot be reached ({one_line(error)}); check the "
            "network, and HF_ENDPOINT if it is set"
        )
    return QuinticError(f"{repo} {doing}: {one_line(error)}; see {repo.page}, or try again later")


def one_line(error: Exception) -> str:
    """An exception's name and the first line of its text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""A model's repository on the Hugging Face hub, in the cache of its client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.hub.cached import fetch_files
from quintic.data.hub.client import HubFile, HubRepo, Log, Transfer
from quintic.errors import QuinticError
from quintic.export.hf_folder import CONFIG_FILE, WEIGHTS_FILE
from quintic.imports.hf_folder import INDEX_FILE, read_object, shard_names


def fetch_model(
    repo: HubRepo, on_progress: Callable[[Transfer], None], log: Log
) -> tuple[Path, str]:
    """Download config, weights and tokenizer of a model, unless the cache has them; return their
    folder and the commit.

    Raises `QuinticError` where there is no such repository, no network, no safetensors in it, and
    where a file is not the one that the hub lists.
    """
    info = repo.info_or_cache(log)
    commit = info.sha or "main"
    files = {entry.rfilename: HubFile.of(entry) for entry in info.siblings or []}
    weights = next((name for name in (WEIGHTS_FILE, INDEX_FILE) if name in files), None)
    if CONFIG_FILE not in files or weights is None:
        missing = WEIGHTS_FILE if CONFIG_FILE in files else CONFIG_FILE
        raise QuinticError(
            f"{repo} has no {missing}: a model of transformers in safetensors has {CONFIG_FILE} "
            f"and {WEIGHTS_FILE}, and no pickle is executed; see {repo.page}"
        )
    wanted = [CONFIG_FILE, *[name for name in (TOKENIZER_FILE,) if name in files], weights]
    fetched = fetch_files(repo, commit, files, wanted, on_progress, log)
    if weights == INDEX_FILE:
        shards = shard_names(read_object(fetched[INDEX_FILE]))
        for name in shards:
            if name not in files:
                raise QuinticError(
                    f"{repo} has no {name}, which {INDEX_FILE} lists; see {repo.page}"
                )
        fetch_files(repo, commit, files, shards, on_progress, log)
    return fetched[CONFIG_FILE].parent, commit

"""Ready-made datasets: FineWeb as GPT-2 tokens, in shards of 100 million.

Source: the scripts `data/cached_*.py` of https://github.com/KellerJordan/modded-nanogpt, which name
the repositories, the shards and how many there are.
"""

from dataclasses import dataclass
from pathlib import Path

DATA_FOLDER = Path("data")
"""The folder that datasets are fetched to, and where the recipes look for them."""

SHARD_TOKENS = 100_000_000


@dataclass(frozen=True)
class CatalogEntry:
    """A dataset repository of the Hugging Face hub that somebody has tokenized already.

    There is one shard for validation besides the training shards.
    """

    repo_id: str
    train_shards: int


CATALOG = {
    "fineweb10B": CatalogEntry("kjj0/fineweb10B-gpt2", 103),
    "fineweb100B": CatalogEntry("kjj0/fineweb100B-gpt2", 1030),
    "finewebedu10B": CatalogEntry("kjj0/finewebedu10B-gpt2", 99),
}


def fetch_command(path: Path, tokens: int) -> str | None:
    """Return the command that fetches at least `tokens` training tokens into `path`; None where the
    folder's name is not that of a ready-made dataset."""
    found = CATALOG.get(path.name)
    if found is None:
        return None
    shards = min(found.train_shards, -(-tokens // SHARD_TOKENS))
    default = (DATA_FOLDER / path.name).absolute() == path.absolute()
    return f"quintic data fetch {path.name} --shards {shards}" + (
        "" if default else f" --out {path}"
    )

"""Ready-made datasets: FineWeb as GPT-2 tokens, in shards of 100 million.

Source: the scripts `data/cached_*.py` of https://github.com/KellerJordan/modded-nanogpt, which name
the repositories, the shards and how many there are.
"""

from dataclasses import dataclass
from pathlib import Path

DATA_FOLDER = Path("data")
"""Where datasets are fetched to, and where the recipes look for them."""

SHARD_TOKENS = 100_000_000


@dataclass(frozen=True)
class CatalogEntry:
    """A dataset that somebody has tokenized already.

    Attributes:
        repo_id: the dataset repository on the Hugging Face hub.
        train_shards: number of its training shards; there is one for validation besides.
        prefix: the shards are named PREFIX_val_000000.bin and PREFIX_train_000001.bin onwards.
    """

    repo_id: str
    train_shards: int
    prefix: str


CATALOG = {
    "fineweb10B": CatalogEntry("kjj0/fineweb10B-gpt2", 103, "fineweb"),
    "fineweb100B": CatalogEntry("kjj0/fineweb100B-gpt2", 1030, "fineweb"),
    "finewebedu10B": CatalogEntry("kjj0/finewebedu10B-gpt2", 99, "finewebedu"),
}


def fetch_command(path: Path, tokens: int) -> str | None:
    """The command that fetches at least `tokens` training tokens into `path`.

    None where the folder's name is not that of a ready-made dataset.
    """
    found = CATALOG.get(path.name)
    if found is None:
        return None
    shards = min(found.train_shards, -(-tokens // SHARD_TOKENS))
    default = (DATA_FOLDER / path.name).absolute() == path.absolute()
    return f"quintic data fetch {path.name} --shards {shards}" + (
        "" if default else f" --out {path}"
    )

"""The splits of a described dataset as a table, for the console and the page."""

from quintic.console import Table
from quintic.data.description import DatasetSummary


def splits_table(summary: DatasetSummary) -> Table:
    """Return a row for each split: counts, bytes per token, lengths of documents."""
    header = ["split", "shards", "tokens", "documents", "bytes per token", "document tokens"]
    rows = []
    for name, split in summary.splits.items():
        lengths = ", ".join(f"{p}%: {length:,}" for p, length in split.document_tokens.items())
        documents = "unknown" if split.documents is None else f"{split.documents:,}"
        ratio = "unknown" if split.bytes_per_token is None else f"{split.bytes_per_token:.3f}"
        counts = f"{split.shards:,}", f"{split.tokens:,}"
        rows.append([name, *counts, documents, ratio, lengths or "unknown"])
    return Table(header, rows)

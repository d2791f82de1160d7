"""An exported model onto the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quintic.data.hub.client import Transfer
from quintic.data.hub.upload import CARD_FILE, Pushed, repo_to_push, upload
from quintic.export.card import CARD_MARK


def check_push(target: str) -> None:
    """Raise `QuinticError` where a target is no repository's name."""
    repo_to_push(target, "model")


def push_model(
    folder: Path,
    target: str,
    message: str,
    *,
    on_progress: Callable[[Transfer], None] | None = None,
) -> Pushed:
    """Upload an exported folder in one commit to hub:OWNER/NAME, which is created if it is not
    there; a card of the owner's own stays.

    Raises `QuinticError` where the hub refuses.
    """
    return upload(
        repo_to_push(target, "model"),
        sorted(path for path in folder.iterdir() if path.name != CARD_FILE),
        (folder / CARD_FILE).read_text(encoding="utf-8"),
        mark=CARD_MARK,
        message=message,
        on_progress=on_progress,
    )

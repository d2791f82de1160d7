"""Early stopping: the end of a run at a validation before its last step.

The decision is a function of the run's validation losses so far and nothing else, and those are in
`metrics.jsonl`: a run that was killed and continued stops where one never killed does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from quintic.config import TrainConfig
from quintic.metrics_file import METRICS, STOPPED_EARLY, read_records


def why_stop(train: TrainConfig, losses: Sequence[float]) -> str | None:
    """Return in words why a run ends at the last of its validation losses, in nats per token; None
    where it goes on.

    A loss that is not finite is neither at the target nor an improvement.
    """
    known = [loss if math.isfinite(loss) else math.inf for loss in losses]
    target, patience = train.target_loss, train.patience
    if target is not None and known[-1] <= target:
        return f"the validation loss, {known[-1]:.4f}, is at train.target_loss {target:g} or below"
    waited = len(known) - 1 - known.index(min(known))
    if patience is not None and waited >= patience:
        return (
            f"in {waited} evaluations the validation loss has not come below {min(known):.4f}, and "
            f"train.patience is {patience}"
        )
    return None


def stopped_early(folder: Path, train: TrainConfig) -> tuple[int, str] | None:
    """Return at which step the run in a folder stopped early, and why in words; None where it did
    not, or where the rules of `train`, which may be others than its own were, let it go on."""
    if train.target_loss is None and train.patience is None:
        return None
    records = [record for record in read_records(folder / METRICS) if "val_loss" in record]
    if not records or STOPPED_EARLY not in records[-1]:
        return None
    why = why_stop(train, [record["val_loss"] for record in records])
    return (records[-1]["step"], why) if why else None

"""The time of a run of the track, defined in this one place.

It counts from the beginning of the training loop to the end of its last step: the first step with
all that it warms up and compiles, and the validation before the first step too, which is of one
sequence and so is nothing but warm-up. It leaves out what comes before the loop (imports, opening
the data), the saving of checkpoints and the validation at the end. Compiled code of another run is
out of reach (`execute`), so each run compiles its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quintic.errors import QuinticError


def training_seconds(records: Sequence[Mapping[str, Any]], steps: int) -> float:
    """Return the seconds of a run's `metrics.jsonl`, which validates before its first step and
    after its last.

    Raises `QuinticError` where the records are not those of one whole run.
    """
    validations = [record for record in records if "val_s" in record]
    trained = sum("train_loss" in record for record in records)
    if [v["step"] for v in validations] != [0, steps] or trained != steps:
        raise QuinticError(
            f"a run of {steps} steps has the losses of {trained} and validations at "
            f"{[v['step'] for v in validations]}: its time is not known"
        )
    first, last = validations
    return float(first["val_s"] + last["elapsed_s"])

"""Where this is imported, runs put one white pixel where they would draw their figure, of which
there is one a validation: drawing costs more than a tiny run's training.

Figures are drawn in `test_metrics.py`, also by a run, and by commands that are not forked.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

import quintic.train
from quintic.files import replacing
from quintic.metrics_file import MetricsRecord

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


def put_pixel(records: Sequence[MetricsRecord], path: Path, title: str) -> None:
    """Stand in for `quintic.figure.draw_loss`."""
    with replacing(path) as file:
        file.write(PIXEL)


vars(quintic.train)["draw_loss"] = put_pixel

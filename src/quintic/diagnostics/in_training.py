"""Diagnostics in the loop: what is measured around a step, and written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

from quintic.data.loader import Batch
from quintic.diagnostics.activations import LayerFacts, observe_layers, sample_rows
from quintic.diagnostics.matrices import MatrixWatch
from quintic.diagnostics.record import DIAGNOSTICS, to_line
from quintic.distributed.world import local_rows
from quintic.metrics_file import truncate_metrics
from quintic.run import Run


class Diagnostics:
    """Measures every `train.diagnostics_every`-th step, on every process; rank 0 writes.

    Records of steps that a resumed run does again are dropped, also where it measures none.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._every = run, run.config.train.diagnostics_every
        self._file: TextIO | None = None
        if run.world.is_main:
            path = run.folder / DIAGNOSTICS
            truncate_metrics(path, run.state.step)
            self._file = path.open("a") if self._every else None
        like = local_rows(next(run.state.model.parameters()))
        self._matrices = MatrixWatch(
            run.stepper.optimizers, run.specs, run.config.optim, run.world, like
        )
        self._layers: list[LayerFacts] = []
        self._seconds = 0.0

    def due(self, step: int) -> bool:
        """Return whether a step is measured."""
        return self._every is not None and step % self._every == 0

    def begin(self, step: int, batch: Batch) -> None:
        """Look at what flows through the model in this process's batch of a step, whose schedule
        is set, and prepare to look at its update."""
        began, run = time.perf_counter(), self._run
        if run.weight_cache is not None:
            run.weight_cache.renew()
        sequences, context = run.config.batches.at(step), run.config.model.context
        rows = sample_rows(run.rows(step), sequences, context, run.world.size)
        self._layers = observe_layers(run.state.model, batch, rows, run.device, run.world)
        self._matrices.begin()
        self._seconds = time.perf_counter() - began

    def end(self, step: int, on_progress: Callable[[], None]) -> None:
        """Measure what the step did, and write its record; `on_progress` is called again and
        again."""
        began = time.perf_counter()
        matrices = self._matrices.measure(on_progress)
        if self._file is None:
            return
        record = {
            "step": step,
            "tokens": self._run.config.tokens_before(step),
            "band": self._matrices.band,
            "matrices": matrices,
            "layers": self._layers,
            "seconds": round(self._seconds + time.perf_counter() - began, 3),
        }
        self._file.write(to_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

"""The metrics of a run, as they are measured and written into `metrics.jsonl`.

A record with `train_loss` or `val_loss` at `step` speaks of the weights after `step` updates, that
is after `tokens` tokens. A step's loss is read when the next step has been dispatched, so that
nothing waits for the device. By then the device may have been done with it for any part of a step,
so on a GPU the time of a step is the device's own, from the end of the step before to its end.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quintic.device import DeviceTimer, LateScalar, Moment
from quintic.metrics_file import (
    METRICS,
    STOPPED_EARLY,
    MetricsFile,
    MetricsRecord,
    truncate_metrics,
)

Value = float | Tensor | DeviceTimer
"""Values that may be logged of a step; all but numbers are read once the device is done with it."""


class NonFiniteLossError(Exception):
    """Training has diverged: the loss of a step is infinite or not a number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss is {loss} at step {step}")


@dataclass(frozen=True)
class _UnreadStep:
    """A step whose loss may still be computed on the device."""

    step: int
    loss: LateScalar
    end: Moment
    values: dict[str, float | LateScalar | DeviceTimer]


class Metrics:
    """Writes the records of a run; `on_record` gets each one, for the console.

    Every `log_every`-th loss of a step is written, and one that is not finite.
    `tokens_before` says how many tokens a run trains on before a step.
    Without a folder nothing is written: of several processes one writes, and all notice where
    training has diverged.

    `train`, `flush` and `validation` raise `NonFiniteLossError` once such a loss has been written.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        step: int,
        elapsed_s: float,
        tokens_before: Callable[[int], int],
        flops_per_token: float,
        peak_flops: float | None,
        device: torch.device,
        log_every: int = 1,
        on_record: Callable[[MetricsRecord], None],
    ) -> None:
        self.elapsed_s = elapsed_s
        self.tokens_before = tokens_before
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.device, self.on_record = device, on_record
        self.log_every = log_every
        self.val_losses: list[float] = []
        """All of the run so far, where they are written."""
        self._file: MetricsFile | None = None
        if folder is not None:
            kept = truncate_metrics(folder / METRICS, step)
            self.val_losses = [record["val_loss"] for record in kept if "val_loss" in record]
            self._file = MetricsFile(folder / METRICS)
        self._unread: _UnreadStep | None = None
        self.restart_clock()

    def train(self, step: int, loss: Tensor, **values: Value) -> None:
        """Note the loss of a step, still on its device, and write the one before.

        On a CPU the step is already done, so its own loss is written.
        """
        late = {n: LateScalar(v) if isinstance(v, Tensor) else v for n, v in values.items()}
        unread = _UnreadStep(step, LateScalar(loss), Moment(self.device), late)
        self._write_unread()
        self._unread = unread
        if self.device.type == "cpu":
            self._write_unread()

    def flush(self) -> None:
        """Write the loss that is still unread and put the file on disk."""
        self._write_unread()
        if self._file is not None:
            self._file.sync()

    def validation(
        self, step: int, val_loss: float, seconds: float, *, stopped_early: str | None = None
    ) -> None:
        """Write a validation loss, with the seconds of training before it, and why the run ends
        with it where it does so early; restart the clock."""
        self.val_losses.append(val_loss)
        record: MetricsRecord = {
            "step": step,
            "tokens": self.tokens_before(step),
            "val_loss": val_loss,
            "val_s": round(seconds, 3),
            "elapsed_s": round(self.elapsed_s, 3),
        }
        if stopped_early is not None:
            record[STOPPED_EARLY] = stopped_early
        self._write(record)
        if not math.isfinite(val_loss):
            raise NonFiniteLossError(step, val_loss)
        self.restart_clock()

    def scores(self, step: int, found: Mapping[str, Mapping[str, float]], seconds: float) -> None:
        """Write scores on tasks, by task and name (quintic.tasks.curves), with the seconds they
        took; restart the clock."""
        record: MetricsRecord = {"step": step, "tokens": self.tokens_before(step)}
        for task, metrics in found.items():
            record |= {f"{task}/{name}": value for name, value in metrics.items()}
        record |= {"tasks_s": round(seconds, 3), "elapsed_s": round(self.elapsed_s, 3)}
        self._write(record)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin the next step now: what came before, such as a checkpoint, is not its time."""
        self._began = Moment(self.device)

    def _write_unread(self) -> None:
        unread, self._unread = self._unread, None
        if unread is None:
            return
        loss = unread.loss.item()  # waits for that step, while the next one is already running
        # Other devices than GPUs give no time of their own: there the loss is their sign.
        end = unread.end if self.device.type == "cuda" else Moment(self.device)
        seconds, self._began = end.seconds_since(self._began), end
        self.elapsed_s += seconds
        finite = math.isfinite(loss)
        if finite and unread.step % self.log_every:
            return
        step = unread.step
        tokens = self.tokens_before(step)
        tokens_per_s = (self.tokens_before(step + 1) - tokens) / seconds
        record: MetricsRecord = {
            "step": step,
            "tokens": tokens,
            "train_loss": loss,
            "step_ms": round(1000 * seconds, 3),
            "tokens_per_s": round(tokens_per_s, 1),
            "elapsed_s": round(self.elapsed_s, 3),
        }
        for name, value in unread.values.items():
            record[name] = value if isinstance(value, int | float) else value.item()
        if self.peak_flops is not None:
            record["mfu"] = round(tokens_per_s * self.flops_per_token / self.peak_flops, 4)
        if (peak := peak_memory_bytes(self.device)) is not None:
            record["memory_gib"] = round(peak / 2**30, 3)
        self._write(record)
        if not finite:
            raise NonFiniteLossError(step, loss)

    def _write(self, record: MetricsRecord) -> None:
        if self._file is None:
            return
        self._file.append(record)
        self.on_record(record)

    def close(self) -> None:
        """Close the file; a loss that was never flushed is dropped, and measured on a resume."""
        if self._file is not None:
            self._file.close()


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory in use so far: PyTorch's on a CUDA device; on a CPU what was resident
    of the whole process, the interpreter and its libraries included. None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB

"""Batches on their way to a GPU while the one before is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch

from quintic.data.loader import Batch


class Uploading(NamedTuple):
    """A batch on the device, complete once the event has happened."""

    batch: Batch
    done: torch.cuda.Event


class Uploader:
    """Copies batches to a CUDA device on a stream of its own, beside the computation.

    `begin` is called by the thread that prepares batches, `ready` by the one that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def begin(self, batch: Batch) -> Uploading:
        """Start the copy of a batch that lies in page-locked memory."""
        inputs_BT, targets_BT = batch
        with torch.cuda.stream(self._stream):
            copies = (
                inputs_BT.to(self._device, non_blocking=True),
                targets_BT.to(self._device, non_blocking=True),
            )
            return Uploading(copies, self._stream.record_event())

    def ready(self, uploading: Uploading) -> Batch:
        """The batch on the device: later work on the device waits for it, the host does not."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(uploading.done)
        for tensor in uploading.batch:
            tensor.record_stream(stream)  # else its memory could be reused while it is read
        return uploading.batch

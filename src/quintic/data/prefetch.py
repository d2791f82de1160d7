"""The next batch is prepared, and copied to the GPU, while this one is computed."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch

from quintic.data.loader import Batch


class Uploader:
    """Copies batches to a CUDA device on a stream of its own, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def __call__(self, batch: Batch) -> Callable[[], Batch]:
        """Start to copy a batch in page-locked memory; the result returns it on the device.

        Later work on the device waits for the copy, the host does not.
        """
        inputs_BT, targets_BT = batch
        with torch.cuda.stream(self._stream):
            copies = (
                inputs_BT.to(self._device, non_blocking=True),
                targets_BT.to(self._device, non_blocking=True),
            )
            done = self._stream.record_event()

        def uploaded() -> Batch:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(done)
            for tensor in copies:
                tensor.record_stream(stream)  # else its memory could be reused while it is read
            return copies

        return uploaded


class Prefetcher(AbstractContextManager["Prefetcher"]):
    """Prepares the batch of the next step in a background thread while this one is trained on.

    `batch` gives the batch of a step and is called from one thread, once for each step in
    range(first_step, last_step). `pin` puts batches into page-locked memory, which needs CUDA and
    lets a copy to the GPU be asynchronous. `upload` starts that copy in the background thread and
    needs `pin`; what it returns is called by the thread that asks for the batch, see `Uploader`.

    `wait_s` is how many seconds `get` has waited in all; near 0 where data keeps up with training.
    """

    def __init__(
        self,
        batch: Callable[[int], Batch],
        first_step: int,
        last_step: int,
        pin: bool = False,
        upload: Callable[[Batch], Callable[[], Batch]] | None = None,
    ) -> None:
        self.wait_s = 0.0
        self._batch, self._pin, self._upload = batch, pin, upload
        self._last_step = last_step
        self._next_step = first_step
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next = self._submit(first_step)

    def get(self, step: int) -> Batch:
        """Return the batch of the next step; steps come in order, each once.

        Raises whatever preparing the batch raised.
        """
        assert self._next is not None and step == self._next_step, f"step {step} is out of turn"
        began = time.perf_counter()
        ready = self._next.result()
        self.wait_s += time.perf_counter() - began
        self._next_step += 1
        self._next = self._submit(self._next_step)
        return ready()

    def __exit__(self, *exception: object) -> None:
        """Stop the thread; a batch in preparation is finished and dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, step: int) -> Future[Callable[[], Batch]] | None:
        return self._executor.submit(self._prepare, step) if step < self._last_step else None

    def _prepare(self, step: int) -> Callable[[], Batch]:
        inputs_BT, targets_BT = self._batch(step)
        if self._pin:
            inputs_BT, targets_BT = inputs_BT.pin_memory(), targets_BT.pin_memory()
        batch = inputs_BT, targets_BT
        return self._upload(batch) if self._upload is not None else lambda: batch

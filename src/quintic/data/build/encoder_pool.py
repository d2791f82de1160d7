"""Encoders in this process and in others: one task at a time, in any of them.

tiktoken's own threads scale worse than processes, and a BPE of tokenizers no better; nor does a
thread encode while another reads, since they would wait for the interpreter by turns (docs/log.md
has what was measured). The others are spawned, not forked: the parent has threads. They never
import torch.
"""

import atexit
import gc
import mmap
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from quintic.data.build.chunks import CHUNK_BYTES, Chunk
from quintic.data.build.encode import EncodedChunks, EncodedSplit, Encoder
from quintic.data.build.settings import BuildSettings
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.tokenizer import Tokenizer

# So many tasks lie ready for each of the other processes, which must not wait while this one is at
# a task of its own.
TASKS_UNDER_WAY = 4

# Holds the text of a task, CHUNK_BYTES and less than a block that was unpacked, and then its
# tokens. What has no room is pickled.
_SLOT_BYTES = 2 * CHUNK_BYTES


class EncoderPool(AbstractContextManager["EncoderPool"]):
    """Encoders of this process and of `workers` - 1 others, which begin to start at once.

    The others come first: this one encodes only what they have no room for. `use` is called before
    `encode`.
    """

    def __init__(self, workers: int) -> None:
        self._others = workers - 1
        self._there: list[Future[EncodedChunks]] = []
        self._memory: _SharedMemory | None = None
        self._slots: deque[int] = deque()
        if not self._others:
            return
        if hasattr(os, "memfd_create"):
            with suppress(OSError):  # a sandbox may refuse it
                count = TASKS_UNDER_WAY * self._others
                self._memory = _SharedMemory(count, _SLOT_BYTES)
                self._slots.extend(range(count))
        self._pool = ProcessPoolExecutor(
            self._others,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_process,
            initargs=(self._memory,),
        )
        try:
            with _interrupts_held():
                for _ in range(self._others):
                    self._pool.submit(os.getpid)  # a process starts when there is something to do
        except BaseException:  # such as a Ctrl-C that came meanwhile
            self.__exit__()
            raise

    def use(self, settings: BuildSettings, tokenizer: Tokenizer, use_fast: bool) -> None:
        """Encode from now on as an `Encoder` of these does; the settings name the tokenizer."""
        self._how = settings, use_fast
        self._encoder = Encoder(settings, tokenizer, use_fast)

    def encode(self, chunks: Sequence[Chunk]) -> Future[EncodedChunks]:
        """Do what `Encoder.encode` does, in one of the processes; in this one before it returns."""
        self._there = [future for future in self._there if not future.done()]
        encoded: Future[EncodedChunks] = Future()
        if len(self._there) >= TASKS_UNDER_WAY * self._others:
            encoded.set_result(self._encoder.encode(chunks))
            return encoded
        slot = None
        sizes = [len(chunk.content) for chunk in chunks if isinstance(chunk.content, bytes)]
        if self._slots and len(sizes) == len(chunks):
            assert self._memory is not None
            if self._memory.write(self._slots[0], [chunk.content for chunk in chunks]):
                slot = self._slots.popleft()
                chunks = [chunk._replace(content=b"") for chunk in chunks]
        with _interrupts_held():  # it may start a process
            task = self._pool.submit(_encode, *self._how, chunks, slot, sizes)
        task.add_done_callback(partial(self._receive, encoded, slot))
        self._there.append(encoded)
        return encoded

    def _receive(
        self,
        encoded: Future[EncodedChunks],
        slot: int | None,
        task: Future[tuple[EncodedChunks, bool]],
    ) -> None:
        """Take what came of a task, in a thread of the pool."""
        if task.cancelled():
            return
        if error := task.exception():
            encoded.set_exception(error)
            return
        found, in_slot = task.result()
        if slot is not None:
            assert self._memory is not None
            if in_slot:
                found = _with_tokens(found, self._memory, slot)
            self._slots.append(slot)
        encoded.set_result(found)

    def end(self) -> None:
        """Let the other processes end, since nothing more will be asked of them."""
        if self._others:
            self._pool.shutdown(wait=False)

    def __exit__(self, *exception: object) -> None:
        if self._others:
            # Left before they have ended, by a second Ctrl-C, the exit would wait for them forever.
            with _interrupts_held():
                self._pool.shutdown(wait=True, cancel_futures=True)
        if self._memory:
            self._memory.close()


class _SharedMemory:
    """Slots of memory that this process shares with those which are given it when they start.

    Of Linux alone, where it counts as any other memory does: /dev/shm, which other ways use, may
    have less room than a build needs.
    """

    def __init__(self, slots: int, slot_bytes: int, descriptor: int | None = None) -> None:
        size = slots * slot_bytes
        if descriptor is None:
            descriptor = os.memfd_create("quintic")
            os.ftruncate(descriptor, size)
        self._slots, self._slot_bytes, self._descriptor = slots, slot_bytes, descriptor
        self._bytes = memoryview(mmap.mmap(descriptor, size))

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # Windows has none

        return _shared_memory, (self._slots, self._slot_bytes, DupFd(self._descriptor))

    def write(self, slot: int, buffers: Sequence[Any]) -> bool:
        """Put buffers into a slot, one behind another, and return whether there is room."""
        parts = [memoryview(buffer) for buffer in buffers]
        if sum(part.nbytes for part in parts) > self._slot_bytes:
            return False
        end = slot * self._slot_bytes
        for part in parts:
            begin, end = end, end + part.nbytes
            self._bytes[begin:end] = part.cast("B")
        return True

    def read(self, slot: int, sizes: Sequence[int]) -> list[bytes]:
        """Return copies of what has these sizes."""
        ends = accumulate(sizes, initial=slot * self._slot_bytes)
        return [bytes(self._bytes[begin:end]) for begin, end in pairwise(ends)]

    def close(self) -> None:
        """Share it with no more processes; it is freed with the last of them."""
        os.close(self._descriptor)


def _shared_memory(slots: int, slot_bytes: int, descriptor: Any) -> _SharedMemory:
    memory = _SharedMemory(slots, slot_bytes, descriptor.detach())
    memory.close()
    return memory


def _with_tokens(encoded: EncodedChunks, memory: _SharedMemory, slot: int) -> EncodedChunks:
    """Return what a task found, with the tokens that it left in its slot."""
    splits = encoded.splits.items()
    sizes = [int(split.lengths.sum()) * split.tokens.itemsize for _, split in splits]
    parts = zip(splits, memory.read(slot, sizes), strict=True)
    return encoded._replace(
        splits={
            name: EncodedSplit(np.frombuffer(content, split.tokens.dtype), split.lengths)
            for (name, split), content in parts
        }
    )


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C in the block come at its end; processes that begin in it never get one before
    they ignore it. Windows has no such mask."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_memory: _SharedMemory | None = None  # of this process, where it is one of several


def _start_process(memory: _SharedMemory | None) -> None:
    global _memory
    # The parent alone answers Ctrl-C, which reaches every process of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The processes are the parallelism; threads of tokenizers in each would only get in their way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    atexit.register(gc.freeze)  # as the command does: nothing is looked through at the end
    _memory = memory


def _end_with_parent() -> None:
    """End with a parent that was killed and cannot tell its processes, which would wait on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@lru_cache(maxsize=1)
def _encoder(settings: BuildSettings, use_fast: bool) -> Encoder:
    return Encoder(settings, load_tokenizer(settings.tokenizer), use_fast)


def _encode(
    settings: BuildSettings,
    use_fast: bool,
    chunks: Sequence[Chunk],
    slot: int | None,
    sizes: Sequence[int],
) -> tuple[EncodedChunks, bool]:
    """Encode chunks, whose content lies in a slot if one is named, and return whether the tokens
    lie there now."""
    if slot is None:
        return _encoder(settings, use_fast).encode(chunks), False
    assert _memory is not None
    contents = zip(chunks, _memory.read(slot, sizes), strict=True)
    encoded = _encoder(settings, use_fast).encode(
        [chunk._replace(content=content) for chunk, content in contents]
    )
    if not _memory.write(slot, [split.tokens for split in encoded.splits.values()]):
        return encoded, False
    splits = {
        name: EncodedSplit(split.tokens[:0], split.lengths)
        for name, split in encoded.splits.items()
    }
    return encoded._replace(splits=splits), True

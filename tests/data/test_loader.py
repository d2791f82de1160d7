import threading
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from quintic.config import BatchSizes
from quintic.data.loader import Loader, validation_batches
from quintic.data.prefetch import Prefetcher
from quintic.data.shards import TokenStream
from quintic.errors import QuinticError
from tests.waiting import LAST_BOUND_S, wait_until

MakeStream = Callable[..., TokenStream]
Order = Literal["stream", "shuffle"]

AWKWARD = (7, 1, 64, 13, 2, 29)  # 116 tokens; no shard's end falls on a sample's


def make_loader(
    stream: TokenStream,
    order: Order = "stream",
    *,
    context: int = 5,
    batch_sequences: int = 6,
    stages: int = 1,
    steps: int = 1,
    seed: int = 0,
) -> Loader:
    batches = BatchSizes(batch_sequences, stages, steps)
    return Loader(stream, order=order, context=context, batches=batches, seed=seed)


@pytest.mark.parametrize("order", ["stream", "shuffle"])
def test_batches_have_their_shape_and_targets_are_one_token_later(
    make_stream: MakeStream, order: Order
) -> None:
    loader = make_loader(make_stream(*AWKWARD), order)
    for step in range(20):
        inputs, targets = loader.batch(step)
        assert inputs.shape == targets.shape == (6, 5)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, (inputs + 1) % 116)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("order", ["stream", "shuffle"])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_global_batch_does_not_depend_on_processes_and_micro_batch(
    make_stream: MakeStream, order: Order, world: int, micro: int
) -> None:
    """Every process with a loader of its own, in any order of steps."""
    stream = make_stream(*AWKWARD)
    whole = make_loader(stream, order, batch_sequences=10)
    for step in (7, 0, 1, 3, 1):
        parts: list[tuple[Tensor, Tensor]] = []
        for rank in range(world):
            loader = make_loader(stream, order, batch_sequences=10)
            mine = range(rank * 10 // world, (rank + 1) * 10 // world)
            parts += [
                loader.batch(step, slice(first, min(first + micro, mine.stop)))
                for first in range(mine.start, mine.stop, micro)
            ]
        inputs, targets = whole.batch(step)
        assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)


@pytest.mark.parametrize("order", ["stream", "shuffle"])
def test_rows_can_be_a_range_with_a_stride_or_none_at_all(
    make_stream: MakeStream, order: Order
) -> None:
    loader = make_loader(make_stream(*AWKWARD), order)
    inputs, targets = loader.batch(2)
    strided = loader.batch(2, range(1, 6, 2))
    assert torch.equal(strided[0], inputs[1::2])
    assert torch.equal(strided[1], targets[1::2])
    assert loader.batch(2, slice(4, None))[0].tolist() == inputs[4:].tolist()
    assert loader.batch(2, range(3, 3))[0].shape == (0, 5)


def test_stream_order_skips_nothing_and_repeats_nothing(make_stream: MakeStream) -> None:
    """Over shard ends and the end of the stream: the inputs are the stream, and again."""
    loader = make_loader(make_stream(*AWKWARD))
    inputs = torch.cat([loader.batch(step)[0].flatten() for step in range(20)])
    assert inputs.tolist() == [index % 116 for index in range(20 * 30)]


def test_shuffled_order_takes_every_window_once_in_an_epoch(make_stream: MakeStream) -> None:
    loader = make_loader(make_stream(*AWKWARD), "shuffle", batch_sequences=23)
    epochs = [loader.batch(epoch)[0] for epoch in range(6)]  # 116 // 5 = 23 samples
    for inputs in epochs:
        assert len(inputs.unique()) == 23 * 5
    # The token that is left out, and with it the cuts, is another in most epochs.
    left_out = {(set(range(116)) - set(inputs.flatten().tolist())).pop() for inputs in epochs}
    assert len(left_out) > 3


def test_shuffled_order_spans_epochs_within_a_batch(make_stream: MakeStream) -> None:
    stream = make_stream(*AWKWARD)
    by_six = make_loader(stream, "shuffle")
    by_one = make_loader(stream, "shuffle", batch_sequences=1)
    samples = [by_one.batch(step)[0] for step in range(48)]
    assert torch.equal(torch.cat(samples), torch.cat([by_six.batch(step)[0] for step in range(8)]))


def test_seed_and_epoch_choose_the_shuffled_order(make_stream: MakeStream) -> None:
    stream = make_stream(*AWKWARD)

    def order(seed: int, epoch: int) -> list[int]:
        inputs, _ = make_loader(stream, "shuffle", batch_sequences=23, seed=seed).batch(epoch)
        return [int(token) for token in inputs[:, 0]]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    # The order is part of what a seed means: a change here breaks the resumption of old runs.
    assert order(0, 0)[:6] == [17, 103, 47, 77, 2, 113]


@pytest.mark.parametrize("order", ["stream", "shuffle"])
def test_a_batch_that_grows_takes_the_same_samples_in_the_same_order(
    make_stream: MakeStream, order: Order
) -> None:
    stream = make_stream(*AWKWARD)
    by_one = make_loader(stream, order, batch_sequences=1)
    growing = make_loader(stream, order, batch_sequences=9, stages=3, steps=7)
    sizes = [3, 3, 3, 6, 6, 9, 9, 9]  # the last is what would come after the run
    sample = 0
    for step, size in enumerate(sizes):
        inputs, targets = growing.batch(step)
        assert len(inputs) == size
        for row in range(size):
            expected = by_one.batch(sample)
            assert torch.equal(inputs[row], expected[0][0])
            assert torch.equal(targets[row], expected[1][0])
            sample += 1
        some = growing.batch(step, slice(1, 3))
        assert torch.equal(some[0], inputs[1:3])


def test_seed_is_without_effect_in_stream_order(make_stream: MakeStream) -> None:
    stream = make_stream(*AWKWARD)
    one, other = make_loader(stream, seed=1), make_loader(stream, seed=2)
    assert torch.equal(one.batch(3)[0], other.batch(3)[0])


def test_too_few_tokens_for_a_batch(make_stream: MakeStream) -> None:
    stream = make_stream(20, 10)
    with pytest.raises(QuinticError, match=r"30 training tokens.* 31 \(6 sequences of 5"):
        make_loader(stream)
    make_loader(stream, batch_sequences=5)


@pytest.mark.parametrize("batch_sequences", [1, 2, 3, 7, 100])
def test_validation_is_the_same_tokens_for_every_batch(
    make_stream: MakeStream, batch_sequences: int
) -> None:

    batches = list(validation_batches(make_stream(*AWKWARD), 5, 35, batch_sequences))
    assert torch.cat([inputs.flatten() for inputs, _ in batches]).tolist() == list(range(35))
    assert torch.cat([targets.flatten() for _, targets in batches]).tolist() == list(range(1, 36))
    assert all(len(inputs) == batch_sequences for inputs, _ in batches[:-1])
    assert all(inputs.shape[1] == 5 for inputs, _ in batches)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (33, "33 tokens.* sequences of 5: use a multiple of the context, such as 30"),
        (0, "0 tokens.* such as 5"),
        (120, "120 tokens needs 121 .*has 116 tokens for it: use at most 115"),
    ],
)
def test_validation_that_cannot_be(make_stream: MakeStream, tokens: int, message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        validation_batches(make_stream(*AWKWARD), 5, tokens, 4)


def test_validation_on_all_but_the_last_token(make_stream: MakeStream) -> None:
    assert len(list(validation_batches(make_stream(*AWKWARD), 5, 115, 1))) == 23
    with pytest.raises(QuinticError, match="make the context smaller"):
        validation_batches(make_stream(5), 5, 5, 1)


def step_batch(step: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([step]), torch.tensor([step + 1])


def test_prefetcher_gives_the_batches_in_order() -> None:
    with Prefetcher(step_batch, 3, 8) as prefetcher:
        assert [int(prefetcher.get(step)[0]) for step in range(3, 8)] == list(range(3, 8))


def test_prefetcher_prepares_one_step_ahead_in_another_thread() -> None:
    seen: list[tuple[int, int]] = []
    ready = threading.Event()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        seen.append((step, threading.get_ident()))
        if step == 1:
            ready.set()
        return step_batch(step)

    with Prefetcher(batch, 0, 10) as prefetcher:
        prefetcher.get(0)
        assert ready.wait(LAST_BOUND_S)
    assert [step for step, _ in seen] == [0, 1]
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_prefetcher_never_prepares_past_the_last_step() -> None:
    seen = []

    def batch(step: int) -> tuple[Tensor, Tensor]:
        seen.append(step)
        return step_batch(step)

    with Prefetcher(batch, 0, 2) as prefetcher:
        prefetcher.get(0)
        prefetcher.get(1)
    assert seen == [0, 1]
    with Prefetcher(batch, 5, 5):
        pass
    assert seen == [0, 1]


def test_prefetcher_hands_exceptions_to_the_caller() -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        if step == 1:
            raise OSError("the disk is gone")
        return step_batch(step)

    with Prefetcher(batch, 0, 3) as prefetcher:
        prefetcher.get(0)
        with pytest.raises(OSError, match="the disk is gone"):
            prefetcher.get(1)


def test_prefetcher_measures_what_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on only while a batch is prepared."""
    now, asked = [0.0], threading.Event()

    def clock() -> float:
        asked.set()
        return now[0]

    def slow(step: int) -> tuple[Tensor, Tensor]:
        if step == 0:
            assert asked.wait(LAST_BOUND_S)
        now[0] += 1.0
        return step_batch(step)

    monkeypatch.setattr("quintic.data.prefetch.time.perf_counter", clock)
    with Prefetcher(slow, 0, 2) as prefetcher:
        prefetcher.get(0)
        assert prefetcher.wait_s == 1.0
        wait_until(lambda: now[0] == 2.0, "batch 1")
        prefetcher.get(1)
        assert prefetcher.wait_s == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_prefetcher_pins() -> None:
    with Prefetcher(step_batch, 0, 1, pin=True) as prefetcher:
        assert all(tensor.is_pinned() for tensor in prefetcher.get(0))


def test_a_batch_in_stream_order_is_one_read(
    make_stream: MakeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    read = TokenStream.read

    def counted(stream: TokenStream, start: int, count: int) -> npt.NDArray[np.int64]:
        calls.append((start, count))
        return read(stream, start, count)

    monkeypatch.setattr(TokenStream, "read", counted)
    make_loader(make_stream(*AWKWARD)).batch(2)
    assert calls == [(60, 31)]

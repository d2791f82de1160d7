"""Work side by side: every piece on one thread, and PyTorch's number of threads as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintic.optim.muon import Muon
from quintic.optim.side_by_side import side_by_side


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_task_has_one_thread_and_afterwards_all_is_as_before(three_threads: None) -> None:
    seen: list[int] = []
    side_by_side([lambda: seen.append(torch.get_num_threads())] * 5)
    assert seen == [1] * 5
    later = Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (torch.get_num_threads(), seen[-1]) == (3, 3)


def test_a_thread_that_begins_meanwhile_has_as_many_as_before(three_threads: None) -> None:
    seen: list[int] = []

    def task() -> None:
        other = Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()

    # The first tasks may be quicker than the thread that started them.
    side_by_side([*[lambda: time.sleep(0.2)] * 3, *[task] * 4])
    assert seen == [3] * 4


def test_an_error_is_raised_and_threads_are_set_back(three_threads: None) -> None:
    def fail() -> None:
        raise KeyError("task")

    with pytest.raises(KeyError, match="task"):
        side_by_side([fail] * 4)
    assert torch.get_num_threads() == 3


def stepped(**options: Any) -> list[Tensor]:
    """Weights of large matrices, of all orientations, after two steps."""
    random = torch.Generator().manual_seed(0)
    shapes = [(256, 256), (256, 600), (600, 256), (2, 256, 300), (8, 4)]
    parameters = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    muon = Muon(parameters, lr=0.1, weight_decay=0.1, **options)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=random)
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        muon.step()
        for p, gradient in zip(parameters, gradients, strict=True):
            assert p.grad is not None and torch.equal(p.grad, gradient)
    return [p.detach() for p in parameters]


@pytest.mark.parametrize(
    "options",
    [{}, {"ns_dtype": torch.bfloat16}, {"momentum_dtype": torch.float64}, {"normuon": True}],
    ids=str,
)
def test_muon_is_the_same_side_by_side_as_one_after_the_other(
    options: dict[str, Any], three_threads: None
) -> None:
    together = stepped(**options)
    torch.set_num_threads(1)
    alone = stepped(**options)
    assert all(map(torch.equal, together, alone))

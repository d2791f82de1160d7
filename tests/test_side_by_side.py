"""Micro-batches side by side: the gradient of one after another, whatever the threads."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintic.config import Config
from quintic.console import Console
from quintic.device import auto_micro_batch
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, read_records
from quintic.resuming import resume
from quintic.run import Run
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS, read_config
from quintic.run_lines import opening_lines
from quintic.setup import set_up, start
from quintic.train import apply_schedule, evaluate_run, forward_backward, train_run
from tests.conftest import tiny_config

SIDE = {"train.side_by_side": True, "train.device": "cpu"}


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(data: Path, changes: dict[str, Any]) -> Config:
    return tiny_config(data, {**SIDE, "train.micro_batch": 1, **changes})


def trained(run: Run) -> list[Tensor]:
    """The losses of three steps, and the weights after them."""
    losses = []
    for step in range(3):
        run.state.step = step
        apply_schedule(run, step)
        losses.append(forward_backward(run, run.loader.batch(step)))
        run.stepper.step(None)
    return [*losses, *(p.detach() for p in run.state.model.parameters())]


def test_validation_is_side_by_side_too_and_threads_change_no_bit(tiny_data: Path) -> None:
    found, names = [], set[str]()
    for threads, side_by_side in ((1, True), (3, True), (1, False)):
        torch.set_num_threads(threads)
        changes = {"train.side_by_side": side_by_side, "train.eval_tokens": 8 * 16}
        run = set_up(config(tiny_data, {**changes, "model.context": 16}), Path(), Console())
        loss = run.loss

        def watched(*given: Tensor, loss: Any = loss, **options: Any) -> Tensor:
            names.add(threading.current_thread().name)
            assert not torch.is_grad_enabled()
            losses: Tensor = loss(*given, **options)
            return losses

        run.loss = watched
        found.append(evaluate_run(run))
    assert names == {"MainThread", "side by side"}
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_threads_change_no_bit(kernels: str, tiny_data: Path) -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run = set_up(config(tiny_data, {"train.cpu_kernels": kernels}), Path("unused"), Console())
        assert run.micro_batches(0) == 8
        found.append(trained(run))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_they_give_the_gradient_of_one_after_another(tiny_data: Path) -> None:
    torch.set_num_threads(2)
    exact = {"train.precision": "float64"}
    one, other = (
        trained(set_up(config(tiny_data, {**exact, **changes}), Path("unused"), Console()))
        for changes in ({}, {"train.side_by_side": False})
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_each_is_computed_by_one_of_as_many_threads(tiny_data: Path) -> None:
    torch.set_num_threads(2)
    run = set_up(config(tiny_data, {}), Path("unused"), Console())
    loss, seen = run.loss, set[tuple[threading.Thread, int]]()
    both = threading.Barrier(2)  # neither thread can do the first two alone

    def watched(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if len(seen) < 2:
            seen.add((threading.current_thread(), torch.get_num_threads()))
            both.wait(timeout=60)
        return loss(inputs_BT, targets_BT)

    run.loss = watched
    forward_backward(run, run.loader.batch(0))
    assert len({thread for thread, _ in seen}) == 2 and {count for _, count in seen} == {1}
    assert torch.get_num_threads() == 2


def test_what_one_raises_is_raised(tiny_data: Path) -> None:
    torch.set_num_threads(2)
    run = set_up(config(tiny_data, {}), Path("unused"), Console())

    def failing(*_: Tensor) -> Tensor:
        raise QuinticError("no")

    run.loss = failing
    with pytest.raises(QuinticError, match="no"):
        forward_backward(run, run.loader.batch(0))


@pytest.mark.parametrize(("threads", "expected"), [(1, 8), (2, 4), (3, 2), (8, 1), (16, 1)])
def test_there_are_as_many_as_threads_unless_told_otherwise(
    threads: int, expected: int, tiny_data: Path
) -> None:
    torch.set_num_threads(threads)
    left = config(tiny_data, {"train.micro_batch": None})
    assert auto_micro_batch(left, torch.device("cpu")) == expected
    assert auto_micro_batch(left, torch.device("cpu"), processes=2) == 4


def test_a_run_says_so(tiny_data: Path) -> None:
    torch.set_num_threads(2)
    run = set_up(config(tiny_data, {"train.micro_batch": None}), Path("unused"), Console())
    lines = [*opening_lines(run)]
    assert any(line.endswith("micro-batches side by side on 2 threads") for line in lines)
    assert any("micro-batches of 4 sequences" in line for line in lines)


def test_a_run_that_lost_its_last_checkpoint_is_resumed_exactly(
    tiny_data: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    fused = config(tiny_data, {"train.cpu_kernels": "fused", "train.micro_batch": None})
    both = fused.override({"train.steps": 4, "train.checkpoint_every": 2, "train.eval_every": 2})
    train_run(start(both, whole, Console(quiet=True)), Console(quiet=True))
    shutil.copytree(whole, resumed)
    shutil.rmtree(checkpoints(resumed / CHECKPOINTS)[-1])
    run = resume(resumed, read_config(resumed), Console(quiet=True))
    assert 0 < run.state.step < 4
    train_run(run, Console(quiet=True))
    names = ("train_loss", "val_loss")
    one, other = (
        [(r["step"], n, r[n]) for r in read_records(folder / METRICS) for n in names if n in r]
        for folder in (whole, resumed)
    )
    assert len(one) == 4 + 3 and one == other

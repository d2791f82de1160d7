"""The time of a training step: each recipe as it is, with each switch, and the plain loop.

A step is the whole of it, as `quintic.train` takes it: the batch from the loader, all
micro-batches, the optimizers. Tokens are random, drawn once into shards. Steps are timed on the
device from the end of one to the end of the next, so that nothing between them is lost; the median
counts. Forward includes the head's gradient where the loss computes it on the way, as `chunked`
does.

The plain loop is `bench.step.PlainLoop`, compiled unless asked otherwise: the same model and batch
with the plain loss and one matrix after another. It runs in the same process, so that the ratio may
be quoted.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bench.gpu.budget import Budget
from bench.gpu.profile import longest_kernels
from bench.step import PlainLoop
from quintic.config import Config, resolve_vocabulary
from quintic.console import Console
from quintic.data.prefetch import Prefetcher, Uploader
from quintic.data.shards import write_shard
from quintic.device import DeviceTimer, auto_micro_batch, compute_dtype, peak_flops
from quintic.errors import QuinticError
from quintic.model.build import build_model, meta_model
from quintic.setup import set_up
from quintic.train import apply_schedule, forward_backward

PLAIN, AS_IS = "plain loop", "as it is"

DATASHEET_FLOPS = 989e12
"""Dense bfloat16 peak of an H100 SXM, where the data sheet of the device is not known."""

SWITCHES: tuple[dict[str, Any], ...] = (
    {"train.float8_head": True},
    {"train.loss": "chunked"},
    {"train.loss": "plain"},
    {"train.cuda_graphs": True},
    {"train.cache_bf16_weights": True},
    {"train.micro_batch": 128},
    {"train.mtp_tokens": 3},
    {"train.attention": "cudnn"},
    {"train.attention": "flash"},
    {"model.window": 256},
    {"model.window": 256, "train.attention": "flex"},
    {"optim.muon.kernel": "triton"},
    {"train.prefetch_to_gpu": "off"},
    {"train.compile": False},
)
"""What is changed, one at a time, in every recipe that does not say so already; the likeliest gains
and what was never measured first, since time may run out. A window of 256 behind a plain mask, and
by blocks; several tokens predicted: these train another model, whose loss the ladder knows."""


@dataclass(frozen=True)
class Timers:
    """The parts of one step; read once the device is done with it."""

    whole: DeviceTimer
    forward: list[DeviceTimer]
    forward_backward: DeviceTimer
    optimizer: DeviceTimer
    wait_s: float

    def read(self) -> dict[str, float]:
        """Milliseconds of the step and of its parts; `waiting` is the host's, for the batch."""
        forward = sum(timer.item() for timer in self.forward)
        return {
            "step": self.whole.item(),
            "forward": forward,
            "backward": self.forward_backward.item() - forward,
            "optimizer": self.optimizer.item(),
            "waiting": 1000 * self.wait_s,
        }


class Stepper(Protocol):
    """One way to train."""

    micro_batch: int

    def step(self) -> Timers:
        """Dispatch one step."""

    def close(self) -> None:
        """Stop what runs beside it."""


class QuinticStepper:
    """quintic's own step."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.run = set_up(config, Path("unused"), Console(quiet=True))
        assert self.run.config.train.micro_batch is not None
        self.micro_batch = self.run.config.train.micro_batch
        self._resources = ExitStack()
        self._resources.enter_context(self.run.computing())
        self._batches = self._resources.enter_context(
            Prefetcher(
                self.run.loader.batch,
                0,
                2**31,
                pin=device.type == "cuda",
                upload=Uploader(device) if self.run.prefetches_to_gpu else None,
            )
        )
        self._device, self._number = device, 0
        self._forward: list[DeviceTimer] = []
        self._loss, self.run.loss = self.run.loss, self._timed_loss
        self._whole = DeviceTimer(device)

    def _timed_loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        timer = DeviceTimer(self._device)
        loss = self._loss(inputs_BT, targets_BT)
        self._forward.append(timer.stop())
        return loss

    def step(self) -> Timers:
        run, waited_s = self.run, self._batches.wait_s
        self._forward = []
        batch = self._batches.get(self._number)
        waited_s = self._batches.wait_s - waited_s
        apply_schedule(run, self._number % run.config.train.steps)
        passes = DeviceTimer(self._device)
        forward_backward(run, batch)
        passes.stop()
        optimizer = DeviceTimer(self._device)
        run.stepper.step(run.config.optim.clip_norm)
        optimizer.stop()
        self._number += 1
        whole, self._whole = self._whole.stop(), DeviceTimer(self._device)
        return Timers(whole, self._forward, passes, optimizer, waited_s)

    def close(self) -> None:
        self._resources.close()


class PlainStepper:
    """The plain loop on one batch, which lies on the device."""

    def __init__(self, config: Config, device: torch.device, *, compiled: bool) -> None:
        dtype = compute_dtype(config.train.precision, device)
        self.micro_batch = config.train.micro_batch or auto_micro_batch(config, device)
        model = build_model(config.model, compute_dtype=dtype, loss="plain").to(device)
        self._loop = PlainLoop(config, model, compiled=compiled)
        assert config.model.vocab_size is not None
        shape = (config.batch_sequences, config.model.context + 1)
        ids_BT = torch.randint(config.model.vocab_size, shape, device=device)
        self._inputs = ids_BT[:, :-1].contiguous().split(self.micro_batch)
        self._targets = ids_BT[:, 1:].contiguous().split(self.micro_batch)
        self._device = device
        self._forward: list[DeviceTimer] = []
        self._loss, self._loop.loss = self._loop.loss, self._timed_loss
        self._whole = DeviceTimer(device)

    def _timed_loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        timer = DeviceTimer(self._device)
        loss = self._loss(inputs_BT, targets_BT) / len(self._inputs)
        self._forward.append(timer.stop())
        return loss

    def step(self) -> Timers:
        self._forward = []
        passes = DeviceTimer(self._device)
        for inputs_BT, targets_BT in zip(self._inputs, self._targets, strict=True):
            self._loop.forward_backward(inputs_BT, targets_BT)
        passes.stop()
        optimizer = DeviceTimer(self._device)
        self._loop.optimizer_step()
        optimizer.stop()
        whole, self._whole = self._whole.stop(), DeviceTimer(self._device)
        return Timers(whole, self._forward, passes, optimizer, 0.0)

    def close(self) -> None:
        """Nothing runs beside it."""


def way_name(changes: dict[str, Any]) -> str:
    """What a way is called in tables."""
    return ", ".join(f"{field} {value}" for field, value in changes.items()) or AS_IS


def measure_recipe(
    config: Config,
    switches: tuple[dict[str, Any], ...],
    device: torch.device,
    budget: Budget,
    *,
    rounds: int,
    product_tflops: float | None,
    plain_compiled: bool = True,
) -> Iterator[dict[str, Any]]:
    """The figures of each way to train `config`: the plain loop, as it is, with each switch.

    What a switch cannot be here is said in its row (`refused`), and so is what failed.
    """
    base: dict[str, Any] = {}
    plain = partial(PlainStepper, compiled=plain_compiled)
    ways: list[tuple[str, dict[str, Any], Callable[..., Stepper]]] = [(PLAIN, {}, plain)]
    ways += [(way_name(changes), changes, QuinticStepper) for changes in ({}, *switches)]
    took_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        config = with_random_shards(config, Path(folder))
        for name, changes, stepper in ways:
            row: dict[str, Any] = {"recipe": config.recipe, "way": name, "changes": changes}
            if not budget.allows(took_s, f"{config.recipe}: {name}"):
                yield {**row, "skipped": "no time left"}
                continue
            began = time.monotonic()
            try:
                changed = config.override(changes)
                if changes and changed == config:
                    continue  # the recipe says so itself
                row |= measure_way(partial(stepper, device=device), changed, device, rounds, budget)
                row |= rates(changed, row["step_ms"], device, product_tflops)
            except QuinticError as error:
                row["refused"] = str(error)
            except Exception as error:  # the other ways are still worth measuring
                row["failed"] = f"{type(error).__name__}: {str(error)[:800]}"
            finally:
                free(device)
            if name == PLAIN:
                base = row
                row["compiled"] = plain_compiled
            elif "step_ms" in base and "step_ms" in row:
                row["times_the_plain_loop"] = round(base["step_ms"] / row["step_ms"], 3)
            took_s = time.monotonic() - began
            row["took_s"] = round(took_s, 1)
            yield row


def measure_way(
    build: Callable[[Config], Stepper],
    config: Config,
    device: torch.device,
    rounds: int,
    budget: Budget,
) -> dict[str, Any]:
    """Step times of one way; where memory does not suffice, with half the micro-batch, said so."""
    while True:
        try:
            return _measure(build, config, device, rounds)
        except torch.OutOfMemoryError:
            micro_batch = config.train.micro_batch or auto_micro_batch(config, device)
            if micro_batch % 2:
                raise
            budget.say(f"{config.recipe}: micro-batch {micro_batch} does not fit, half of it next")
            config = replace(config, train=replace(config.train, micro_batch=micro_batch // 2))
        free(device)  # out of the handler, which holds the frames that hold the tensors


def _measure(
    build: Callable[[Config], Stepper], config: Config, device: torch.device, rounds: int
) -> dict[str, Any]:
    with closing(build(config)) as stepper:
        began = time.monotonic()
        stepper.step().read()
        first_step_s = time.monotonic() - began
        stepper.step().read()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        timers = [stepper.step() for _ in range(rounds)]
        parts = [timer.read() for timer in timers]
        figures: dict[str, Any] = {
            "micro_batch": stepper.micro_batch,
            "first_step_s": round(first_step_s, 2),
            "rounds": rounds,
            "step_ms": round(statistics.median(part["step"] for part in parts), 3),
            "steps_ms": [round(part["step"], 3) for part in parts],
            "shares": {
                name: round(statistics.median(part[name] / part["step"] for part in parts), 5)
                for name in ("forward", "backward", "optimizer", "waiting")
            },
        }
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 2**30
            figures["peak_memory_gib"] = round(peak, 3)
        figures["longest_kernels"] = longest_kernels(lambda: stepper.step().read(), device)
        figures["synchronizes"] = synchronizes(stepper, device)
    return figures


def synchronizes(stepper: Stepper, device: torch.device) -> str | None:
    """Where a step makes the host wait for the device; "" where nowhere, None on other devices."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.step()
        return ""
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def rates(
    config: Config, step_ms: float, device: torch.device, product_tflops: float | None
) -> dict[str, Any]:
    """Tokens per second and the share of the arithmetic that the device could do meanwhile."""
    tokens_per_s = 1000 * config.train.batch_tokens / step_ms
    flops_per_s = tokens_per_s * meta_model(config.model).flops_per_token()
    figures: dict[str, float] = {"tokens_per_s": round(tokens_per_s)}
    if device.type == "cuda":
        datasheet = peak_flops(device, torch.bfloat16) or DATASHEET_FLOPS
        figures["mfu_of_datasheet"] = flops_per_s / datasheet
    if product_tflops is not None:
        figures["mfu_of_product"] = flops_per_s / product_tflops / 1e12
    return {name: round(value, 5) for name, value in figures.items()}


def with_random_shards(config: Config, folder: Path) -> Config:
    """`config` on two batches of random tokens, written into `folder`, and one micro-batch to
    validate on. A batch that grows is measured at its full size."""
    config = resolve_vocabulary(config, config.model.vocab_size or config.data.embedded_vocab)
    assert config.model.vocab_size is not None
    random = np.random.default_rng(0)
    sizes = {"train": 2 * config.train.batch_tokens + 1, "val": config.model.context + 1}
    for split, count in sizes.items():
        tokens = random.integers(0, config.model.vocab_size, count, dtype=np.uint32)
        write_shard(folder / f"random_{split}_000000.bin", tokens)
    return config.override(
        {
            "data.path": str(folder),
            "data.tokenizer": None,
            "data.order": "stream",
            "train.batch_stages": 1,
            "train.eval_tokens": config.model.context,
        }
    )


def free(device: torch.device) -> None:
    """Give back the memory of what is no longer used, compiled code included."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

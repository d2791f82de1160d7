"""The switches of a step against the plain way: same losses, and really another way.

On a machine with a GPU these run there: `python -m bench.gpu --parts parity`.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import quintic.metrics
from quintic.config import Config
from quintic.console import Console
from quintic.data.loader import Batch
from quintic.data.prefetch import Prefetcher, Uploader
from quintic.device import LateScalar
from quintic.errors import QuinticError
from quintic.metrics import Metrics
from quintic.metrics_file import METRICS, read_records
from quintic.model.attention import attend
from quintic.model.attention_backend import (
    BACKENDS,
    attention_backend,
    backend_works,
    default_backend,
)
from quintic.model.linear import Linear, WeightCache
from quintic.optim.param_groups import build_optimizers
from quintic.optim.step import LocalStepper
from quintic.run import Run
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS
from quintic.run_lines import opening_lines
from quintic.setup import set_up, start
from quintic.train import apply_schedule, evaluate_run, forward_backward, train_run
from tests.conftest import tiny_config
from tests.waiting import LAST_BOUND_S

pytestmark = pytest.mark.device

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
needs_cpu = pytest.mark.skipif(CUDA, reason="about machines without a CUDA device")


def here(data: Path, changes: dict[str, Any]) -> Config:
    """A tiny run on the device, in bfloat16, with two micro-batches a step."""
    base = {"train.device": DEVICE.type, "train.precision": "bfloat16", "train.micro_batch": 4}
    return tiny_config(data, {**base, **changes})


def losses(config: Config) -> list[float]:
    """The losses of four steps, and the validation loss after them."""
    run = set_up(config, Path("unused"), Console())
    found = []
    with run.computing():
        for step in range(4):
            apply_schedule(run, step)
            found.append(float(forward_backward(run, run.loader.batch(step))))
            run.stepper.step(run.config.optim.clip_norm)
        found.append(evaluate_run(run))
    return found


def close(one: list[float], other: list[float], tolerance: float) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < tolerance


class Recorder(TorchDispatchMode):
    """The operators that run, with precision and shape of what they are given first."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        self.calls.append((str(func), None if first is None else (first.dtype, first.shape)))
        return func(*args, **(kwargs or {}))

    def count(self, part: str, given: tuple[torch.dtype, torch.Size] | None = None) -> int:
        return sum(part in name and given in (None, seen) for name, seen in self.calls)


# Attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_kernel_asked_for_by_name_computes_forward_and_recomputed_passes(
    tiny_data: Path, checkpointing: bool
) -> None:
    ran = {}
    for name in ("math", "flash"):
        changes = {"train.attention": name, "train.activation_checkpointing": checkpointing}
        run = set_up(here(tiny_data, changes), Path("unused"), Console())
        with Recorder() as recorder, run.computing():
            forward_backward(run, run.loader.batch(0))
        ran[name] = recorder.count("flash_attention")
        assert recorder.count("softmax") >= (4 if name == "math" else 1)
    passes = 2 * 2 * (2 if checkpointing else 1)  # layers, micro-batches, recomputed
    assert ran["math"] == 0
    assert ran["flash"] == passes + 2 * 2  # and the backward kernels


def test_every_kernel_that_works_here_gives_the_losses_of_the_plain_one(tiny_data: Path) -> None:
    model = here(tiny_data, {}).model
    found = [n for n in BACKENDS if backend_works(n, model, DEVICE, torch.bfloat16)]
    assert "math" in found and len(found) >= 2
    of = {name: losses(here(tiny_data, {"train.attention": name})) for name in (*found, "auto")}
    assert all(close(of["math"], other, 0.05) for other in of.values())
    own = default_backend(model, DEVICE, torch.bfloat16)
    assert own in found and of["auto"] == of[own]


@needs_cpu
def test_a_kernel_that_does_not_work_here_is_refused_with_those_that_do(tiny_data: Path) -> None:
    with pytest.raises(QuinticError) as caught:
        set_up(here(tiny_data, {"train.attention": "cudnn"}), Path("unused"), Console())
    assert str(caught.value) == (
        "train.attention cudnn does not work on cpu for heads of 16 in bfloat16 with PyTorch "
        f"{torch.__version__}: use one that does, math, flash, or auto"
    )


MASKED = {
    **{"model.window": 12, "model.window_start": 2},
    **{"model.document_mask": True, "model.eot_id": 0},
}


@needs_cpu
def test_blocks_are_refused_where_they_do_not_train(tiny_data: Path) -> None:
    with pytest.raises(QuinticError) as caught:
        changes = {**MASKED, "train.attention": "flex", "train.compile": True}
        set_up(here(tiny_data, changes), Path("unused"), Console())
    assert str(caught.value) == (
        "train.attention flex does not work on cpu for heads of 16 in bfloat16 behind a mask with "
        f"PyTorch {torch.__version__}: use one that does, math, flash, or auto"
    )


@needs_cuda
@pytest.mark.parametrize("checkpointing", [False, True])
def test_by_blocks_a_model_trains_as_behind_the_plain_mask(
    tiny_data: Path, checkpointing: bool
) -> None:
    changes = {**MASKED, "train.compile": True, "train.activation_checkpointing": checkpointing}
    plain = losses(here(tiny_data, {**changes, "train.attention": "math"}))
    by_blocks = losses(here(tiny_data, {**changes, "train.attention": "flex"}))
    assert close(plain, by_blocks, 0.05) and plain != by_blocks


def test_a_kernel_is_tried_with_the_mask_that_the_model_has(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = []

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        masks.append(attn_mask)
        return attend(q, k, v, attn_mask)

    monkeypatch.setattr("quintic.model.attention_backend.attend", watched)
    for changes in ({}, {"model.window": 8}, {"model.document_mask": True, "model.eot_id": 0}):
        assert backend_works("math", here(tiny_data, changes).model, DEVICE, torch.bfloat16)
    assert [mask is not None for mask in masks] == [False, True, True]


def test_no_kernel_is_chosen_for_good() -> None:
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    with attention_backend("math"):
        assert not torch.backends.cuda.flash_sdp_enabled()
    with attention_backend("auto"):
        assert torch.backends.cuda.flash_sdp_enabled() == before[0]
    after = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    assert after == before


# Casts once a step --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt", "gpt2"])
def test_casting_once_a_step_changes_no_loss(tiny_data: Path, architecture: str) -> None:
    config = here(tiny_data, {"model.architecture": architecture, "optim.clip_norm": 1.0})
    once = config.override({"train.cache_bf16_weights": True})
    assert close(losses(config), losses(once), 1e-3 if CUDA else 1e-12)


def test_a_checkpoint_holds_the_same_whether_casts_are_kept_or_not(
    tiny_data: Path, tmp_path: Path
) -> None:
    held = []
    for once in (False, True):
        changes = {"train.cache_bf16_weights": once, "train.steps": 2, "train.eval_every": 2}
        folder = tmp_path / str(once)
        run = start(here(tiny_data, changes), folder, Console(quiet=True))
        assert train_run(run, Console(quiet=True))
        (file,) = checkpoints(folder / CHECKPOINTS)[-1].glob("*.safetensors")
        held.append(load_file(file))
    assert held[0].keys() == held[1].keys() and "model.embed.weight" in held[0]
    if not CUDA:
        assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])


def test_a_step_casts_each_weight_once_whatever_its_micro_batches(tiny_data: Path) -> None:
    for micro_batch in (1, 8):
        casts = {}
        for once in (False, True):
            # No other weight has the shape of `up`, [128, 32].
            changes = {"train.micro_batch": micro_batch, "model.vocab_size": 160}
            changes["train.cache_bf16_weights"] = once
            run = set_up(here(tiny_data, changes), Path("unused"), Console())
            with Recorder() as recorder:
                forward_backward(run, run.loader.batch(0))
            up = torch.float32, torch.Size([128, 32])
            casts[once] = recorder.count("_to_copy", up)
        assert casts == {False: 2 * 8 // micro_batch, True: 0}  # of two layers


def test_validation_and_every_step_see_the_newest_weights(tiny_data: Path) -> None:
    run = set_up(here(tiny_data, {"train.cache_bf16_weights": True}), Path("unused"), Console())
    linear = next(m for m in run.state.model.modules() if isinstance(m, Linear))
    for compute in (
        lambda: forward_backward(run, run.loader.batch(0)),
        lambda: evaluate_run(run),
    ):
        with torch.no_grad():
            linear.weight.add_(1.0)
        assert linear.cached_weight is not None
        assert not torch.equal(linear.cached_weight, linear.weight.bfloat16())
        compute()
        assert torch.equal(linear.cached_weight, linear.weight.bfloat16())


def test_the_gradient_of_a_kept_cast_arrives_at_the_weight_in_its_precision() -> None:
    linears = [Linear(24, 16), Linear(24, 16)]
    linears[1].load_state_dict(linears[0].state_dict())
    WeightCache([linears[1]], torch.bfloat16)
    assert set(linears[1].state_dict()) == {"weight", "bias"}
    x = torch.randn(40, 24).bfloat16()
    for linear in linears:
        for part in x.split(10):
            linear(part).square().mean().backward()
    one, two = (linear.weight.grad for linear in linears)
    assert one is not None and two is not None and two.dtype is torch.float32
    assert torch.equal(one, two)


@needs_cpu
@pytest.mark.parametrize("precision", ["auto", "float32", "float64"])
def test_casting_once_is_refused_where_nothing_is_cast(tiny_data: Path, precision: str) -> None:
    changes = {"train.cache_bf16_weights": True, "train.precision": precision}
    with pytest.raises(
        QuinticError, match=r"cache_bf16_weights has nothing to cast.*--train.no-cache-bf16-weights"
    ):
        set_up(here(tiny_data, changes), Path("unused"), Console())


# CUDA graphs --------------------------------------------------------------------------------------


def test_gradients_that_stay_in_their_place_give_the_same_weights(tiny_data: Path) -> None:
    # What CUDA graphs need, on any device: the graph's own memory is never the gradient.
    run = set_up(here(tiny_data, {"optim.clip_norm": 1.0}), Path("unused"), Console())
    weights = {}
    for keep in (False, True):
        again = set_up(run.config, Path("unused"), Console())
        parameters = dict(again.state.model.named_parameters())

        def build(*_: Any, again: Run = again) -> list[torch.optim.Optimizer]:
            return build_optimizers(
                again.state.model, again.specs, again.config.optim, device=DEVICE
            )

        again.stepper = LocalStepper(parameters, again.specs, build, keep_gradients=keep)
        places = {n: p.grad.data_ptr() for n, p in parameters.items() if p.grad is not None}
        assert len(places) == (len(parameters) if keep else 0)
        for step in range(3):
            apply_schedule(again, step)
            forward_backward(again, again.loader.batch(step))
            again.stepper.step(again.config.optim.clip_norm)
        for name, place in places.items():
            grad = parameters[name].grad
            assert grad is not None and grad.data_ptr() == place and not grad.any()
        weights[keep] = parameters
    assert all(torch.equal(weights[False][name], weights[True][name]) for name in weights[False])


@needs_cpu
def test_cuda_graphs_and_uploads_ahead_are_refused_without_cuda(tiny_data: Path) -> None:
    for changes, message in (
        (
            {"train.cuda_graphs": True, "train.compile": True},
            "train.cuda_graphs is for CUDA devices and this run is on cpu: use "
            "--train.no-cuda-graphs",
        ),
        (
            {"train.prefetch_to_gpu": "on"},
            "train.prefetch_to_gpu on is for CUDA devices and this run is on cpu: use "
            "--train.prefetch-to-gpu auto",
        ),
    ):
        with pytest.raises(QuinticError) as caught:
            set_up(here(tiny_data, changes), Path("unused"), Console())
        assert str(caught.value) == message


@needs_cuda
def test_cuda_graphs_change_no_loss_beyond_rounding(tiny_data: Path) -> None:
    compiled = here(tiny_data, {"train.compile": True})
    graphs = compiled.override({"train.cuda_graphs": True})
    assert close(losses(compiled), losses(graphs), 1e-2)


# Uploads ------------------------------------------------------------------------------------------


class Noted:
    """An uploader that says where and when it was called."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, str]] = []
        self.first_begun = threading.Event()

    def __call__(self, batch: Batch) -> Callable[[], Batch]:
        self.begun.append((int(batch[0][0]), threading.current_thread().name))
        self.first_begun.set()

        def uploaded() -> Batch:
            assert threading.current_thread() is threading.main_thread()
            return batch

        return uploaded


def test_the_next_batch_is_on_its_way_before_it_is_asked_for() -> None:
    noted = Noted()

    def batch(step: int) -> Batch:
        return torch.tensor([step]), torch.tensor([step + 1])

    with Prefetcher(batch, 3, 6, upload=noted) as batches:
        assert noted.first_begun.wait(LAST_BOUND_S)
        for step in (3, 4, 5):
            assert int(batches.get(step)[0]) == step
    assert [step for step, _ in noted.begun] == [3, 4, 5]
    assert all(name.startswith("prefetch") for _, name in noted.begun)


@needs_cuda
def test_uploaded_batches_are_those_of_the_loader(tiny_data: Path) -> None:
    run = set_up(here(tiny_data, {}), Path("unused"), Console())
    upload = Uploader(DEVICE)
    with Prefetcher(run.loader.batch, 0, 20, pin=True, upload=upload) as batches:
        for step in range(20):
            for moved, expected in zip(batches.get(step), run.loader.batch(step), strict=True):
                assert moved.is_cuda and torch.equal(moved.cpu(), expected)


@needs_cuda
@pytest.mark.parametrize("upload", ["on", "off"])
def test_losses_do_not_depend_on_how_batches_come(
    tiny_data: Path, tmp_path: Path, upload: str
) -> None:
    config = here(tiny_data, {"train.prefetch_to_gpu": upload, "train.steps": 4})
    assert train_run(start(config, tmp_path / "run", Console(quiet=True)), Console(quiet=True))
    found = [r["train_loss"] for r in read_records(tmp_path / "run" / METRICS) if "train_loss" in r]
    assert close(found, losses(config)[:4], 1e-3)


# Nothing waits for the device ---------------------------------------------------------------------


def test_the_loss_of_a_step_is_on_its_way_before_the_one_before_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Read when the next step is dispatched, but copied with its own: else it waits for both.
    events: list[tuple[str, float]] = []

    class Watched(LateScalar):
        def __init__(self, value: Tensor) -> None:
            super().__init__(value)
            events.append(("sent", super().item()))

        def item(self) -> float:
            events.append(("read", super().item()))
            return super().item()

    monkeypatch.setattr(quintic.metrics, "LateScalar", Watched)
    metrics = Metrics(
        tmp_path,
        step=0,
        elapsed_s=0.0,
        tokens_before=lambda step: step,
        flops_per_token=1.0,
        peak_flops=None,
        device=torch.device("meta"),  # as on every device but the CPU, whose steps are done
        on_record=lambda record: None,
    )
    for step in range(3):
        metrics.train(step, torch.tensor(float(step)))
    metrics.close()
    assert events == [("sent", 0), ("sent", 1), ("read", 0), ("sent", 2), ("read", 1)]


@needs_cuda
def test_no_step_makes_the_host_wait(tiny_data: Path) -> None:
    run = set_up(here(tiny_data, {"optim.clip_norm": 1.0}), Path("unused"), Console())
    for step in range(4):
        batch = run.loader.batch(step)
        pinned = batch[0].pin_memory(), batch[1].pin_memory()
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            apply_schedule(run, step)
            late = LateScalar(forward_backward(run, pinned))
            run.stepper.step(1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert late.item() > 0


# What was chosen is said --------------------------------------------------------------------------


def test_the_choices_of_a_step_are_said_once_at_the_start(tiny_data: Path) -> None:
    def said(changes: dict[str, Any]) -> str:
        run = set_up(here(tiny_data, changes), Path("unused"), Console())
        (line,) = (line for line in opening_lines(run) if line.startswith("step "))
        return line

    own = default_backend(here(tiny_data, {}).model, DEVICE, torch.bfloat16)
    assert said({}).startswith(f"step    attention as PyTorch chooses ({own})")
    named = said({"train.attention": "math", "train.cache_bf16_weights": True})
    assert named.startswith("step    attention math, weights cast once a step")
    assert ("uploaded ahead" in named) == CUDA

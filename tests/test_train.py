"""The loop: what one step computes, that the micro-batch does not matter, what the optimizers get.

Runs here are trained in this process; stopping and resuming them is in `test_resume.py`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import quintic.train
from quintic.checkpoint import read_state
from quintic.checkpoint_writer import CheckpointWriter
from quintic.config import Config
from quintic.console import Console
from quintic.data.shards import write_shard
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, MetricsRecord, read_records
from quintic.model.loss import Reduction
from quintic.optim.muon import Muon
from quintic.resuming import resume
from quintic.run import Run
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS, read_config
from quintic.setup import set_up, start
from quintic.train import apply_schedule, evaluate_run, forward_backward, train_run
from quintic.train_state import TrainState
from quintic.trained import load_trained
from tests.conftest import tiny_config
from tests.model.test_gpt import EVERY_TECHNIQUE, reference_logits

MICRO_BATCHES = [1, 2, 4, 8]

FLOAT64 = {"train.precision": "float64", "optim.muon.ns_dtype": "float64"}


def built(config: Config) -> Run:
    """A run that was set up, without a folder."""
    return set_up(config, Path("unused"), Console())


def trained(config: Config, folder: Path) -> list[MetricsRecord]:
    run = start(config, folder, Console())
    assert train_run(run, Console())
    return read_records(folder / METRICS)


def column(records: list[MetricsRecord], name: str) -> list[Any]:
    return [record[name] for record in records if name in record]


def after_steps(run: Run, steps: int) -> Run:
    """Train in memory, so that no matrix is zero any more."""
    for step in range(steps):
        apply_schedule(run, step)
        forward_backward(run, run.loader.batch(step))
        for optimizer in run.state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return run


def gradients(run: Run) -> dict[str, Tensor]:
    return {n: p.grad for n, p in run.state.model.named_parameters() if p.grad is not None}


# Law 2: how a batch is cut into micro-batches changes nothing but rounding.


def test_micro_batches_are_the_global_batch_of_the_step_in_order(tiny_data: Path) -> None:
    for micro_batch in MICRO_BATCHES:
        run = built(tiny_config(tiny_data, {"train.micro_batch": micro_batch}))
        own = run.loss
        seen: list[tuple[Tensor, Tensor]] = []

        def watched(
            inputs_BT: Tensor,
            targets_BT: Tensor,
            own: Callable[[Tensor, Tensor], Tensor] = own,
            seen: list[tuple[Tensor, Tensor]] = seen,
        ) -> Tensor:
            seen.append((inputs_BT, targets_BT))
            return own(inputs_BT, targets_BT)

        run.loss = watched
        forward_backward(run, run.loader.batch(3))
        assert [len(inputs) for inputs, _ in seen] == [micro_batch] * (8 // micro_batch)
        for part, whole in zip(zip(*seen, strict=True), run.loader.batch(3), strict=True):
            assert torch.equal(torch.cat(part), whole)


def test_each_step_trains_on_the_batch_of_its_number_and_a_resumed_run_goes_on_there(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(run: Run, batch: tuple[Tensor, Tensor], *_: Any) -> Tensor:
        seen.append(batch)
        if len(seen) == 7:
            raise RuntimeError("a crash at step 6")
        return forward_backward(run, batch)

    monkeypatch.setattr(quintic.train, "forward_backward", watched)
    folder = tmp_path / "run"
    run = start(tiny_config(tiny_data, {"data.order": "shuffle"}), folder, Console())
    with pytest.raises(RuntimeError, match="a crash"):
        train_run(run, Console())
    again = resume(folder, read_config(folder), Console())
    assert train_run(again, Console())
    assert again.state.step == 12
    for (inputs_BT, targets_BT), step in zip(seen, [*range(7), *range(4, 12)], strict=True):
        expected_inputs_BT, expected_targets_BT = run.loader.batch(step)
        assert torch.equal(inputs_BT, expected_inputs_BT), step
        assert torch.equal(targets_BT, expected_targets_BT), step


def test_gradient_and_loss_of_accumulation_equal_those_of_one_batch(tiny_data: Path) -> None:
    """To 1e-12 of the largest entry in float64, so nothing but the order of a sum differs."""
    whole = after_steps(built(tiny_config(tiny_data, FLOAT64)), 3)
    loss = forward_backward(whole, whole.loader.batch(3))
    for micro_batch in MICRO_BATCHES[:-1]:
        run = built(tiny_config(tiny_data, {**FLOAT64, "train.micro_batch": micro_batch}))
        run.state.model.load_state_dict(whole.state.model.state_dict())
        torch.testing.assert_close(
            forward_backward(run, run.loader.batch(3)), loss, rtol=1e-12, atol=0
        )
        for (name, one), other in zip(
            gradients(whole).items(), gradients(run).values(), strict=True
        ):
            largest = one.abs().max().item()
            assert largest > 0, name
            torch.testing.assert_close(other, one, rtol=0, atol=1e-12 * largest)


def test_loss_of_a_step_is_the_mean_over_the_tokens_of_the_whole_batch(tiny_data: Path) -> None:
    run = after_steps(built(tiny_config(tiny_data, {**FLOAT64, "train.micro_batch": 2})), 3)
    inputs_BT, targets_BT = run.loader.batch(3)
    with torch.no_grad():
        logits_BTV = run.state.model(inputs_BT)
    expected = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    loss = forward_backward(run, (inputs_BT, targets_BT))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not loss.requires_grad


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        # Sums of 256 terms in another order: 2e-7 of the loss measured over the 12 steps, that is
        # two roundings of float32 (6e-8). A share of the batch that is wrong gives 1e-2.
        ("float32", 5e-6),
        ("float64", 1e-12),
    ],
)
def test_losses_of_a_run_do_not_depend_on_the_micro_batch(
    tiny_data: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    runs = [
        trained(
            tiny_config(
                tiny_data,
                {
                    "train.precision": precision,
                    "train.micro_batch": micro_batch,
                    "train.checkpoint_every": 100,
                },
            ),
            tmp_path / str(micro_batch),
        )
        for micro_batch in MICRO_BATCHES
    ]
    for name, count in (("train_loss", 12), ("val_loss", 4)):
        reference = column(runs[-1], name)
        assert len(reference) == count
        for records in runs[:-1]:
            assert column(records, name) == pytest.approx(reference, rel=tolerance, abs=0)


# Law 6: validation.


def test_validation_loss_does_not_depend_on_the_micro_batch_and_counts_each_token_once(
    tiny_data: Path,
) -> None:
    """13 sequences leave a remainder for every micro-batch but 1."""
    options = {**FLOAT64, "train.eval_tokens": 13 * 32}
    reference = after_steps(built(tiny_config(tiny_data, options)), 3)
    tokens = torch.from_numpy(reference.dataset.val.read(0, 13 * 32 + 1))
    with torch.no_grad():
        logits = reference.state.model(tokens[:-1].view(13, 32)).flatten(0, 1)
        expected = F.cross_entropy(logits, tokens[1:]).item()
    for micro_batch in MICRO_BATCHES:
        run = built(tiny_config(tiny_data, {**options, "train.micro_batch": micro_batch}))
        run.state.model.load_state_dict(reference.state.model.state_dict())
        own = run.loss
        sizes: list[int] = []

        def watched(
            inputs_BT: Tensor,
            targets_BT: Tensor,
            reduction: Reduction,
            own: Callable[..., Tensor] = own,
            sizes: list[int] = sizes,
        ) -> Tensor:
            sizes.append(targets_BT.numel())
            loss = own(inputs_BT, targets_BT, reduction)
            assert not loss.requires_grad, "validation keeps no graph"
            return loss

        run.loss = watched
        assert evaluate_run(run) == pytest.approx(expected, rel=1e-12)
        assert sum(sizes) == 13 * 32
        assert len(sizes) == math.ceil(13 / micro_batch)
        assert gradients(run) == {}


def test_validation_to_the_streams_last_token_is_its_mean_in_numpy_and_the_same_again(
    tmp_path: Path,
) -> None:
    """The last token is a target and no input, so all but one can be evaluated on."""
    tokens = np.random.default_rng(2).integers(0, 128, 65)
    write_shard(tmp_path / "x_train_000001.bin", tokens)
    write_shard(tmp_path / "x_val_000000.bin", tokens[:21])  # ends within a sequence
    write_shard(tmp_path / "x_val_000001.bin", tokens[21:])
    options = {
        **FLOAT64,
        **{f"model.{name}": value for name, value in EVERY_TECHNIQUE.items()},
        **{"model.layers": 3, "model.width": 16, "model.context": 8},
        **{"train.batch_tokens": 24, "train.micro_batch": 3, "train.mtp_tokens": 2},
    }
    config = tiny_config(tmp_path, {**options, "train.eval_tokens": 64})
    run = after_steps(built(config), 3)
    own, seen = run.loss, []

    def watched(inputs_BT: Tensor, targets_BT: Tensor, **options: Reduction) -> Tensor:
        seen.append(targets_BT)
        return own(inputs_BT, targets_BT, **options)

    run.loss = watched
    found = evaluate_run(run)
    assert torch.cat(seen).flatten().tolist() == tokens[1:].tolist()
    weights = {n: p.detach().numpy() for n, p in run.state.model.named_parameters()}
    inputs = tokens[:-1].reshape(8, 8)
    logits = np.concatenate(
        [reference_logits(weights, row, config.model) for row in inputs.tolist()]
    )
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(64), tokens[1:]]
    assert found == pytest.approx(losses.mean(), rel=1e-12)
    assert evaluate_run(run) == found
    with pytest.raises(QuinticError, match=r"validation on 72 tokens needs 73 .* use at most 64"):
        built(config.override({"train.eval_tokens": 72}))
    with pytest.raises(QuinticError, match="eval_tokens 65 is not a multiple"):
        config.override({"train.eval_tokens": 65})


def test_a_window_that_grows_is_that_of_its_step_in_training_validation_and_a_checkpoint(
    tiny_data: Path, tmp_path: Path
) -> None:
    growing = {"model.window": 32, "model.window_start": 2}
    config = tiny_config(tiny_data).override(growing)
    run = start(config, tmp_path / "run", Console(quiet=True))
    seen, own = [], run.loss

    def watched(*batch: Tensor, **options: Reduction) -> Tensor:
        seen.append((run.state.step, torch.is_grad_enabled(), int(run.state.model.window)))
        return own(*batch, **options)

    run.loss = watched
    train_run(run, Console(quiet=True))
    assert {(step, window) for step, _, window in seen} == {
        (step, 2 + 30 * step // 12) for step in range(13)
    }
    assert {step for step, training, _ in seen if not training} == {0, 5, 10, 12}
    # A checkpoint amid the run is evaluated with the window of its step.
    found = load_trained(tmp_path / "run", which="best")
    step = found.checkpoint.state["step"]
    assert int(found.model.window) == 2 + 30 * step // 12


def test_validation_changes_nothing_of_the_training_state(tiny_data: Path) -> None:
    run = after_steps(built(tiny_config(tiny_data)), 2)
    before = {name: tensor.clone() for name, tensor in run.state.on_cpu().items()}
    evaluate_run(run)
    for name, tensor in run.state.on_cpu().items():
        assert torch.equal(tensor, before[name]), name


# What the optimizers get.


def test_clipping_is_torchs_and_the_norm_before_it_is_logged(
    tiny_data: Path, tmp_path: Path
) -> None:
    limit = 0.05
    run = start(
        tiny_config(
            tiny_data, {"optim.clip_norm": limit, "train.steps": 2, "train.micro_batch": 4}
        ),
        tmp_path / "run",
        Console(),
    )
    seen: list[dict[str, Tensor]] = []

    def grab(*_: Any) -> None:
        seen.append({name: gradient.clone() for name, gradient in gradients(run).items()})

    run.state.optimizers[0].register_step_pre_hook(grab)
    unclipped = built(tiny_config(tiny_data, {"train.micro_batch": 4}))
    forward_backward(unclipped, unclipped.loader.batch(0))
    norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients(unclipped).values()))
    assert norm > limit, "else nothing is clipped"

    train_run(run, Console())
    for name, gradient in gradients(unclipped).items():
        # torch.nn.utils.clip_grad_norm_: times max_norm / (norm + 1e-6)
        torch.testing.assert_close(seen[0][name], gradient * (limit / (norm + 1e-6)))
    logged = column(read_records(tmp_path / "run" / METRICS), "grad_norm")
    assert logged[0] == pytest.approx(norm, rel=1e-5)


def test_a_gradient_below_the_limit_is_left_as_it_is(tiny_data: Path, tmp_path: Path) -> None:
    options = {"train.steps": 4, "train.checkpoint_every": 100}
    free = trained(tiny_config(tiny_data, options), tmp_path / "free")
    wide = trained(tiny_config(tiny_data, {**options, "optim.clip_norm": 1e6}), tmp_path / "wide")
    assert column(wide, "train_loss") == column(free, "train_loss")
    assert column(free, "grad_norm") == []


def test_learning_rates_and_momentum_of_each_step_reach_every_group(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        tiny_data,
        {
            "train.steps": 10,
            "optim.schedule.warmup_steps": 2,
            "optim.schedule.cooldown_fraction": 0.4,
            "optim.muon.lr": 0.02,
            "optim.adamw.lr": 0.005,
            "optim.muon.momentum": 0.95,
            "optim.muon.momentum_warmup_steps": 5,
        },
    )
    run = start(config, tmp_path / "run", Console())
    used: dict[str, list[tuple[float, ...]]] = {"muon": [], "adamw": []}

    def grab(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (group,) = optimizer.param_groups
        if isinstance(optimizer, Muon):
            used["muon"].append((group["lr"], group["momentum"]))
        else:
            used["adamw"].append((group["lr"],))

    for optimizer in run.state.optimizers:
        optimizer.register_step_pre_hook(grab)
    train_run(run, Console())

    factors = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    momenta = [0.85, 0.87, 0.89, 0.91, 0.93, 0.95, 0.95, 0.95, 0.95, 0.95]
    assert [lr for lr, _ in used["muon"]] == pytest.approx([0.02 * f for f in factors])
    assert [momentum for _, momentum in used["muon"]] == pytest.approx(momenta)
    assert [lr for (lr,) in used["adamw"]] == pytest.approx([0.005 * f for f in factors])
    logged = column(read_records(tmp_path / "run" / METRICS), "lr")
    assert logged == pytest.approx([0.02 * f for f in factors])


def test_each_group_of_adamw_keeps_its_own_learning_rate_under_the_schedule(
    tiny_data: Path,
) -> None:
    options = {"optim.matrices": "adamw", "optim.adamw.matrix_lr": 0.001, "optim.adamw.lr": 0.004}
    run = built(tiny_config(tiny_data, {**options, "optim.schedule.cooldown_fraction": 0.5}))
    for step, factor in ((0, 1.0), (9, 0.5), (11, 1 / 6)):
        logged = apply_schedule(run, step)
        (adamw,) = run.state.optimizers
        lr = {name: group["lr"] for group in adamw.param_groups for name in group["names"]}
        assert lr.pop("embed.weight") == pytest.approx(0.004 * factor)
        assert list(lr.values()) == pytest.approx([0.001 * factor] * 12)
        assert logged["lr"] == pytest.approx(0.001 * factor)


def test_what_draws_at_random_in_training_begins_at_the_seed(tiny_data: Path) -> None:
    """An optimizer of one's own may draw, and two runs of a seed are equal in any process."""
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for before, seed in ((1, 7), (2, 7), (1, 8)):
            torch.manual_seed(before)
            built(tiny_config(tiny_data, {"train.seed": seed}))
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# Precision.


def test_float64_is_float64_everywhere_and_trains(tiny_data: Path, tmp_path: Path) -> None:
    run = start(tiny_config(tiny_data, {"train.precision": "float64"}), tmp_path / "run", Console())
    train_run(run, Console())
    for name, tensor in run.state.on_cpu().items():
        if not name.endswith(".step") and name != "rng.cpu":
            assert tensor.dtype is torch.float64, name
    losses = column(read_records(tmp_path / "run" / METRICS), "train_loss")
    assert losses[-1] < losses[0] - 1
    assert any(loss != torch.tensor(loss, dtype=torch.float32).item() for loss in losses)


def test_bfloat16_computes_beside_float32_weights_and_state_and_trains_close_to_float32(
    tiny_data: Path, tmp_path: Path
) -> None:
    full = trained(tiny_config(tiny_data, {"train.precision": "float32"}), tmp_path / "full")
    config = tiny_config(tiny_data, {"train.precision": "bfloat16"})
    run = start(config, tmp_path / "half", Console())
    train_run(run, Console())
    half = read_records(tmp_path / "half" / METRICS)
    for name, tensor in run.state.on_cpu().items():
        if name != "rng.cpu":
            assert tensor.dtype is torch.float32, name
    for name in ("train_loss", "val_loss"):
        assert column(half, name) != column(full, name), "bfloat16 was not used"
        # bfloat16 rounds each product by up to 2^-9 = 0.2%; 0.02% measured on the mean loss.
        assert column(half, name) == pytest.approx(column(full, name), rel=2e-3)
    assert column(full, "train_loss")[-1] < 3.6


# A run that goes wrong.


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    own = forward_backward

    def diverging(run: Run, batch: tuple[Tensor, Tensor], *_: Any) -> Tensor:
        loss = own(run, batch)
        return loss * value if run.state.step == 6 else loss

    monkeypatch.setattr(quintic.train, "forward_backward", diverging)
    folder = tmp_path / "run"
    run = start(tiny_config(tiny_data), folder, Console())
    with pytest.raises(QuinticError, match=rf"{value} at step 6.*step-00000004") as caught:
        train_run(run, Console())
    assert "a lower --optim.muon.lr or --optim.adamw.lr" in str(caught.value)
    assert [path.name for path in checkpoints(folder / CHECKPOINTS)] == ["step-00000004"]
    assert read_state(folder / CHECKPOINTS / "step-00000004")["step"] == 4
    assert column(read_records(folder / METRICS), "step")[-1] == 6


def test_weights_that_are_not_finite_are_not_saved(tiny_data: Path, tmp_path: Path) -> None:
    """The loss of step 7 is fine and its update is not; the next loss would come too late."""
    folder = tmp_path / "run"
    run = start(tiny_config(tiny_data), folder, Console())
    adamw = run.state.optimizers[-1]

    def spoil(*_: Any) -> None:
        if run.state.step == 7:
            run.state.model.embed.weight.data[0, 0] = math.nan

    adamw.register_step_post_hook(spoil)
    with pytest.raises(QuinticError, match=r"model.embed.weight is not finite after step 8"):
        train_run(run, Console())
    assert [path.name for path in checkpoints(folder / CHECKPOINTS)] == ["step-00000004"]


def test_the_time_a_checkpoint_takes_is_not_the_next_steps(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor training time at all. The clock only goes on in what this test lets take time."""
    clock = [0.0]
    monkeypatch.setattr("quintic.device.time.perf_counter", lambda: clock[0])
    own_save, own_step = CheckpointWriter.save, forward_backward

    def save(self: CheckpointWriter, state: TrainState) -> None:
        clock[0] += 100
        own_save(self, state)

    def step(run: Run, batch: tuple[Tensor, Tensor], *_: Any) -> Tensor:
        clock[0] += 2
        return own_step(run, batch)

    monkeypatch.setattr(CheckpointWriter, "save", save)
    monkeypatch.setattr(quintic.train, "forward_backward", step)
    records = trained(tiny_config(tiny_data), tmp_path / "run")
    assert column(records, "step_ms") == [2000] * 12
    assert read_state(tmp_path / "run" / CHECKPOINTS / "step-00000012")["elapsed_s"] == 24


def test_a_run_goes_on_without_its_figure(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(quintic.train, "draw_loss", refuse)
    records = trained(tiny_config(tiny_data), tmp_path / "run")
    assert column(records, "step")[-1] == 12
    assert "loss.png was not drawn: no fonts" in capsys.readouterr().out


def test_the_lock_is_released_when_training_fails(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def broken(run: Run, batch: tuple[Tensor, Tensor], *_: Any) -> Tensor:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a bug"):
        patch.setattr(quintic.train, "forward_backward", broken)
        train_run(start(tiny_config(tiny_data), folder, Console()), Console())
    assert train_run(resume(folder, read_config(folder), Console()), Console())

"""The numbers of the matrices are what they say: against SVDs, formulas and the step itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from quintic.console import Console
from quintic.diagnostics.matrices import MatrixFacts, MatrixWatch, singular_values, stable_rank
from quintic.diagnostics.polynomial import apply_polynomial, polynomial_band, sequence_of
from quintic.optim.muon import update_scale
from quintic.run import Run
from quintic.setup import set_up
from quintic.train import apply_schedule, forward_backward
from tests.conftest import tiny_config

STEPS = 3
"""The one that is looked at is the last: its momentum is not its gradient any more."""


def step_of(
    data: Path, changes: dict[str, Any]
) -> tuple[Run, dict[str, MatrixFacts], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A run after a few steps, the numbers of the last of them, and before it the weights and, of
    all processes' sequences, the gradients."""
    sizes = {"model.width": 16, "model.context": 16, "train.batch_tokens": 64}
    fixed = {"train.precision": "float64", "model.init": "classic", "train.eval_tokens": 16}
    config = tiny_config(data, {**sizes, **fixed, **changes})
    run = set_up(config, Path("unused"), Console(quiet=True))
    model = run.state.model
    watch = MatrixWatch(
        run.stepper.optimizers, run.specs, config.optim, run.world, next(model.parameters())
    )
    for step in range(STEPS):
        run.state.step = step
        apply_schedule(run, step)
        forward_backward(run, run.loader.batch(step, run.rows(step)))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        if step == STEPS - 1:
            watch.begin()
        run.stepper.step(config.optim.clip_norm)
    return run, watch.measure(lambda: None), before, gradients


def quantiles(values: torch.Tensor) -> list[float]:
    chosen = torch.tensor([0, 0.1, 0.5, 0.9, 1], dtype=torch.float64)
    found: list[float] = values.quantile(chosen).tolist()
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"optim.muon.nesterov": False}, {"optim.muon.ns_coefficients": "polar_express"}],
    ids=str,
)
def test_of_muon(tiny_data: Path, changes: dict[str, Any]) -> None:
    run, found, before, gradients = step_of(tiny_data, changes)
    (muon,) = (
        o
        for o in run.stepper.optimizers
        if isinstance(o, torch.optim.Optimizer)
        if "nesterov" in o.param_groups[0]
    )
    group = muon.param_groups[0]
    assert found.keys() == set(group["names"])
    sequence = sequence_of(run.config.optim.muon.ns_coefficients, 5)
    for name, p in zip(group["names"], group["params"], strict=True):
        facts, weight = found[name], before[name]
        gradient, change = gradients[name], p.detach() - weight
        direction = muon.state[p]["momentum"]
        if group["nesterov"]:
            direction = gradient + 0.95 * direction
        values = torch.linalg.svdvals(direction)
        assert facts["momentum"] == pytest.approx(quantiles(values), rel=1e-6, abs=1e-7)
        # What was applied, without the learning rate and the scale, is the update.
        update = change / -group["lr"] / update_scale("aspect", *p.shape)
        assert facts["update"] == pytest.approx(quantiles(torch.linalg.svdvals(update)), rel=1e-6)
        exact = apply_polynomial(values / values.norm(), sequence)
        assert facts["update"] == pytest.approx(quantiles(exact), rel=1e-5)
        assert facts["polynomial_error"] < 1e-5
        below = (exact < polynomial_band(sequence)[0]).double().mean().item()
        assert facts["below_band"] == pytest.approx(below)
        for what, matrix in (("weight", weight), ("gradient", gradient)):
            expected = (matrix.norm() / torch.linalg.matrix_norm(matrix, 2)) ** 2
            assert facts[f"{what}_stable_rank"] == pytest.approx(expected.item(), rel=1e-9)
        assert facts["update_to_weight"] == pytest.approx((change.norm() / weight.norm()).item())


def test_of_adamw(tiny_data: Path) -> None:
    run, found, before, _ = step_of(
        tiny_data, {"optim.matrices": "adamw", "optim.adamw.weight_decay": 0.1}
    )
    (adamw,) = run.stepper.optimizers
    for group in adamw.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            if name not in found:
                continue
            decayed = before[name] * (1 - group["lr"] * group["weight_decay"])
            update = (decayed - p.detach()) / group["lr"]
            values = torch.linalg.svdvals(update)
            assert found[name]["update"] == pytest.approx(quantiles(values), rel=1e-6, abs=1e-7)
            momentum = torch.linalg.svdvals(adamw.state[p]["exp_avg"])
            assert found[name]["momentum"] == pytest.approx(quantiles(momentum), rel=1e-6, abs=1e-8)
            assert math.isnan(found[name]["below_band"])
    assert len(found) == 2 * 6


def test_of_an_optimizer_that_nobody_knows(tiny_data: Path) -> None:
    _, found, _, gradients = step_of(
        tiny_data,
        {"optim.matrices": "torch.optim:SGD", "optim.custom.lr": 0.1, "optim.clip_norm": 0.01},
    )
    name = "layers.1.mlp.up.weight"
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    clipped = torch.linalg.svdvals(gradients[name] * 0.01 / (norm + 1e-6))
    assert found[name]["update"] == pytest.approx(quantiles(clipped), rel=1e-5, abs=1e-7)
    assert all(math.isnan(value) for value in found[name]["momentum"])


@pytest.mark.parametrize("shape", [(5, 9, 4), (5, 4, 9), (2, 6, 6)])
def test_singular_values_are_those_of_an_svd(shape: tuple[int, int, int]) -> None:
    A_nrc = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    A_nrc[1, 0, 0] = math.inf
    A_nrc[0, :, 1] = A_nrc[0, :, 0]
    found = singular_values(A_nrc)
    assert found[1].isnan().all()
    for one in [0, *range(2, shape[0])]:
        expected = torch.linalg.svdvals(A_nrc[one].double()).flip(0)
        torch.testing.assert_close(found[one], expected, rtol=1e-9, atol=1e-7)
    assert stable_rank(torch.zeros(1, 3, 4)).isnan().all()
    assert stable_rank(torch.eye(3)[None]).item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("name", "steps", "band"),
    [
        ("quintic", 5, (0.6818, 1.2024)),
        ("dion", 5, (0.9778, 1.1450)),
        ("polar_express", 8, (1.0, 1.0)),
    ],
)
def test_the_band_is_what_the_polynomial_makes_of_all_but_the_smallest(
    name: str, steps: int, band: tuple[float, float]
) -> None:
    sequence = sequence_of(name, steps)
    found = polynomial_band(sequence)
    assert found == pytest.approx(band, abs=1e-4)
    made = apply_polynomial(torch.linspace(0.01, 1, 10_001, dtype=torch.float64), sequence)
    assert found[0] - 1e-6 <= made.min() and made.max() <= found[1] + 1e-6


@pytest.mark.parametrize(
    ("name", "low", "band"),
    [
        ("quintic", 0.001, (0.471, 1.202)),
        ("quintic", 0.002, (0.682, 1.202)),
        ("polar_express", 0.001, (0.840, 1.124)),
        ("dion", 0.001, (0.475, 1.145)),
        ("dion", 0.006, (0.978, 1.043)),
    ],
)
def test_the_bands_that_the_docs_give_are_those_of_exact_iterations(
    name: str, low: float, band: tuple[float, float]
) -> None:
    x = torch.logspace(-3, 0, 100_001, dtype=torch.float64)
    made = apply_polynomial(x[x >= low], sequence_of(name, 5))
    assert (made.min().item(), made.max().item()) == pytest.approx(band, abs=6e-4)

"""SGD, SOAP and Shampoo: against their definitions, and resumed exactly."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quintic.train
from quintic.config import (
    ModelConfig,
    OptimConfig,
    SGDConfig,
    ShampooConfig,
    SOAPConfig,
)
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.model.build import build_model
from quintic.optim.matrix_optimizer import Placement, build_optimizer
from quintic.optim.param_groups import assign_parameters, build_optimizers, param_groups_table
from quintic.resuming import resume
from quintic.run_lines import opening_lines
from quintic.setup import start
from quintic.train import train_run
from tests.conftest import tiny_config

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None,
    reason="pytorch_optimizer is not installed: pip install quintic[optimizers]",
)
every = pytest.mark.parametrize(
    "matrices",
    [
        "sgd",
        pytest.param("soap", marks=needs_library),
        pytest.param("shampoo", marks=needs_library),
    ],
)

CPU = Placement(torch.device("cpu"))
R, C = 6, 4
RARELY = {"train.eval_every": 100, "train.checkpoint_every": 100}


def gradient(step: int, shape: tuple[int, int] = (R, C)) -> Tensor:
    random = torch.Generator().manual_seed(step)
    return torch.randn(shape, generator=random, dtype=torch.float64)


def weights_after(config: OptimConfig, steps: int, shape: tuple[int, int] = (R, C)) -> list[Tensor]:
    """A matrix that starts at zero, after each step on `gradient(0)`, `gradient(1)`, ..."""
    p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    group = {"params": [p], "names": ["p"], "lr": config.matrix_lr, "weight_decay": 0.0}
    optimizer = build_optimizer(config.matrices, config, [group], CPU)
    found = []
    for step in range(steps):
        p.grad = gradient(step, shape)
        optimizer.step()
        found.append(p.detach().clone())
    return found


def test_sgd_is_muon_without_orthogonalisation() -> None:
    lr, momentum = 0.1, 0.9
    config = OptimConfig(matrices="sgd", sgd=SGDConfig(lr=lr, momentum=momentum))
    weight = buffer = torch.zeros(R, C, dtype=torch.float64)
    for step, found in enumerate(weights_after(config, 4)):
        buffer = momentum * buffer + gradient(step)
        weight = weight - lr * (gradient(step) + momentum * buffer)
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-14)


@needs_library
def test_soap_is_adam_in_the_eigenbasis_of_shampoos_preconditioners() -> None:
    """Square, since the eigenvectors of the eigenvalue 0 would not be defined."""
    lr, beta1, beta2, steps = 0.01, 0.9, 0.8, 5
    soap = SOAPConfig(lr=lr, betas=(beta1, beta2), precondition_frequency=100)
    found = weights_after(OptimConfig(matrices="soap", soap=soap), steps, (5, 5))
    # The first step begins L and R, whose eigenvectors are the basis, and moves nothing.
    G = gradient(0, (5, 5))
    Q_L, Q_R = torch.linalg.eigh(G @ G.T)[1], torch.linalg.eigh(G.T @ G)[1]
    weight, first = torch.zeros_like(G), torch.zeros_like(G)
    second = torch.zeros_like(G)
    assert torch.equal(found[0], weight)
    for t in range(1, steps):
        G = gradient(t, (5, 5))
        first = beta1 * first + (1 - beta1) * G
        second = beta2 * second + (1 - beta2) * (Q_L.T @ G @ Q_R) ** 2
        mean, variance = first / (1 - beta1**t), second / (1 - beta2**t)
        adam = (Q_L.T @ mean @ Q_R) / variance.sqrt()
        weight = weight - lr * Q_L @ adam @ Q_R.T
        torch.testing.assert_close(found[t], weight, rtol=0, atol=1e-7)


@needs_library
def test_soap_renews_its_basis_as_often_as_configured() -> None:
    def final(frequency: int) -> Tensor:
        soap = SOAPConfig(lr=0.01, precondition_frequency=frequency)
        return weights_after(OptimConfig(matrices="soap", soap=soap), 8)[-1]

    assert not torch.allclose(final(2), final(100), atol=1e-4)
    assert not torch.allclose(final(2), final(3), atol=1e-5)
    assert torch.equal(final(50), final(100))


@needs_library
def test_shampoo_is_its_definition_with_an_rmsprop_step_length() -> None:
    lr, beta1, beta2, every_steps = 0.01, 0.9, 0.8, 3
    shampoo = ShampooConfig(lr=lr, betas=(beta1, beta2), precondition_frequency=every_steps)
    found = weights_after(OptimConfig(matrices="shampoo", shampoo=shampoo), 7)

    def inverse_fourth_root(A: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(A)
        ridge = 1e-6 * values.max()
        root: Tensor = vectors @ torch.diag((values.clamp(min=0) + ridge) ** -0.25) @ vectors.T
        return root

    weight, variance = (torch.zeros(R, C, dtype=torch.float64) for _ in range(2))
    momentum, plain_momentum = torch.zeros_like(weight), torch.zeros_like(weight)
    L, R_ = 1e-6 * torch.eye(R, dtype=torch.float64), 1e-6 * torch.eye(C, dtype=torch.float64)
    root_L, root_R = torch.eye(R, dtype=torch.float64), torch.eye(C, dtype=torch.float64)
    for t in range(1, 8):
        G = gradient(t - 1)
        variance = beta2 * variance + (1 - beta2) * G**2
        L, R_ = beta2 * L + (1 - beta2) * G @ G.T, beta2 * R_ + (1 - beta2) * G.T @ G
        if t % every_steps == 0:
            root_L, root_R = inverse_fourth_root(L), inverse_fourth_root(R_)
        plain = G / variance.sqrt()
        direction = root_L @ G @ root_R
        direction *= plain.norm() / direction.norm()
        momentum = beta1 * momentum + (1 - beta1) * direction
        plain_momentum = beta1 * plain_momentum + (1 - beta1) * plain
        begun = t >= every_steps
        step, buffer = (direction, momentum) if begun else (plain, plain_momentum)
        weight = weight - lr * (beta1 * buffer + (1 - beta1) * step)
        # The library's roots come from an iteration that stops at an error of 1e-3.
        torch.testing.assert_close(found[t - 1], weight, rtol=0, atol=2e-4 if begun else 1e-9)
    assert weight.abs().max() > 0.02


@needs_library
def test_shampoo_cuts_large_matrices_into_blocks_and_leaves_none_out() -> None:
    p = nn.Parameter(torch.zeros(600, 8))
    config = OptimConfig(matrices="shampoo")
    optimizer = build_optimizer(
        "shampoo", config, [{"params": [p], "names": ["p"], "lr": 0.1}], CPU
    )
    shapes = [tuple(t.shape) for name, t in optimizer.state[p].items() if "statistics." in name]
    assert shapes[-4:] == [(512, 512), (8, 8), (88, 88), (8, 8)]


@every
def test_the_state_is_named_tensors_that_stay_the_same(matrices: str) -> None:
    """Allocated up front, and written in place: a checkpoint is copied into them."""
    model = build_model(ModelConfig(layers=2, width=16, heads=2, context=8, vocab_size=32))
    config = OptimConfig(
        matrices=matrices,
        soap=SOAPConfig(precondition_frequency=2),
        shampoo=ShampooConfig(precondition_frequency=2),
    )
    baseline, _ = build_optimizers(
        model, assign_parameters(model, config), config, device=torch.device("cpu")
    )
    assert all(p.grad is None for p in model.parameters())
    before = {p: dict(state) for p, state in baseline.state.items()}
    assert len(before) == 12  # six matrices in each of two layers
    for step in range(5):
        random = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=random)
        baseline.step()
    for p, state in before.items():  # type: ignore[assignment]
        assert baseline.state[p].keys() == state.keys()
        for name, tensor in baseline.state[p].items():
            assert isinstance(tensor, Tensor)
            assert tensor is state[name]
            assert tensor.any(), name


@every
def test_a_run_stopped_and_resumed_equals_one_never_stopped(
    matrices: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, between two renewals and after one, whole state included."""
    monkeypatch.setattr(quintic.train, "_draw", lambda *_: None)  # figures would take seconds
    changes = {
        "optim.matrices": matrices,
        **({"optim.sgd.lr": 0.5} if matrices == "sgd" else {}),
        **({f"optim.{matrices}.precondition_frequency": 3} if matrices != "sgd" else {}),
        "optim.schedule.cooldown_fraction": 0.0,
        "train.steps": 11,
        **RARELY,
    }
    config = tiny_config(tiny_data, changes)
    whole = start(config, tmp_path / "whole", Console())
    assert train_run(whole, Console())
    folder = tmp_path / "stopped"
    run = start(config.override({"train.steps": 1}), folder, Console())
    assert train_run(run, Console())
    for steps in (5, 7, 11):
        run = resume(folder, run.config.override({"train.steps": steps}), Console())
        assert train_run(run, Console())
    expected, found = whole.state.on_cpu(), run.state.on_cpu()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@every
def test_it_learns_and_says_what_runs(
    matrices: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quintic.train, "_draw", lambda *_: None)
    lr = {"sgd": 0.5, "soap": 0.01, "shampoo": 0.01}[matrices]
    changes = {"optim.matrices": matrices, f"optim.{matrices}.lr": lr, "train.steps": 40, **RARELY}
    run = start(tiny_config(tiny_data, changes), tmp_path / "run", Console())
    lines = "\n".join(opening_lines(run))
    assert f"on 12 parameters (24,576 elements), lr {lr}" in lines
    assert {r.optimizer for r in run.specs if "layers" in r.name} == {matrices}
    assert param_groups_table(run.specs).count(f" {matrices} ") == 12
    before = run.loss(*run.loader.batch(0)).item()
    assert train_run(run, Console())
    after = run.loss(*run.loader.batch(0)).item()
    assert after < before - 0.5


@pytest.mark.parametrize("matrices", ["soap", "shampoo"])
def test_a_missing_library_is_one_line_with_the_way_out(
    matrices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "pytorch_optimizer" else own(name, *a),
    )
    with pytest.raises(
        QuinticError,
        match=rf"optim\.matrices {matrices} needs the package pytorch_optimizer: install "
        r"quintic\[optimizers\], or choose --optim\.matrices muon, adamw or sgd",
    ):
        build_optimizer(matrices, OptimConfig(matrices=matrices), [], CPU)

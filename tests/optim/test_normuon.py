"""NorMuon's normalisation against its definition."""

import math

import pytest
import torch
from torch import nn

from quintic.optim.muon import Muon, normalize_neurons
from quintic.optim.newton_schulz import newton_schulz


def updates(step: int, shape: tuple[int, ...] = (3, 8, 5)) -> torch.Tensor:
    random = torch.Generator().manual_seed(step)
    uneven = torch.logspace(0, -2, shape[-2], dtype=torch.float64)[:, None]
    return newton_schulz(uneven * torch.randn(shape, generator=random, dtype=torch.float64))


def test_steps_equal_the_definition_row_by_row() -> None:
    beta2 = 0.9
    moment = torch.zeros(3, 8, 1, dtype=torch.float64)
    expected_moment = [[0.0] * 8 for _ in range(3)]
    for step in range(4):
        update = updates(step)
        found = normalize_neurons(update, moment, beta2=beta2)
        for i in range(3):
            rows = []
            for r in range(8):
                mean = sum(float(x) ** 2 for x in update[i, r]) / 5
                expected_moment[i][r] = beta2 * expected_moment[i][r] + (1 - beta2) * mean
                rows.append(update[i, r] / math.sqrt(expected_moment[i][r]))
            expected = torch.stack(rows)
            expected *= update[i].norm() / expected.norm()
            torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        moment[..., 0], torch.tensor(expected_moment, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_rows_become_equally_long_and_the_norm_stays() -> None:
    update = updates(1)
    found = normalize_neurons(update, torch.zeros(3, 8, 1, dtype=torch.float64), beta2=0.95)
    assert update.norm(dim=-1).std() > 0.1
    rows = found.norm(dim=-1)
    torch.testing.assert_close(rows, rows.mean(-1, keepdim=True).expand_as(rows))
    torch.testing.assert_close(found.norm(dim=(-2, -1)), update.norm(dim=(-2, -1)))


def test_with_the_rms_scale_entries_have_the_papers_root_mean_square() -> None:
    # An exactly orthogonal update: 0.2 sqrt(max(r, c)) gives entries of root mean square 0.2.
    U = torch.linalg.qr(torch.randn(8, 5, dtype=torch.float64))[0]
    found = normalize_neurons(U, torch.zeros(8, 1, dtype=torch.float64), beta2=0.95)
    scaled = 0.2 * math.sqrt(8) * found
    assert scaled.square().mean().sqrt().item() == pytest.approx(0.2)


def test_a_zero_update_and_a_dead_neuron_stay_zero() -> None:
    zero = torch.zeros(2, 4, 3)
    assert torch.equal(normalize_neurons(zero, torch.zeros(2, 4, 1), beta2=0.95), zero)
    update = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    update[:, 2] = 0
    found = normalize_neurons(update, torch.zeros(2, 4, 1), beta2=0.95)
    assert torch.isfinite(found).all()
    assert not found[:, 2].any()


def test_a_stack_equals_each_matrix_alone() -> None:
    moment = torch.rand(3, 8, 1, dtype=torch.float64)
    alone = [
        normalize_neurons(update, m.clone(), beta2=0.9)
        for update, m in zip(updates(2), moment, strict=True)
    ]
    together = normalize_neurons(updates(2), moment.clone(), beta2=0.9)
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-14)


def test_the_optimizer_applies_it_to_the_orthogonal_update_with_a_moment_for_each_matrix() -> None:
    random = torch.Generator().manual_seed(7)
    weights = [torch.randn(6, 4, generator=random, dtype=torch.float64) for _ in range(2)]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Muon(parameters, lr=0.1, momentum=0.0, scale="aspect", normuon=True, beta2=0.8)
    moment = torch.zeros(2, 6, 1, dtype=torch.float64)
    expected = torch.stack(weights)
    for _ in range(3):
        gradient = torch.randn(2, 6, 4, generator=random, dtype=torch.float64)
        for p, g in zip(parameters, gradient, strict=True):
            p.grad = g.clone()
        optimizer.step()
        update = normalize_neurons(newton_schulz(gradient), moment, beta2=0.8)
        expected -= 0.1 * math.sqrt(6 / 4) * update
    torch.testing.assert_close(torch.stack(list(parameters)).detach(), expected)
    found = torch.stack([optimizer.state[p]["second_moment"] for p in parameters])
    torch.testing.assert_close(found, moment)


def test_float16_weights_with_rows_that_have_no_gradient_stay_finite() -> None:
    gradient = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    gradient[3] = 0
    found = []
    for dtype in (torch.float16, torch.float32):
        p = nn.Parameter(torch.zeros(32, 16, dtype=dtype))
        muon = Muon([p], lr=1.0, scale="none", normuon=True)
        for _ in range(2):
            p.grad = gradient.to(dtype)
            muon.step()
        found.append(p.detach().float())
    assert not found[0][3].any()
    assert (found[0] - found[1]).norm() < 0.01 * found[1].norm()

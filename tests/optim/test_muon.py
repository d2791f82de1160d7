"""Muon: against its definition, torch.optim.Muon, and the edges people fall over."""

import math

import pytest
import torch
from torch import nn

from quintic.optim.muon import Muon, muon_update, update_scale
from quintic.optim.newton_schulz import POLAR_EXPRESS, newton_schulz

SHAPES = [(24, 24), (96, 24), (24, 96), (24, 24)]


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=random, dtype=dtype)) for s in SHAPES]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(100 + step)
    return [torch.randn(s, generator=random, dtype=dtype) for s in SHAPES]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["max_dim", "aspect", "rms"])
def test_steps_equal_the_definition_written_out(scale: str, nesterov: bool) -> None:
    lr, momentum, decay = 0.02, 0.9, 0.1
    found, expected = parameters(), [p.detach().clone() for p in parameters()]
    buffers = [torch.zeros_like(w) for w in expected]
    muon = Muon(
        found,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        scale=scale,
        weight_decay=decay,
        ns_dtype=torch.float64,
    )
    factors = {
        "max_dim": lambda r, c: math.sqrt(max(r, c)),
        "aspect": lambda r, c: math.sqrt(max(1, r / c)),
        "rms": lambda r, c: 0.2 * math.sqrt(max(r, c)),
    }
    for step in range(3):
        for i, g in enumerate(gradients(step)):
            found[i].grad = g
            buffers[i] = momentum * buffers[i] + g
            direction = g + momentum * buffers[i] if nesterov else buffers[i]
            expected[i] = (1 - lr * decay) * expected[i] - lr * factors[scale](
                *g.shape
            ) * newton_schulz(direction)
        muon.step()
    for p, w in zip(found, expected, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=0, atol=1e-12)


def test_equals_torch_muon_at_constant_momentum() -> None:
    # torch averages where the original sums: the same direction once the momentum has settled,
    # which a constant gradient does at once. torch iterates in bfloat16, hence the tolerance.
    random = torch.Generator().manual_seed(5)
    start = torch.randn(64, 48, generator=random)
    gradient = torch.randn(64, 48, generator=random)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon([ours], lr=0.01, scale="rms", weight_decay=0.1)
    reference = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        before_ours, before_theirs = ours.detach().clone(), theirs.detach().clone()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        reference.step()
        moved, reference_moved = ours - before_ours, theirs - before_theirs
        assert (moved - reference_moved).norm() / reference_moved.norm() < 5e-2


def test_same_shape_matrices_as_one_batch_equal_each_alone() -> None:
    together, alone = parameters(), parameters()
    one, many = Muon(together, lr=0.01), [Muon([p], lr=0.01) for p in alone]
    for step in range(2):
        for p, q, g in zip(together, alone, gradients(step), strict=True):
            p.grad, q.grad = g, g.clone()
        one.step()
        for muon in many:
            muon.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-5)


def test_zero_gradients_and_zero_weights_give_finite_updates() -> None:
    p, q = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8, 8))
    muon = Muon([p, q], lr=0.1)
    p.grad, q.grad = torch.zeros(8, 8), torch.eye(8)
    muon.step()
    assert torch.equal(p.detach(), torch.zeros(8, 8))
    assert torch.isfinite(q).all()
    assert (q.detach().diagonal() < 0).all()


def test_momentum_can_be_made_before_the_first_step_which_sees_what_was_written_into_it() -> None:
    params = parameters()
    muon = Muon(params, lr=0.01)
    muon.allocate_state()
    for p in params:
        assert torch.equal(muon.state[p]["momentum"], torch.zeros_like(p))
    # As loading a checkpoint of the trainer does.
    muon.state[params[0]]["momentum"].fill_(1.0)
    for p, g in zip(params, gradients(0), strict=True):
        p.grad = g
    muon.step()
    torch.testing.assert_close(
        muon.state[params[0]]["momentum"], 0.95 * torch.ones(24, 24).double() + gradients(0)[0]
    )


def test_learning_rate_and_momentum_may_change_between_steps() -> None:
    p = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    muon = Muon([p], lr=1.0, momentum=0.95)
    muon.param_groups[0]["lr"], muon.param_groups[0]["momentum"] = 0.0, 0.5
    p.grad = torch.eye(4, dtype=torch.float64)
    muon.step()
    muon.step()
    assert torch.equal(p.detach(), torch.zeros_like(p))
    torch.testing.assert_close(muon.state[p]["momentum"], 1.5 * p.grad)


def test_update_is_pure_but_for_the_buffer() -> None:
    G = torch.randn(2, 6, 4, dtype=torch.float64)
    buffer, before = torch.zeros_like(G), G.clone()
    update = muon_update(
        [*G], [*buffer], momentum=0.9, nesterov=True, ns_steps=5, ns_dtype=torch.float64
    )
    assert torch.equal(G, before)
    assert torch.equal(buffer, G)
    torch.testing.assert_close(update, newton_schulz(G))


def test_coefficients_of_the_group_are_those_of_the_update() -> None:
    G = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = nn.Parameter(torch.zeros_like(G))
    muon = Muon(
        [p], lr=1.0, scale="aspect", ns_dtype=torch.float64, ns_coefficients="polar_express"
    )
    p.grad = G
    muon.step()
    direction = (1 + 0.95) * G  # gradient + momentum * buffer in the first step
    expected = -math.sqrt(6 / 4) * newton_schulz(direction, coefficients=POLAR_EXPRESS)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-12)


def test_only_matrices_are_accepted() -> None:
    with pytest.raises(ValueError, match=r"shape \[7\]: it must be a matrix"):
        Muon([nn.Parameter(torch.zeros(7))], lr=0.1)


def test_the_scales_are_the_three_of_the_field_and_none() -> None:
    assert update_scale("max_dim", 64, 16) == 8
    assert update_scale("max_dim", 16, 64) == 8
    assert update_scale("aspect", 64, 16) == 2
    assert update_scale("aspect", 16, 64) == 1
    assert update_scale("rms", 16, 64) == pytest.approx(1.6)
    assert update_scale("none", 16, 64) == 1

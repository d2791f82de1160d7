"""Cautious weight decay against its definition, alone and within Muon."""

import pytest
import torch
from torch import nn

from quintic.optim.cautious import decay_cautiously
from quintic.optim.muon import Muon


def test_only_weights_that_the_update_makes_smaller_are_decayed() -> None:
    weight = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0, 0.0]])
    update = torch.tensor([[0.1, -0.1, -0.1, 0.1, 0.0, 0.1]])  # to be subtracted
    decay_cautiously([weight], [update], factor=0.5)
    assert weight.tolist() == [[1.0, -1.0, 2.0, -2.0, 1.0, 0.0]]


@pytest.mark.parametrize("normuon", [False, True])
def test_muons_steps_equal_the_definition_entry_by_entry(normuon: bool) -> None:
    lr, decay, scale = 0.02, 0.5, 2.0**0.5  # aspect, of (8, 4)
    random = torch.Generator().manual_seed(0)
    start = torch.randn(8, 4, generator=random, dtype=torch.float64)
    plain, cautious = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    common = {"lr": lr, "scale": "aspect", "ns_dtype": torch.float64, "normuon": normuon}
    without = Muon([plain], **common)  # type: ignore[arg-type]
    with_decay = Muon([cautious], weight_decay=decay, cautious=True, **common)  # type: ignore[arg-type]
    for _ in range(3):
        gradient = torch.randn(8, 4, generator=random, dtype=torch.float64)
        plain.grad, cautious.grad = gradient, gradient.clone()
        before_plain, expected = plain.detach().clone(), cautious.detach().clone()
        without.step()
        with_decay.step()
        # The update depends on gradients alone, so that without decay shows it.
        update = (before_plain - plain.detach()) / (lr * scale)
        decayed = 0
        for i in range(8):
            for j in range(4):
                w, u = float(expected[i, j]), float(update[i, j])
                agrees = w * u >= 0
                decayed += agrees
                expected[i, j] = w - lr * decay * w * agrees - lr * scale * u
        assert 0 < decayed < 32
        torch.testing.assert_close(cautious.detach(), expected, rtol=0, atol=1e-12)

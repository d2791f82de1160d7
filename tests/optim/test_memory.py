"""Bytes of optimizer state: the count equals what is held."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from bench.optimizer_memory import state_bytes

from quintic.config import ModelConfig, OptimConfig
from quintic.model.build import build_model, meta_model
from quintic.optim.param_groups import assign_parameters, build_optimizers
from quintic.recipes import get_recipe

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None,
    reason="pytorch_optimizer is not installed: pip install quintic[optimizers]",
)
STEP, D, F = 4, 768, 4 * 768
"""AdamW's count of the steps; the sizes of `modded`."""


@pytest.mark.parametrize(
    "matrices",
    [
        *("muon", "adamw", "sgd"),
        *(pytest.param(name, marks=needs_library) for name in ("soap", "shampoo")),
    ],
)
def test_the_count_on_the_meta_device_is_what_a_trained_model_holds(
    matrices: str,
) -> None:
    sizes = ModelConfig(layers=2, width=16, heads=2, context=8, vocab_size=32, norm="layernorm")
    config, cpu = OptimConfig(matrices=matrices), torch.device("cpu")
    meta, real = meta_model(sizes), build_model(sizes)
    counted = state_bytes(
        build_optimizers(meta, assign_parameters(meta, config), config, device=torch.device("meta"))
    )
    optimizers = build_optimizers(real, assign_parameters(real, config), config, device=cpu)
    for _ in range(12):  # past the first renewal of a preconditioner
        for p in real.parameters():
            p.grad = torch.randn_like(p)
        for optimizer in optimizers:
            optimizer.step()
    assert state_bytes(optimizers) == counted
    held = {
        name: sum(t.untyped_storage().nbytes() for t in optimizer.state[p].values())
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    }
    assert held == counted
    assert counted.keys() == {name for name, _ in real.named_parameters()}


def modded(matrices: str) -> dict[str, int]:
    config = get_recipe("modded")
    model, optim = meta_model(config.model), replace(config.optim, matrices=matrices)
    specs = assign_parameters(model, optim)
    return state_bytes(build_optimizers(model, specs, optim, device=torch.device("meta")))


def test_muon_and_sgd_hold_one_number_for_each_of_a_matrix_and_adamw_two() -> None:
    muon, adamw, sgd = modded("muon"), modded("adamw"), modded("sgd")
    for name, size in (("mlp.up", F * D), ("attention.q", D * D)):
        full = f"layers.3.{name}.weight"
        assert muon[full] == sgd[full] == 4 * size
        assert adamw[full] == 8 * size + STEP
    assert muon["embed.weight"] == adamw["embed.weight"] == 8 * 50_304 * D + STEP


@needs_library
def test_soap_holds_both_moments_and_two_square_matrices_a_side() -> None:
    soap = modded("soap")
    assert soap["layers.0.mlp.up.weight"] == 8 * F * D + 2 * 4 * (F * F + D * D) + 8

"""The classic GPT-2: against the formulas written out in NumPy, and llm.c's initialisation."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from quintic.config import ModelConfig
from quintic.model.build import build_model, meta_model
from quintic.recipes import get_recipe

Array = npt.NDArray[np.float64]

SMALL = ModelConfig(architecture="gpt2", layers=3, width=24, heads=3, context=16, vocab_size=40)


def reference_logits(w: dict[str, Array], tokens: list[int], config: ModelConfig) -> Array:
    """The whole model for one sequence, position by position and head by head."""
    heads, width = config.heads, config.width // config.heads

    def affine(name: str, x: Array) -> Array:
        y: Array = w[f"{name}.weight"] @ x + w[f"{name}.bias"]
        return y

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean()
        scaled = centred / math.sqrt(float(np.mean(centred**2)) + 1e-5)
        y: Array = scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
        return y

    def gelu(x: Array) -> Array:
        y: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return y

    xs = [w["embed.weight"][token] + w["positions.weight"][t] for t, token in enumerate(tokens)]
    for layer in range(config.layers):
        block = f"layers.{layer}"
        normed = [norm(f"{block}.attention_norm", x) for x in xs]
        q, k, v = ([affine(f"{block}.attention.{name}", x) for x in normed] for name in "qkv")
        for t in range(len(xs)):
            outputs = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                scores = np.array(
                    [q[t][part] @ k[s][part] / math.sqrt(width) for s in range(t + 1)]
                )
                p = np.exp(scores) / np.exp(scores).sum()
                outputs.append(sum(p[s] * v[s][part] for s in range(t + 1)))
            xs[t] = xs[t] + affine(f"{block}.attention.o", np.concatenate(outputs))
        for t, x in enumerate(xs):
            h_F = gelu(affine(f"{block}.mlp.up", norm(f"{block}.mlp_norm", x)))
            xs[t] = x + affine(f"{block}.mlp.down", h_F)
    return np.stack([w["embed.weight"] @ norm("final_norm", x) for x in xs])


def test_forward_equals_the_formulas_written_out_in_float64() -> None:
    model = build_model(SMALL, compute_dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # biases and norms too, which start at 0 and 1
            p.copy_(0.3 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tokens = [3, 17, 17, 0, 39, 8, 21, 5, 3, 30, 1]
    expected = reference_logits(weights, tokens, SMALL)
    found = model(torch.tensor([tokens])).detach().numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_parameters_of_gpt2_small_are_counted_exactly() -> None:
    config = ModelConfig(
        architecture="gpt2", layers=12, width=768, heads=12, context=1024, vocab_size=50_257
    )
    assert meta_model(config).parameter_count() == 124_439_808
    padded = meta_model(get_recipe("gpt2").model)
    assert padded.parameter_count() == 124_439_808 + 47 * 768


def test_initialisation_is_that_of_llm_c() -> None:
    layers = 8
    config = ModelConfig(
        architecture="gpt2", layers=layers, width=128, heads=4, context=64, vocab_size=512
    )
    for name, p in build_model(config).named_parameters():
        if "norm" in name:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
            std = 0.02 / math.sqrt(2 * layers) if residual else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(p.mean().item()) < 4 * std / math.sqrt(p.numel()), name


def test_initial_loss_at_full_size_is_near_the_logarithm_of_the_vocabulary() -> None:
    config = get_recipe("gpt2").model
    assert config.vocab_size is not None
    model = build_model(config, seed=1)
    ids = torch.randperm(50_257, generator=torch.Generator().manual_seed(0))[:65]
    with torch.no_grad():
        loss = model.loss(ids[None, :-1], ids[None, 1:]).item()
    # Logits of variance 768 * 0.02^2 = 0.31 add half of that to the loss of a uniform guess.
    assert loss == pytest.approx(math.log(config.vocab_size) + 0.154, abs=0.1)

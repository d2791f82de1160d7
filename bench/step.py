"""Tokens per second of a training step, against a plain eager loop: `python -m bench.step`.

The plain loop stands below: the same model with the plain loss, eager PyTorch, and Muon matrix by
matrix with the Newton-Schulz iteration as the original writes it. Both do the same mathematics on
the same batch, taken in turn in one process. Expected: 1.5 times on a CPU, from the chunked loss
(no [tokens, vocabulary] float32 matrices through memory), from compilation (norms, rotary
embeddings and squared ReLU in one pass each) and from stacked Newton-Schulz.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.results import interleaved, median_ratio, print_table, write_result
from quintic.config import Config, ModelConfig, resolve_vocabulary
from quintic.device import choose_device, compute_dtype
from quintic.model.base import LanguageModel
from quintic.model.build import build_model
from quintic.optim.muon import update_scale
from quintic.optim.newton_schulz import EPS, QUINTIC
from quintic.optim.param_groups import assign_parameters, build_optimizers
from quintic.recipes import get_recipe


def small() -> Config:
    """4 layers, 256 wide, 2 heads, 4,096 tokens of vocabulary, 16 x 256 tokens a step."""
    config = get_recipe("laptop-plain")
    return replace(
        config,
        model=ModelConfig(layers=4, width=256, heads=2, context=256, vocab_size=4096),
        train=replace(config.train, batch_tokens=16 * 256, micro_batch=None),
    )


class PlainLoop:
    """What anybody would write first: plain loss, one matrix after another; eager or compiled."""

    def __init__(self, config: Config, model: LanguageModel, *, compiled: bool = False) -> None:
        self.config, self.model = config, model
        self.loss: Callable[..., Tensor]
        self.loss = torch.compile(model.loss, dynamic=False) if compiled else model.loss
        self.orthogonalize = torch.compile(newton_schulz_one) if compiled else newton_schulz_one
        muon = config.optim.matrices == "muon"
        self.matrices = [p for p in model.layers.parameters() if muon and p.ndim == 2]
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        rest = set(model.parameters()) - set(self.matrices)
        adamw = config.optim.adamw
        self.adamw = torch.optim.AdamW(
            [p for p in model.parameters() if p in rest],
            lr=adamw.lr,
            betas=adamw.betas,
            weight_decay=0.0,
        )

    def forward_backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> None:
        self.loss(inputs_BT, targets_BT).backward()

    @torch.no_grad()
    def optimizer_step(self) -> None:
        muon = self.config.optim.muon
        for p, buffer in zip(self.matrices, self.momentum, strict=True):
            assert p.grad is not None
            buffer.mul_(muon.momentum).add_(p.grad)
            update = self.orthogonalize(p.grad.add(buffer, alpha=muon.momentum))
            p.add_(update, alpha=-muon.lr * update_scale(muon.scale, *p.shape))
        self.adamw.step()
        self.model.zero_grad()


def newton_schulz_one(G: Tensor) -> Tensor:
    """The iteration of one matrix, in the original's order of products."""
    a, b, c = QUINTIC
    X = G.bfloat16() if G.is_cuda else G
    X = X / (X.norm() + EPS)
    if G.size(0) > G.size(1):
        X = X.T
    for _ in range(5):
        A = X @ X.T
        B = A @ X
        X = a * X + b * B + c * A @ B
    if G.size(0) > G.size(1):
        X = X.T
    update: Tensor = X.to(G.dtype)
    return update


class QuinticStep:
    """quintic's own step, as `quintic.train` takes it."""

    def __init__(
        self, config: Config, model: LanguageModel, device: torch.device, *, compiled: bool
    ) -> None:
        self.loss = torch.compile(model.loss, dynamic=False) if compiled else model.loss
        self.optimizers = build_optimizers(
            model,
            assign_parameters(model, config.optim),
            config.optim,
            device=device,
            compile=compiled,
        )

    def forward_backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> None:
        self.loss(inputs_BT, targets_BT).backward()

    def optimizer_step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def measure(name: str, config: Config, device: torch.device, rounds: int) -> dict[str, object]:
    """Seconds and tokens per second of the three ways to take one step of `config`."""
    assert config.model.vocab_size is not None
    dtype = compute_dtype(config.train.precision, device)
    ids_BT = torch.randint(
        config.model.vocab_size,
        (config.batch_sequences, config.model.context + 1),
        generator=torch.Generator().manual_seed(0),
    ).to(device)
    inputs_BT, targets_BT = ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous()

    def fresh(loss: str) -> LanguageModel:
        return build_model(config.model, compute_dtype=dtype, loss=loss).to(device)

    ways: dict[str, PlainLoop | QuinticStep] = {
        "plain loop": PlainLoop(config, fresh("plain")),
        "quintic eager": QuinticStep(config, fresh("chunked"), device, compiled=False),
        "quintic compiled": QuinticStep(config, fresh("chunked"), device, compiled=True),
    }
    optimizer_s: dict[str, list[float]] = {way: [] for way in ways}

    def step(way: str) -> None:
        ways[way].forward_backward(inputs_BT, targets_BT)
        _wait(device)
        began = time.perf_counter()
        ways[way].optimizer_step()
        _wait(device)
        optimizer_s[way].append(time.perf_counter() - began)

    seconds = interleaved({way: partial(step, way) for way in ways}, rounds=rounds)
    return {
        "model": name,
        "batch_tokens": config.train.batch_tokens,
        "ways": {
            way: {
                "tokens_per_s": round(config.train.batch_tokens / statistics.median(taken)),
                "step_ms": round(1000 * statistics.median(taken), 1),
                "optimizer_ms": round(1000 * statistics.median(optimizer_s[way][-rounds:]), 1),
                "times_the_plain_loop": round(median_ratio(seconds["plain loop"], taken), 3),
            }
            for way, taken in seconds.items()
        },
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="CPU threads; default PyTorch's")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    laptop = get_recipe("laptop-plain")
    configs = {
        "laptop": resolve_vocabulary(laptop, laptop.data.embedded_vocab),
        "4 x 256, 16 x 256 tokens": small(),
    }
    results = [measure(name, config, device, options.rounds) for name, config in configs.items()]
    rows = [
        (
            f"{result['model']}: {way}",
            f"{figures['tokens_per_s']:,}",
            figures["step_ms"],
            f"{figures['optimizer_ms'] / figures['step_ms']:.1%}",
            f"{figures['times_the_plain_loop']:.2f}",
        )
        for result in results
        for way, figures in result["ways"].items()  # type: ignore[attr-defined]
    ]
    print_table(("step", "tokens/s", "ms", "optimizer", "times plain"), rows)
    name = f"step-{device.type}-{torch.get_num_threads()}threads"
    print(f"written to {write_result(name, {'steps': results}, device)}")


if __name__ == "__main__":
    main()

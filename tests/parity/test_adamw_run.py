"""A whole run with AdamW against the same run written out by hand, in float64."""

import math
from pathlib import Path

import torch

from quintic.config import (
    AdamWConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from quintic.console import Console
from quintic.metrics_file import read_records
from quintic.model.build import build_model
from quintic.setup import start
from quintic.train import train_run

STEPS, WARMUP, BATCH, CONTEXT = 6, 3, 8, 32
LR, BETAS, EPS, DECAY, CLIP = 0.01, (0.9, 0.95), 1e-8, 0.1, 0.5


def test_gpt2_run_equals_adamw_clipping_and_cosine_written_out(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = Config(
        model=ModelConfig(
            architecture="gpt2", layers=2, width=32, heads=2, context=CONTEXT, vocab_size=128
        ),
        data=DataConfig(path=str(tiny_data)),
        optim=OptimConfig(
            matrices="adamw",
            adamw=AdamWConfig(lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=WARMUP),
            clip_norm=CLIP,
        ),
        train=TrainConfig(
            steps=STEPS,
            batch_tokens=BATCH * CONTEXT,
            micro_batch=2,
            device="cpu",
            precision="float64",
            eval_every=STEPS,
            eval_tokens=CONTEXT,
            log_to=(),
        ),
    )
    console = Console()
    run = start(config, tmp_path / "run", console)
    assert train_run(run, console)
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    found = [record["train_loss"] for record in records if "train_loss" in record]

    model = build_model(
        config.model, seed=config.train.seed, compute_dtype=torch.float64, loss="plain"
    )
    moments = {
        name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()
    }
    losses, clipped = [], 0
    for step in range(STEPS):
        tokens = torch.from_numpy(
            run.dataset.train.read(step * BATCH * CONTEXT, BATCH * CONTEXT + 1)
        )
        loss = model.loss(tokens[:-1].view(BATCH, CONTEXT), tokens[1:].view(BATCH, CONTEXT))
        named = dict(model.named_parameters())
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        clipped += norm > CLIP
        if step < WARMUP:
            lr = LR * (step + 1) / WARMUP
        else:
            lr = LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
        with torch.no_grad():
            for name, p in named.items():
                # clip_grad_norm_ adds 1e-6 to the norm it divides by.
                g = gradients[name] * min(1.0, CLIP / (norm + 1e-6))
                m, v = moments[name]
                m.mul_(BETAS[0]).add_((1 - BETAS[0]) * g)
                v.mul_(BETAS[1]).add_((1 - BETAS[1]) * g * g)
                m_hat = m / (1 - BETAS[0] ** (step + 1))
                v_hat = v / (1 - BETAS[1] ** (step + 1))
                if p.ndim == 2:
                    p.mul_(1 - lr * DECAY)
                p.sub_(lr * m_hat / (v_hat.sqrt() + EPS))
        losses.append(loss.item())

    assert clipped > 0
    assert losses[-1] < losses[0] - 0.1
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=0, atol=1e-6)
    # float64 all the way, where print and JSON cannot have rounded
    for a, b in zip(found, losses, strict=True):
        assert abs(a - b) < 1e-10
    for name, p in run.state.model.named_parameters():
        torch.testing.assert_close(
            p.detach(), dict(model.named_parameters())[name].detach(), rtol=0, atol=1e-10
        )

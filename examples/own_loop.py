"""Muon in a training loop of one's own: a tiny classifier in plain PyTorch.

    python examples/own_loop.py [--steps 200]

Muon takes the matrices of the hidden layers; AdamW takes what looks up or reads out (embeddings and
the head) and every vector. Which parameter belongs to which is the caller's decision here: Muon
refuses what is no matrix, and cannot see that a matrix is an embedding.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintic import Muon

WIDTH, CONTEXT, VOCAB = 64, 8, 32


def batch_of(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return tokens [B, T], and as the class of each row its largest token."""
    tokens_BT = torch.randint(VOCAB, (size, CONTEXT), generator=generator)
    return tokens_BT, tokens_BT.amax(1)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
embed = nn.Embedding(VOCAB, WIDTH)
hidden = nn.Sequential(
    nn.Flatten(),
    nn.Linear(CONTEXT * WIDTH, 4 * WIDTH),
    nn.ReLU(),
    nn.Linear(4 * WIDTH, WIDTH),
    nn.ReLU(),
)
head = nn.Linear(WIDTH, VOCAB)

matrices = [p for p in hidden.parameters() if p.ndim == 2]
vectors = [p for p in hidden.parameters() if p.ndim < 2]
optimizers = [
    Muon(matrices, lr=0.02, scale="aspect"),  # docs/muon.md: which scale goes with which rate
    torch.optim.AdamW([*embed.parameters(), *vectors, *head.parameters()], lr=3e-3),
]
for step in range(steps):
    factor = min(1.0, 2 * (1 - step / steps))  # constant, then linear to 0 over the second half
    for optimizer, lr in zip(optimizers, (0.02, 3e-3), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
    tokens_BT, classes_B = batch_of(256, generator)
    logits_BV = head(hidden(embed(tokens_BT)))
    loss = F.cross_entropy(logits_BV, classes_B)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    if step % 20 == 0 or step == steps - 1:
        print(f"step {step} loss {loss.item():.4f}")

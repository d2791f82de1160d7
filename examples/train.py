"""Train from Python: a recipe with changes, a run; then its losses and its model.

    python examples/train.py runs/example train.steps=100 optim.muon.lr=0.004

As it stands it trains a smaller `laptop` on the text that every Python installation carries.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from quintic import get_recipe, load_trained, read_metrics, start, train_run
from quintic.console import Console

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example")
changes: dict[str, Any] = {"model.layers": 2, "model.value_embeddings": 1, "train.steps": 200}
for argument in sys.argv[2:]:
    field, value = argument.split("=", 1)
    is_word = value.isidentifier() and value not in ("true", "false", "null")
    changes[field] = value if is_word else json.loads(value)

config = get_recipe("laptop").override(changes)
console = Console()
run = start(config, folder, console)
train_run(run, console)  # the loop, with checkpoints; Ctrl-C saves, and `quintic.resume` continues

losses = read_metrics(folder).validation["val_loss"]
trained = load_trained(folder)
logits_BTV = trained.model(torch.zeros((1, 8), dtype=torch.long, device=trained.device))
print(f"validation loss {losses[0]:.3f} to {losses[-1]:.3f}; logits {tuple(logits_BTV.shape)}")

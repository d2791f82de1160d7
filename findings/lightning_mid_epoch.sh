#!/usr/bin/env bash
# Lightning 2.6.6: a checkpoint saved amid an epoch, and `fit(..., ckpt_path=...)` with it, goes on at
# the right step, with the weights and the optimizer's state of then, and with the FIRST batch of the
# epoch again: a plain DataLoader is not moved forward, and nothing says so. The run that was stopped
# and the one that never was see other data from there, and end with other weights. Saved where an
# epoch ends, it is exact. Seen on 2026-11-28 with torch 2.13.0 and torch.optim.AdamW.
# Whoever compares optimizers across a resume there saves at the end of epochs, or gives a loader with
# a state of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q torch==2.13.0 lightning==2.6.6 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import lightning
import torch
from torch import nn

STEPS = 6


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.seen = nn.Linear(1, 1), []

    def training_step(self, batch):
        self.seen.append(int(batch))
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def train(steps, checkpoint=None):
    model = Line()
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    batches = torch.utils.data.DataLoader(torch.arange(float(STEPS)).view(-1, 1))
    trainer.fit(model, batches, ckpt_path=checkpoint)
    return model, trainer


whole, _ = train(STEPS)
half, trainer = train(STEPS // 2)
trainer.save_checkpoint("half.ckpt")
resumed, _ = train(STEPS, "half.ckpt")
equal = torch.equal(whole.line.weight, resumed.line.weight)
print("lightning", lightning.__version__, "torch", torch.__version__)
print("batches of the run that never stopped:", whole.seen)
print("of the stopped one:", half.seen, "and after its resume:", resumed.seen)
print("equal weights:", equal)
assert whole.seen == [0, 1, 2, 3, 4, 5] and half.seen == [0, 1, 2], (whole.seen, half.seen)
assert resumed.seen == [0, 1, 2], resumed.seen
assert not equal
PY

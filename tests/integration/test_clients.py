"""Muon in the training loops of other libraries: stopped, saved, loaded and gone on with, a run is
bit for bit the one that never stopped.

Libraries are of the extra `integration`; a test is skipped where its library is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quintic import MuonWithAdamW, param_groups
from quintic.distributed.world import World
from tests.multiprocess.worlds import run_world

STEPS, HALF = 10, 5


class Words(nn.Module):
    """A model of 16 words that guesses the next."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 16)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTC = self.words(ids_BT)
        for block in self.blocks:
            x_BTC = x_BTC + block(x_BTC).relu()
        logits: Tensor = self.head(x_BTC)
        return logits


def loss_of(model: nn.Module, ids_BT: Tensor) -> Tensor:
    return F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())


def texts() -> Tensor:
    """Two texts of 6 words for each step."""
    return torch.randint(16, (2 * STEPS, 6), generator=torch.Generator().manual_seed(1))


def optimizer_of(model: nn.Module) -> MuonWithAdamW:
    return MuonWithAdamW(param_groups(model, lr=0.02, adamw_lr=3e-3, verbose=False))


def assert_trained_alike(found: nn.Module, expected: nn.Module) -> None:
    start = Words() if isinstance(found, Words) else None
    for (name, p), q in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q), name
        if start is not None:
            assert not torch.equal(p, start.get_parameter(name)), f"{name} was not trained"


def test_transformers_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    data = [{"input_ids": row, "labels": row} for row in texts()]

    def train(folder: str, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            save_steps=HALF,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            lr_scheduler_type="cosine",
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, optimizers=(optimizer_of(model), None)
        )
        trainer.train(**options)
        assert trainer.state.global_step == STEPS
        result: nn.Module = model
        return result

    whole = train("whole")
    resumed = train("resumed", resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{HALF}"))
    assert_trained_alike(resumed, whole)


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def train(first: int, last: int, *, load: bool = False, save: bool = False) -> nn.Module:
        accelerator = accelerate.Accelerator(cpu=True)
        model = Words()
        optimizer = optimizer_of(model)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
        model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
        if load:
            accelerator.load_state(str(tmp_path / "half"))
        for step in range(first, last):
            optimizer.zero_grad()
            accelerator.backward(loss_of(model, texts()[2 * step : 2 * step + 2]))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if save:
            accelerator.save_state(str(tmp_path / "half"))
        result: nn.Module = accelerator.unwrap_model(model)
        return result

    whole = train(0, STEPS)
    train(0, HALF, save=True)
    assert_trained_alike(train(HALF, STEPS, load=True), whole)


def test_lightning_with_automatic_optimization(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Words()

        def training_step(self, batch: Tensor) -> Tensor:
            return loss_of(self.model, batch)

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(self.model)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train(steps: int, checkpoint: Path | None = None) -> tuple[Words, Any]:
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=steps // HALF,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
        )
        # An epoch is half of the steps: Lightning resumes where an epoch ends.
        half = texts()[: 2 * HALF]
        batches: Any = torch.utils.data.DataLoader(half, batch_size=2)  # type: ignore[arg-type]
        trainer.fit(module, batches, ckpt_path=checkpoint)
        return module.model, trainer

    whole, _ = train(STEPS)
    _, half = train(HALF)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = train(STEPS, tmp_path / "half.ckpt")
    assert_trained_alike(resumed, whole)


def train_ddp(model: nn.Module, state: dict[str, Any] | None, world: World, last: int) -> Any:
    """Train on this rank's text of each step; return the optimizer's state."""
    wrapped = DistributedDataParallel(model)
    groups = param_groups(wrapped, lr=0.02, adamw_lr=3e-3, verbose=False)
    optimizer = MuonWithAdamW(groups, process_group=True)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(0 if state is None else HALF, last):
        optimizer.zero_grad()
        loss_of(wrapped, texts()[2 * step + world.rank : 2 * step + world.rank + 1]).backward()
        optimizer.step()
    return optimizer.state_dict()


def ddp_loops(world: World, path: Path) -> list[list[Any]]:
    """Weights of a run that never stopped and of one that did."""
    never, stopped = Words(), Words()
    train_ddp(never, None, world, STEPS)
    state = train_ddp(stopped, None, world, HALF)
    torch.save([stopped.state_dict(), state], path / f"{world.rank}.pt")
    weights, state = torch.load(path / f"{world.rank}.pt", weights_only=True)
    resumed = Words()
    resumed.load_state_dict(weights)
    train_ddp(resumed, state, world, STEPS)
    return [[p.detach().numpy() for p in model.parameters()] for model in (never, resumed)]


def test_a_plain_loop_with_ddp(tmp_path: Path) -> None:
    ranks = run_world(2, ddp_loops, tmp_path)
    start = [p.detach().numpy() for p in Words().parameters()]
    for never, resumed in ranks:
        for p, q, first, of_rank_0 in zip(never, resumed, start, ranks[0][0], strict=True):
            np.testing.assert_array_equal(p, q)
            np.testing.assert_array_equal(p, of_rank_0)
            assert (p != first).any()

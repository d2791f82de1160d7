"""What a run can switch on or off, on several processes: the optimizers that Muon is compared with,
ablations, techniques of the speedrun."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from quintic.distributed.world import World
from tests.multiprocess.test_same_result import (
    STEPS,
    config_of,
    largest_difference,
    resume_here,
    train_here,
)
from tests.multiprocess.worlds import run_world

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None,
    reason="pytorch_optimizer is not installed: pip install quintic[optimizers]",
)
TECHNIQUES: dict[str, Any] = {
    "model.tied_head": False,
    "model.logit_softcap": 15.0,
    "model.embed_norm": True,
    "model.token_smear": True,
    "model.key_smear": True,
    "model.bigram_embeddings": 16,
    "model.value_embeddings": 1,
    "model.x0_skip": True,
    "model.unet_skips": True,
    "model.window": 20,
    "model.document_mask": True,
    "model.eot_id": 5,
    "optim.adamw.scalar_lr": 0.04,
    "optim.muon.weight_decay": 0.1,
    "optim.muon.cautious": True,
}
RUNS: dict[str, dict[str, Any]] = {
    "sgd": {"optim.matrices": "sgd"},
    "sgd, fsdp": {"optim.matrices": "sgd", "train.sharding": "fsdp"},
    "soap": {"optim.matrices": "soap"},
    "shampoo": {"optim.matrices": "shampoo"},
    "normuon": {"optim.muon.normuon": True},
    "polar_express, normuon, fsdp": {
        "optim.muon.ns_coefficients": "polar_express",
        "optim.muon.normuon": True,
        "train.sharding": "fsdp",
    },
    "ablated": {"model.positions": "learned", "model.norm": "layernorm", "model.qk_norm": False},
    "ablated, fsdp": {
        "model.positions": "learned",
        "model.norm": "layernorm",
        "train.sharding": "fsdp",
    },
    "every technique": TECHNIQUES,
    "every technique, fsdp": {**TECHNIQUES, "train.sharding": "fsdp"},
}
# SOAP's basis is arbitrary where the first gradient of a matrix has nothing, and rounding decides:
# another micro-batch on one process changes these losses by 0.03 as well.
TOLERANCE = {"soap": 0.1}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_library) if n in ("soap", "shampoo") else n for n in RUNS],
)
def test_saved_on_two_processes_and_resumed_on_one_equals_one_process_alone(
    name: str, tiny_data: Path, tmp_path: Path
) -> None:
    config = config_of(
        tiny_data, "float64", **{"optim.schedule.cooldown_fraction": 0.0, **RUNS[name]}
    )
    train_here(World(), config, tmp_path / "alone")
    folder = tmp_path / "run"
    run_world(2, train_here, config.override({"train.steps": STEPS // 2}), folder)
    resume_here(World(), config, folder)
    assert largest_difference(tmp_path / "alone", folder) < TOLERANCE.get(name, 1e-9)

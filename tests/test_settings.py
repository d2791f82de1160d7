"""Every setting that makes another run does so: none is printed, saved and applied to nothing.

The fields come from the config itself. One that is new fails here until it has a value to try.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch.distributed.tensor import DTensor

from quintic.config import Config, field_facts
from quintic.console import Console
from quintic.distributed.world import ALONE, World
from quintic.setup import set_up
from quintic.train import apply_schedule, forward_backward
from tests.conftest import tiny_config
from tests.multiprocess.worlds import run_world

Array = npt.NDArray[np.float64]

SMALLEST: dict[str, Any] = {
    "model.width": 16,
    "model.context": 16,
    "model.init": "classic",  # else the first gradient of most matrices is zero
    "train.precision": "float64",
    "train.steps": 3,
    "train.batch_tokens": 64,
    "train.eval_tokens": 16,
}

VALUES: dict[str, tuple[Any, ...]] = {
    "data.order": ("shuffle",),
    "optim.matrices": ("adamw", "sgd"),
    "optim.muon.lr": (0.01,),
    "optim.muon.momentum": (0.9,),
    "optim.muon.momentum_warmup_steps": (2,),
    "optim.muon.nesterov": (False,),
    "optim.muon.scale": ("max_dim", "rms"),
    "optim.muon.ns_steps": (4,),
    "optim.muon.ns_coefficients": ("polar_express",),
    "optim.muon.ns_dtype": ("bfloat16", "float32"),
    "optim.muon.normuon": (True,),
    "optim.muon.beta2": (0.5,),
    "optim.muon.weight_decay": (0.1,),
    "optim.muon.cautious": (True,),
    "optim.adamw.lr": (0.01,),
    "optim.adamw.matrix_lr": (0.01,),
    "optim.adamw.head_lr": (0.01,),
    "optim.adamw.scalar_lr": (0.01,),
    "optim.adamw.betas": ((0.8, 0.95), (0.9, 0.8)),
    "optim.adamw.eps": (1e-7,),
    "optim.adamw.weight_decay": (0.1,),
    "optim.sgd.lr": (0.01,),
    "optim.sgd.momentum": (0.9,),
    "optim.soap.lr": (0.01,),
    "optim.soap.betas": ((0.8, 0.95), (0.95, 0.8)),
    "optim.soap.precondition_frequency": (2,),
    "optim.shampoo.lr": (0.01,),
    "optim.shampoo.betas": ((0.8, 0.95), (0.95, 0.8)),
    "optim.shampoo.precondition_frequency": (2,),
    "optim.custom.lr": (0.01,),
    "optim.custom.options": (("momentum=0.9",), ("weight_decay=0.1",)),
    "optim.schedule.kind": ("cosine",),
    "optim.schedule.warmup_steps": (2,),
    "optim.schedule.cooldown_fraction": (0.7,),
    "optim.clip_norm": (0.1,),
    "train.steps": (4,),
    "train.batch_tokens": (128,),
    "train.batch_stages": (2,),
    "train.seed": (1,),
    "train.precision": ("float32", "bfloat16"),
    "train.mtp_tokens": (2,),
    "train.float8_head": (True,),
}
"""Values of each field that a run of `SMALLEST` does not have, one at a time."""

NEEDS: dict[str, dict[str, Any]] = {
    "optim.muon.beta2": {"optim.muon.normuon": True},
    "optim.muon.cautious": {"optim.muon.weight_decay": 0.1},
    "optim.adamw.matrix_lr": {"optim.matrices": "adamw"},
    "optim.adamw.head_lr": {"model.tied_head": False},
    "optim.adamw.scalar_lr": {"model.x0_skip": True},
    "optim.sgd.": {"optim.matrices": "sgd"},
    "optim.soap.": {"optim.matrices": "soap", "optim.soap.precondition_frequency": 1},
    "optim.shampoo.": {"optim.matrices": "shampoo", "optim.shampoo.precondition_frequency": 1},
    "optim.custom.": {"optim.matrices": "torch.optim:SGD"},
    "train.float8_head": {"train.precision": "float32"},
}
"""What fields, or all fields whose names begin so, need beside them to have an effect."""

ELSEWHERE = {
    "data.embedded_vocab": "another dataset: tests/data/test_corpus.py",
    "train.eval_every": "moves no weight: tests/test_metrics.py",
    "train.eval_tokens": "moves no weight: tests/test_evaluate.py",
}


def needs_of(name: str) -> dict[str, Any]:
    return next((needs for start, needs in NEEDS.items() if name.startswith(start)), {})


def test_every_field_of_another_run_has_a_value_to_try() -> None:
    """All that no resume may change; those of the model are tested by its formulas."""
    facts = field_facts(Config)
    # The last three say where weights began.
    elsewhere = ("model.", "continued_from.", "init_from.", "imported.")
    names = {n for n in facts if facts[n].resume != "free" and not n.startswith(elsewhere)}
    assert names == VALUES.keys() | ELSEWHERE.keys()


def trained(world: World, config: Config) -> dict[str, Array]:
    """Train a run in memory; return its weights by name."""
    run = set_up(config, Path("unused"), Console(quiet=True), world)
    for step in range(config.train.steps):
        run.state.step = step
        apply_schedule(run, step)
        forward_backward(run, run.loader.batch(step, run.rows(step)))
        run.stepper.step(config.optim.clip_norm)
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().numpy()
        for name, p in run.state.model.named_parameters()
    }


Train = Callable[[dict[str, Any]], dict[str, Array]]


@pytest.fixture(scope="module")
def weights(tiny_data: Path) -> Train:
    """Gives the weights of a run of `SMALLEST` with changes; one of equal ones is trained once."""
    found: dict[str, dict[str, Array]] = {}

    def train(changes: dict[str, Any]) -> dict[str, Array]:
        if (key := repr(changes)) not in found:
            found[key] = trained(ALONE, tiny_config(tiny_data, {**SMALLEST, **changes}))
        return found[key]

    return train


@pytest.mark.parametrize("name", VALUES)
def test_two_runs_that_differ_in_one_field_end_with_other_weights(
    name: str, weights: Train
) -> None:
    needs = needs_of(name)
    if needs.get("optim.matrices") in ("soap", "shampoo"):
        pytest.importorskip("pytorch_optimizer")
    one = weights(needs)
    for value in VALUES[name]:
        other = weights({**needs, name: value})
        assert one.keys() == other.keys()
        assert any((p != other[n]).any() for n, p in one.items()), value


def test_two_runs_that_differ_in_nothing_end_with_the_same_weights(
    weights: Train, tiny_data: Path
) -> None:
    again = trained(ALONE, tiny_config(tiny_data, SMALLEST))
    assert all(np.array_equal(p, again[name]) for name, p in weights({}).items())


def every_value_of(*starts: str) -> dict[str, Any]:
    """One value of each field whose name begins so, all in one run."""
    names = [name for name in VALUES if name.startswith(starts)]
    return {name: VALUES[name][0] for name in names if name != "optim.muon.ns_dtype"}


def trained_each(world: World, configs: list[Config]) -> list[dict[str, Array]]:
    return [trained(world, config) for config in configs]


def test_every_setting_acts_on_two_processes_as_on_one(tiny_data: Path) -> None:
    """All at once, but for `ns_dtype`, which rounds what depends on the order of sums."""
    common = {**SMALLEST, **every_value_of("optim.schedule.warmup", "optim.clip")}
    adamw = {**common, **every_value_of("optim.adamw"), "model.tied_head": False}
    muon = {**adamw, **every_value_of("optim.muon"), "model.x0_skip": True}
    del muon["optim.adamw.matrix_lr"], adamw["optim.adamw.scalar_lr"]
    sgd = {**common, **every_value_of("optim.sgd"), "optim.matrices": "sgd"}
    alone = [tiny_config(tiny_data, c) for c in (muon, {**adamw, "optim.matrices": "adamw"}, sgd)]
    configs = [c.override({"train.sharding": s}) for s in ("zero1", "fsdp") for c in alone]
    expected = [trained(ALONE, config) for config in alone]
    for one, shared in zip(2 * expected, run_world(2, trained_each, configs)[0], strict=True):
        assert one.keys() == shared.keys()
        for name, p in one.items():
            np.testing.assert_allclose(shared[name], p, rtol=0, atol=1e-9, err_msg=name)

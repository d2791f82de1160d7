"""The sums of a validation, which are those of one process for any number of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import ALONE, World
from quintic.evaluate import LossSums
from quintic.setup import set_up
from quintic.train import evaluate_run
from tests.conftest import tiny_config
from tests.multiprocess.worlds import run_world


def validated(world: World, config: Config) -> LossSums:
    run = set_up(config, Path("unused"), Console(quiet=True), world)
    evaluate_run(run)
    assert run.validation is not None
    return run.validation


@pytest.mark.parametrize(("size", "sharding"), [(2, "zero1"), (3, "fsdp")])
def test_end_of_text_is_left_out_of_bits_per_byte_on_every_process(
    text_data: Path, size: int, sharding: str
) -> None:
    """25 sequences in batches of 2 on each process: the last batch leaves one without any."""
    changes = {
        **{"model.vocab_size": None, "train.precision": "float64", "train.eval_tokens": 25 * 32},
        **{"train.micro_batch": 2, "train.sharding": sharding},
    }
    config = tiny_config(text_data, changes)
    alone = validated(ALONE, config)
    assert alone.tokens == 25 * 32
    assert alone.text_nats < alone.nats - 1, "there are ends of text"
    for found in run_world(size, validated, config):
        assert found.tokens == alone.tokens
        assert found.nats == pytest.approx(alone.nats, rel=1e-12)
        assert found.text_nats == pytest.approx(alone.text_nats, rel=1e-12)

"""What all tests share: a tiny dataset and a tiny run that trains in a second."""

from pathlib import Path

import numpy as np
import pytest

from quintic.cli import main
from quintic.data.shards import write_shard

TINY_VOCAB = 128


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign folder of shards: 3 x 4,000 training tokens and 2,000 for validation.

    The text is a noisy arithmetic sequence, so that a model can learn something of it.
    """
    folder = tmp_path_factory.mktemp("tiny-data")
    random = np.random.default_rng(0)
    for name, count in (("train_000001", 4000), ("train_000002", 4000), ("train_000003", 4000)):
        write_shard(folder / f"tiny_{name}.bin", _tokens(random, count))
    write_shard(folder / "tiny_val_000000.bin", _tokens(random, 2000))
    return folder


def _tokens(random: np.random.Generator, count: int) -> np.ndarray:
    noise = random.integers(0, 2, count)
    tokens = np.empty(count, dtype=np.uint16)
    tokens[0] = 1
    for i in range(1, count):
        tokens[i] = (3 * int(tokens[i - 1]) + noise[i]) % TINY_VOCAB
    return tokens


@pytest.fixture
def tiny(tiny_data: Path) -> list[str]:
    """The command line of a tiny run: 12 steps, validation every 5, a checkpoint every 4."""
    return tiny_arguments(tiny_data)


def tiny_arguments(data: Path) -> list[str]:
    options = {
        "data.path": data,
        "data.order": "stream",
        "model.layers": 2,
        "model.width": 32,
        "model.heads": 2,
        "model.context": 32,
        "model.vocab-size": TINY_VOCAB,
        "train.batch-tokens": 256,
        "train.steps": 12,
        "train.eval-every": 5,
        "train.eval-tokens": 512,
        "train.checkpoint-every": 4,
        "train.device": "cpu",
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return ["train", "laptop", *flags, "--train.no-tensorboard"]


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run; tests must not change it."""
    folder = tmp_path_factory.mktemp("tiny-run") / "run"
    main([*tiny_arguments(tiny_data), "--out", str(folder)])
    return folder

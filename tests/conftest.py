"""What all tests share: a tiny dataset and a tiny run that trains in a second."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from quintic.config import Config
from quintic.cores import available_cores
from quintic.data.corpus import _dataset_of_tree
from quintic.data.shards import write_shard
from quintic.recipes import get_recipe
from tests import warm

TINY_VOCAB = 128


def main(arguments: list[str]) -> None:
    """The `quintic` command. Imported when it is called, so that tests which need no command line
    also run where its library is absent, as on a GPU machine without network."""
    from quintic.cli.main import main as command

    command(arguments)


def pytest_configure() -> None:
    # Before torch is imported: threads that spin while they wait make a step a hundred times slower
    # where something else runs on the same cores, such as another worker of pytest.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A run would take fewer threads where something else runs, and round otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))
    # A shell that starts the tests in the background makes them ignore Ctrl-C, and with them the
    # commands that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Before triton is imported, by us or by torch.compile: without a GPU it can only interpret.
    if find_spec("triton"):
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that the first of pytest's workers which needs it makes, for all of them; tests must
    not change it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, made = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _quick_figures() -> None:
    import tests.quick_figures  # noqa: F401


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign folder of shards: 3 x 4,000 training tokens and 2,000 for validation.

    The text is a noisy arithmetic sequence, so that a model can learn something of it.
    """

    def make(folder: Path) -> None:
        random = np.random.default_rng(0)
        for name, count in (("train_000001", 4000), ("train_000002", 4000), ("train_000003", 4000)):
            write_shard(folder / f"tiny_{name}.bin", _tokens(random, count))
        write_shard(folder / "tiny_val_000000.bin", _tokens(random, 2000))

    return made_once(tmp_path_factory, "tiny-data", make)


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


def tiny_options(data: Path) -> dict[str, Any]:
    """The fields in which a tiny run differs from `laptop`."""
    return {
        "data.path": str(data),
        "data.order": "stream",
        "model.layers": 2,
        "model.width": 32,
        "model.heads": 2,
        "model.context": 32,
        "model.vocab_size": TINY_VOCAB,
        # What is tuned in `laptop` is fixed here, so that tuning it again changes no test.
        "model.tied_head": True,
        "model.embed_norm": False,
        "model.token_smear": False,
        "model.key_smear": False,
        "model.bigram_embeddings": 0,
        "model.value_embeddings": 0,
        "train.cpu_kernels": "plain",
        "optim.muon.lr": 0.02,
        "optim.adamw.lr": 0.005,
        "optim.schedule.cooldown_fraction": 0.4,
        "train.batch_tokens": 256,
        "train.steps": 12,
        "train.eval_every": 5,
        "train.eval_tokens": 512,
        "train.checkpoint_every": 4,
        "train.device": "cpu",
        "train.sample_tokens": 0,
    }


def tiny_arguments(data: Path) -> list[str]:
    return ["train", "laptop", *flags_of(tiny_options(data)), "--train.no-report", "--train.log-to"]


def flags_of(options: Mapping[str, Any]) -> list[str]:
    """The options of the command line that set dotted fields."""
    flags: list[str] = []
    for key, value in options.items():
        section, _, field = key.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            flags.append(f"--{section}.{'' if value else 'no-'}{field}")
        else:
            flags += [f"--{section}.{field}", str(value)]
    return flags


def tiny_config(data: Path, changes: dict[str, Any] | None = None) -> Config:
    """The config of a tiny run, with dotted fields replaced; where they choose another optimizer or
    schedule, what a tiny run sets of its own goes with it."""
    off = {"train.log_to": (), "train.report": False}
    return get_recipe("laptop").override({**tiny_options(data), **off}).override(changes or {})


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run; tests must not change it."""
    folder = tmp_path_factory.mktemp("tiny-run") / "run"
    main([*tiny_arguments(tiny_data), "--out", str(folder)])
    return folder


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a manifest and a vocabulary of its own, 320 ids; tests must not change it."""
    library = tmp_path_factory.mktemp("text-library")
    for index in range(40):
        functions = (
            f"def function_{index}_{line}(argument, other={line}):\n"
            f"    return argument + {line * index} + other\n\n\n"
            for line in range(12)
        )
        (library / f"module_{index}.py").write_text("".join(functions))
    return _dataset_of_tree(library, 320, tmp_path_factory.mktemp("text-data"))


@pytest.fixture(scope="session")
def text_run(text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that can write text; tests must not change it."""
    folder = tmp_path_factory.mktemp("text-run") / "run"
    vocabulary = ["--model.vocab-size", "None"]
    main([*tiny_arguments(text_data), *vocabulary, "--out", str(folder)])
    return folder


@pytest.fixture
def warm_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a sweep are forked from one that has imported PyTorch."""
    monkeypatch.setattr("subprocess.Popen", warm.Popen)


def refusal(arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("quintic: ")
    assert err.count("\n") == 1
    return err.removeprefix("quintic: ").strip()

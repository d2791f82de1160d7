"""A track of its own: a tiny corpus, a tiny reference, and runs in this process."""

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quintic.config import Config
from quintic.data.dataset import open_dataset
from quintic.data.manifest import SPLITS
from quintic.track.reference import Reference, Target
from quintic.track.texts import Corpus, _documents, summed
from tests.conftest import flags_of, main, tiny_options

TINY = {
    **tiny_options(Path("embedded")),
    "model.vocab_size": None,
}


@pytest.fixture(scope="session")
def tiny_corpus(text_data: Path) -> Corpus:
    dataset = open_dataset(text_data)
    return {split: summed(_documents(dataset, split)) for split in SPLITS}


@pytest.fixture
def tiny_reference(tiny_corpus: Corpus) -> Reference:
    """Which any run of two steps is better than."""
    size = tiny_corpus["val"].bytes
    targets = (Target(size // 2, 9.0), Target(None, 9.0))
    config = Config(recipe="laptop").override({**TINY, "train.steps": 2, "train.seed": 9})
    return Reference("0" * 40, "3.11.7", tiny_corpus, targets, config.to_dict())


@pytest.fixture
def commands() -> list[list[str]]:
    """The command lines of the runs that were started, with the environment's threads."""
    return []


@pytest.fixture
def before_run() -> list[Callable[[list[str]], None]]:
    """Functions that are called with the command line of a run before it begins."""
    return []


@pytest.fixture
def track(
    text_data: Path,
    tiny_corpus: Corpus,
    tiny_reference: Reference,
    commands: list[list[str]],
    before_run: list[Callable[[list[str]], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`quintic track run` of tiny runs, in this process."""

    class InProcess:
        """What `subprocess.Popen` would start, done when it is made."""

        pid = 2**22 + 1

        def __init__(self, command: list[str], *, stdout: Any, env: dict[str, str], **_: Any):
            commands.append([*command[3:], env["OMP_NUM_THREADS"], env.get("GOMP_SPINCOUNT", "")])
            self.returncode, said = 0, io.StringIO()
            for function in before_run:
                function(command)
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    main(command[3:])
                except SystemExit as error:
                    self.returncode = int(error.code or 0)
            stdout.write(said.getvalue().encode())
            stdout.flush()

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr("quintic.track.execute.Popen", InProcess)
    monkeypatch.setattr("quintic.setup.embedded_dataset", lambda *_, **__: text_data)
    monkeypatch.setattr("quintic.track.run.corpus_of_this_python", lambda: tiny_corpus)
    monkeypatch.setattr("quintic.track.run.read_reference", lambda: tiny_reference)
    monkeypatch.setattr("quintic.track.run.read_records", list)
    monkeypatch.setattr("quintic.track.run.available_cores", lambda: 4)
    monkeypatch.setitem(os.environ, "GOMP_SPINCOUNT", "30000")


def asked(folder: Path, *options: str) -> list[str]:
    """The command line of an attempt of two seeds and two pairs, one step a run."""
    words = flags_of({**TINY, "train.steps": 1, "data.embedded_vocab": 2048})
    return ["track", "run", "laptop", *words, "--out", str(folder), *options]


def with_targets(reference: Reference, bits: float) -> Reference:
    return replace(reference, targets=tuple(Target(t.first_bytes, bits) for t in reference.targets))

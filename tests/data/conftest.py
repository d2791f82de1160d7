"""What the tests of the data package share: small trees, small datasets, and material that may be
absent."""

import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

from quintic.data import corpus
from quintic.data.shards import TokenStream, write_shard
from tests.data.hub_server import HubServer

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of 40 small modules, enough for a vocabulary of a few hundred tokens. Not to be
    written to."""
    root = tmp_path_factory.mktemp("library")
    for index in range(40):
        folder = root / ("package" if index % 3 else "package/sub")
        folder.mkdir(parents=True, exist_ok=True)
        body = "\n".join(
            f"def function_{index}_{line}(argument, other={line}):\n"
            f'    """Return the sum of argument and {line * index}."""\n'
            f"    return argument + {line * index} + other\n"
            for line in range(10)
        )
        (folder / f"module_{index}.py").write_text(body)
    return root


@pytest.fixture(scope="session")
def small_dataset(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset built by quintic, with a vocabulary of 320. Not to be written to."""
    return corpus._dataset_of_tree(small_tree, 320, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def make_stream(tmp_path: Path) -> Callable[..., TokenStream]:
    """make_stream(3, 5): two shards of 3 and 5 tokens, which count 0, 1, .. 7."""

    def make(*sizes: int) -> TokenStream:
        ends = np.cumsum(sizes)
        return TokenStream(
            [
                write_shard(tmp_path / f"part_train_{index:06}.bin", np.arange(end - size, end))
                for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
            ]
        )

    return make


@pytest.fixture
def make_foreign(tmp_path: Path) -> Callable[[Sequence[int], Sequence[int]], Path]:
    """A folder as modded-nanogpt lays it out, with the given training and validation tokens."""

    def make(train: Sequence[int], val: Sequence[int]) -> Path:
        folder = tmp_path / "foreign"
        folder.mkdir()
        write_shard(folder / "fineweb_train_000001.bin", train)
        write_shard(folder / "fineweb_val_000000.bin", val)
        return folder

    return make


@pytest.fixture
def gpt2_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's vocabulary without a download, or skip."""
    cached = "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or SHARED / "tiktoken")
    if not (folder / cached).exists():
        pytest.skip(f"GPT-2's vocabulary is not in {folder}; set TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))


@pytest.fixture(scope="session")
def bench_val_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark corpus's validation shard, unpacked, or skip."""
    packed = Path(os.environ.get("QUINTIC_BENCH_DATA") or SHARED / "data")
    packed = packed / "corpus_val_000000.bin.xz"
    if not packed.exists():
        pytest.skip(f"no {packed}; set QUINTIC_BENCH_DATA to the folder of the benchmark corpus")
    shard = tmp_path_factory.mktemp("bench") / "corpus_val_000000.bin"
    shard.write_bytes(lzma.decompress(packed.read_bytes()))
    return shard


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub without repositories, on loopback, and the real client talking to it.

    Processes that a test starts take their settings from the environment; the client in this
    process has read it when it was imported, so its constants are set too.
    """
    with HubServer() as server:
        settings: dict[str, str | bool] = {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # xet's protocol is no part of the server
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(hub_constants, name, value)
            monkeypatch.setenv(name, str(int(value)) if isinstance(value, bool) else value)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1,localhost")
        close_session()  # one of another test may go through a proxy
        yield server
        close_session()

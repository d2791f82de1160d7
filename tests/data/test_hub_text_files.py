"""`quintic data build hub:OWNER/NAME`, with the real client against a server on loopback."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow
import pytest
from pyarrow import parquet

from quintic.cli.main import main
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.build import hub_text_files as module
from quintic.data.build.hub_text_files import HubTextFile, hub_text_files
from quintic.data.build.pipeline import BuildStatus, build_dataset
from quintic.data.build.settings import BuildSettings
from quintic.data.dataset import open_dataset
from quintic.errors import QuinticError
from tests.data.hub_server import HubServer, Repo
from tests.waiting import wait_until

TEXTS = [f"Text number {index} of the hub, and a few words more." for index in range(60)]

CARD = {
    "configs": [
        {"config_name": "sample", "data_files": [{"split": "train", "path": "sample/10BT/*"}]},
        {
            "config_name": "whole",
            "default": True,
            "data_files": [
                {"split": "train", "path": ["data/train-*", "data/**/train*.parquet"]},
                {"split": "test", "path": "data/test-*"},
            ],
        },
        {"config_name": "folder", "data_dir": "extra"},
    ]
}


def rows(texts: list[str]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=7)
    return file.getvalue()


@pytest.fixture
def repo(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repo]:
    """org/texts: a card and files in folders; downloads go to a cache of this test."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    names = {
        "README.md": b"# Texts",
        "data/train-0.parquet": rows(TEXTS[:20]),
        "data/train-1.parquet": rows(TEXTS[20:40]),
        "data/test-0.parquet": rows(TEXTS[40:41]),
        "extra/more.jsonl": b'{"text": "extra"}\n',
        "sample/10BT/000.parquet": rows(TEXTS[41:60]),
        "settings.json": b"{}",
    }
    hub.repos["org/texts"] = Repo(names, card=CARD)
    yield hub.repos["org/texts"]


def files(argument: str) -> list[str]:
    return [file.name.removeprefix("hub:org/texts/") for file in hub_text_files(argument)]


def test_configuration_of_the_card_gives_its_training_files(repo: Repo) -> None:
    assert files("hub:org/texts:sample") == ["sample/10BT/000.parquet"]
    assert files("hub:org/texts:whole") == ["data/train-0.parquet", "data/train-1.parquet"]
    assert files("hub:org/texts") == files("hub:org/texts:whole")
    assert files("hub:org/texts:folder") == ["extra/more.jsonl"]


def test_without_a_card_folders_are_configurations(repo: Repo) -> None:
    repo.card = {}
    assert files("hub:org/texts:sample/10BT") == ["sample/10BT/000.parquet"]
    # Where files say which split they are of, the training ones are taken.
    assert files("hub:org/texts") == ["data/train-0.parquet", "data/train-1.parquet"]
    del repo.files["data/train-0.parquet"], repo.files["data/train-1.parquet"]
    assert files("hub:org/texts") == [
        "data/test-0.parquet",
        "extra/more.jsonl",
        "sample/10BT/000.parquet",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("hub:org/texts:other", "has no configuration 'other': it has sample, whole, folder; see"),
        ("hub:org/absent", "there is no such dataset repository"),
        ("hub:texts", "names no repository: write hub:OWNER/NAME"),
        ("hub:org/texts@v2", "it has no revision 'v2'"),
    ],
)
def test_what_the_hub_does_not_have(repo: Repo, argument: str, message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        hub_text_files(argument)


def test_offline_what_is_cached_is_named_and_can_be_built_from(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as offline:
        offline.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(QuinticError) as nothing_cached:
            hub_text_files("hub:org/texts")
    assert "what was downloaded" not in str(nothing_cached.value)
    for file in hub_text_files("hub:org/texts"):
        file.local_path()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(QuinticError) as caught:
        hub_text_files("hub:org/texts")
    message = str(caught.value)
    assert "http://127.0.0.1:9 cannot be reached" in message
    (folder,) = (tmp_path / "cache" / "datasets--org--texts" / "snapshots").iterdir()
    assert f"what was downloaded of it before is in {folder}: name that folder" in message
    tokenizer = train_bpe(TEXTS, 280).save(tmp_path)
    command: list[Any] = ["data", "build", folder, "--out", tmp_path / "out", "--val-share", 0]
    main([str(argument) for argument in [*command, "--tokenizer", tokenizer]])
    dataset = open_dataset(tmp_path / "out", splits=["train"])
    text = dataset.load_tokenizer().decode(dataset.train.read(0, len(dataset.train)).tolist())
    assert text.split("<|endoftext|>")[1:] == TEXTS[:40]


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_for_it(
    repo: Repo, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()  # a file where the folder should be
    file = hub_text_files("hub:org/texts")[0]
    with pytest.raises(QuinticError) as caught:
        file.local_path()
    assert re.fullmatch(
        rf"hub:org/texts cannot be downloaded into {tmp_path}/cache, huggingface_hub's cache "
        r"\((Not a directory|File exists)\): name a folder with room in HF_HOME",
        str(caught.value),
    )


def test_build_from_the_hub_downloads_each_file_once(
    repo: Repo, hub: HubServer, tmp_path: Path
) -> None:
    tokenizer = train_bpe(TEXTS, 280).save(tmp_path)
    for out in ("one", "two"):
        command: list[Any] = ["data", "build", "hub:org/texts", "--out", tmp_path / out]
        command += ["--tokenizer", tokenizer, "--val-share", 0, "--name", "texts"]
        main([str(argument) for argument in command])
        dataset = open_dataset(tmp_path / out, splits=["train"])
        text = dataset.load_tokenizer().decode(dataset.train.read(0, len(dataset.train)).tolist())
        assert text.split("<|endoftext|>")[1:] == TEXTS[:40]
    gets = [r.path for r in hub.requests if r.method == "GET" and r.path.endswith(".parquet")]
    assert sorted(gets) == [
        f"/datasets/org/texts/resolve/{repo.commit}/data/train-{i}.parquet" for i in (0, 1)
    ]


def test_progress_of_a_download_is_told(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHOW_EVERY_S", 0.001)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    statuses: list[BuildStatus] = []
    update = HubTextFile._count

    def slow(self: HubTextFile, count: int) -> None:
        update(self, count)
        told = len(statuses)
        wait_until(lambda: len(statuses) > told, "a status")

    monkeypatch.setattr(HubTextFile, "_count", slow)
    settings = BuildSettings(("hub:org/texts",), "texts", tokenizer="train:280", val_share=0.0)
    build_dataset(settings, tmp_path / "out", on_progress=statuses.append)
    fractions = [status.fraction for status in statuses if status.stage == "download"]
    assert len(set(fractions)) > 3
    assert 0 < fractions[0] < fractions[-1] <= 1


def test_file_that_cannot_be_downloaded_is_one_line(
    repo: Repo, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file, _) = hub_text_files("hub:org/texts")
    hub.deny = (403, "GatedRepo")
    with pytest.raises(QuinticError, match=r"does not give data/train-0\.parquet: "):
        file.local_path()

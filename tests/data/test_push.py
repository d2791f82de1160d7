"""`quintic data push`, with the real client against a server that speaks the hub's endpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from quintic.cli.main import main
from quintic.data.hub.client import Transfer
from quintic.data.hub.fetch import fetch
from quintic.data.hub.push import push
from quintic.data.shards import write_shard
from quintic.errors import QuinticError
from tests.conftest import refusal
from tests.data.hub_server import HubServer, Repo

REPO = "hub:me/mine"


@pytest.fixture
def login(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub on which we are logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return hub


def test_what_is_pushed_is_fetched_again_byte_for_byte(
    login: HubServer, small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "push", str(small_dataset), REPO])
    assert f"fetch it with: quintic data fetch {REPO}" in capsys.readouterr().out
    pushed = login.repos["me/mine"].files
    local = {path.name: path.read_bytes() for path in small_dataset.iterdir()}
    assert {name: pushed[name] for name in local} == local
    assert pushed.keys() - local.keys() == {"README.md"}
    fetch(REPO, tmp_path / "copy")
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in local} == local


def test_the_card_says_what_it_is_and_how_to_train_on_it(
    login: HubServer, small_dataset: Path
) -> None:
    push(small_dataset, REPO)
    card = login.repos["me/mine"].files["README.md"].decode()
    assert card.startswith("---\npretty_name: mine\n")
    assert "quintic data fetch hub:me/mine\nquintic train modded --data.path data/mine\n" in card
    assert "a byte-level BPE of its own, `tokenizer.json`, 320 ids" in card
    assert "| train | 1 |" in card and "| val | 1 |" in card


def test_a_folder_without_a_manifest_is_pushed_with_its_tokenizer_named(
    login: HubServer, make_foreign: Callable[[Sequence[int], Sequence[int]], Path]
) -> None:
    folder = make_foreign([50256, *range(1000)], [50256, 1, 2])
    push(folder, REPO, tokenizer="gpt2")
    files = login.repos["me/mine"].files
    assert files.keys() == {"README.md", "fineweb_train_000001.bin", "fineweb_val_000000.bin"}
    card = files["README.md"].decode()
    assert "--data.path data/mine --data.tokenizer gpt2\n" in card
    assert "| train | 1 | 1,001 | unknown | unknown |" in card
    assert "GPT-2's (tiktoken's `r50k_base`), 50,257 ids" in card


@pytest.mark.usefixtures("login")
def test_token_files_of_another_tool_are_no_shards_to_push(tmp_path: Path) -> None:
    for split in ("train", "val"):
        np.array([1, 2, 50256], np.uint16).tofile(tmp_path / f"{split}.bin")
    with pytest.raises(QuinticError, match=f"quintic data import {tmp_path} --out OUT, and push"):
        push(tmp_path, REPO, tokenizer="gpt2")


def test_nothing_is_visible_before_everything_is_and_an_interrupted_push_sends_the_rest(
    login: HubServer, tmp_path: Path
) -> None:
    for index in range(6):
        write_shard(tmp_path / f"a_train_{index:06}.bin", [index, 1, 2])
    write_shard(tmp_path / "a_val_000000.bin", [7])

    def interrupt(now: Transfer) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(tmp_path, REPO, on_progress=interrupt)
    assert login.repos["me/mine"].files == {}
    sent = len(login.lfs_objects)
    assert 0 < sent < 7
    seen: list[Transfer] = []
    push(tmp_path, REPO, on_progress=seen.append)
    assert seen[-1].files_done == 7 and seen[-1].bytes_done == seen[-1].bytes_total
    uploads = [request.path for request in login.requests if request.method == "PUT"]
    assert len(uploads) == len(set(uploads)) == 7


def test_a_card_of_the_users_own_stays_and_a_generated_one_is_renewed(
    login: HubServer, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(small_dataset, REPO)
    generated = login.repos["me/mine"].files["README.md"]
    login.repos["me/mine"].files["README.md"] = generated + b"old"
    assert not push(small_dataset, REPO).kept_card
    assert login.repos["me/mine"].files["README.md"] == generated
    login.repos["me/mine"].files["README.md"] = b"my own"
    main(["data", "push", str(small_dataset), REPO])
    assert "has a card of its own, which stays" in capsys.readouterr().out
    assert login.repos["me/mine"].files["README.md"] == b"my own"


def test_a_damaged_dataset_is_refused_before_the_hub_is_asked(
    login: HubServer, small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copytree(small_dataset, tmp_path / "damaged")
    shard = next(folder.glob("*_train_*.bin"))
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    line = refusal(["data", "push", folder, REPO], capsys)
    assert line.startswith(f"{folder} was not pushed, it is damaged: {shard.name} ")
    assert not login.requests


def test_a_repository_with_other_shards_is_refused_unchanged(
    login: HubServer, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login.repos["me/mine"] = Repo({"other_train_000001.bin": b"x"})
    line = refusal(["data", "push", small_dataset, REPO], capsys)
    assert "already holds other_train_000001.bin, which is not of this dataset" in line
    assert login.repos["me/mine"].files == {"other_train_000001.bin": b"x"}


def test_without_a_login_it_is_one_line(
    hub: HubServer, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(["data", "push", small_dataset, REPO], capsys)
    assert "HTTP 401" in line and "log in with `hf auth login`, or set HF_TOKEN" in line


def test_without_permission_it_is_one_line(
    login: HubServer, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login.writable = False
    line = refusal(["data", "push", small_dataset, REPO], capsys)
    assert "HTTP 403" in line and "with a token that may do this" in line


def test_no_network_is_one_line(
    login: HubServer,
    small_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    line = refusal(["data", "push", small_dataset, REPO], capsys)
    assert f"{REPO} cannot be pushed to: http://127.0.0.1:9 cannot be reached" in line


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("me/mine", "write hub:OWNER/NAME"),
        ("hub:mine", "write hub:OWNER/NAME"),
        ("hub:me/mine@v1", "write hub:me/mine"),
    ],
)
def test_a_target_that_is_no_repository_is_one_line(
    small_dataset: Path, capsys: pytest.CaptureFixture[str], target: str, expected: str
) -> None:
    assert expected in refusal(["data", "push", small_dataset, target], capsys)

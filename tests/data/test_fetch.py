"""`quintic data fetch`, with the real client against a server that fails when told to."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
from huggingface_hub import file_download
from huggingface_hub.utils import _http as hub_http

from quintic.cli.main import main
from quintic.data.hub import client
from quintic.data.hub.catalog import fetch_command
from quintic.data.hub.client import Transfer
from quintic.data.hub.fetch import STATE_FOLDER, fetch
from quintic.data.manifest import MANIFEST_FILE, Manifest
from quintic.data.shards import write_shard
from quintic.errors import QuinticError
from tests.conftest import refusal
from tests.data.hub_server import Fault, HubServer, Repo
from tests.waiting import LAST_BOUND_S, outputs, outputs_after_ctrl_c, wait_until

TOKENS = 40_000
NAMES = ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06}.bin" for i in range(1, 8))]
FIVE = NAMES[:6]
"""Five training shards and the validation."""
REPO = "hub:org/data"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that we and the client would have waited between attempts, which nobody waits."""
    pauses: list[float] = []
    monkeypatch.setattr(client, "_PAUSES_S", [0.001] * 4)
    # A server on a busy machine is slow, not silent: it must not be asked twice for being so.
    monkeypatch.setattr(hub_constants, "HF_HUB_DOWNLOAD_TIMEOUT", LAST_BOUND_S)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "3600")  # of the processes that are started
    for module in (file_download, hub_http):
        times = SimpleNamespace(time=time.time, sleep=pauses.append)
        monkeypatch.setattr(module, "time", times)
    return pauses


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A validation shard and seven training shards of 81 kB, as they are on the hub."""
    folder = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(0)
    for name in NAMES:
        write_shard(folder / name, random.integers(0, 50257, TOKENS, dtype=np.uint16))
    return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.fixture
def full_hub(hub: HubServer, shards: dict[str, bytes]) -> HubServer:
    """A hub with these shards as org/data and as FineWeb."""
    hub.repos["org/data"] = Repo(dict(shards))
    hub.repos["kjj0/fineweb10B-gpt2"] = Repo(dict(shards))
    return hub


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def assert_whole(folder: Path, shards: dict[str, bytes], names: list[str]) -> None:
    """Exactly these shards are in the folder, byte for byte, and no part of any."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    assert sorted(found) == sorted(names)
    assert all(found[name] == shards[name] for name in names)
    assert not (folder / STATE_FOLDER / "arriving").exists()


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quintic", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


# The command --------------------------------------------------------------------------------------


def test_fetches_a_ready_made_dataset_into_its_default_folder(
    full_hub: HubServer,
    shards: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["data", "fetch", "fineweb10B", "--shards", "2"])
    assert_whole(tmp_path / "data/fineweb10B", shards, NAMES[:3])
    assert "train  2 shards, 80,000 tokens" in capsys.readouterr().out
    assert full_hub.sent == {name: len(shards[name]) for name in NAMES[:3]}


def test_without_a_number_all_shards_are_fetched_and_nothing_but_the_dataset(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    full_hub.repos["org/data"].files |= {"README.md": b"card", "optimizer.bin": b"x"}
    fetch(REPO, out)
    assert_whole(out, shards, NAMES)
    assert {path.name for path in out.iterdir()} == {*NAMES, STATE_FOLDER}


def test_more_shards_are_added_to_those_that_are_there(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    fetch(REPO, out, shards=2)
    fetch(REPO, out, shards=5)
    fetch(REPO, out, shards=1)
    assert_whole(out, shards, FIVE)
    assert full_hub.sent == {name: len(shards[name]) for name in FIVE}


def test_a_revision_is_fetched_by_its_commit(
    full_hub: HubServer, shards: dict[str, bytes], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = full_hub.repos["org/data"].commit
    fetch(f"{REPO}@{commit}", out, shards=1)
    resolved = [request.path for request in full_hub.requests if "/resolve/" in request.path]
    assert resolved and all(f"/resolve/{commit}/" in path for path in resolved)
    line = refusal(["data", "fetch", f"{REPO}@v2", "--out", out], capsys)
    assert "has no revision 'v2'" in line


def test_the_login_goes_to_the_hub_and_not_to_the_storage_it_redirects_to(
    full_hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(REPO, out, shards=1)
    with_login = {r.path.split("/")[1] for r in full_hub.requests if "authorization" in r.headers}
    without = {r.path.split("/")[1] for r in full_hub.requests if "authorization" not in r.headers}
    assert (with_login, without) == ({"api", "datasets"}, {"cdn"})


def test_progress_counts_every_byte_once_and_ends_at_the_total(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    full_hub.faults["*"] = ["cut", "corrupt"]
    seen: list[Transfer] = []
    fetch(REPO, out, shards=5, on_progress=seen.append)
    total = sum(len(shards[name]) for name in FIVE)
    assert seen[0] == Transfer(0, total, 0, 6)
    assert seen[-1] == Transfer(total, total, 6, 6)
    assert all(0 <= now.bytes_done <= total for now in seen)


def test_shards_are_fetched_in_parallel(full_hub: HubServer, out: Path) -> None:
    meeting = threading.Barrier(6)  # broken unless six downloads are under way together
    original = full_hub.fault_of

    def fault_of(name: str) -> Fault | None:
        meeting.wait(LAST_BOUND_S)
        return original(name)

    full_hub.fault_of = fault_of  # type: ignore[method-assign]
    fetch(REPO, out, shards=5)
    assert not meeting.broken


# A server that fails ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "copies"),
    [
        (["429"], 1),
        (["500"], 1),
        (["cut"], 1.5),
        (["slow"], 1),
        (["length"], 1.5),
        (["corrupt"], 2),
        (["500", "cut", "429", "cut", "cut", "slow"], 2.5),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_every_way_of_failing_ends_with_whole_shards(
    full_hub: HubServer,
    shards: dict[str, bytes],
    out: Path,
    faults: list[Fault],
    copies: float,
) -> None:
    full_hub.faults["*"] = faults
    fetch(REPO, out, shards=5)
    assert_whole(out, shards, FIVE)
    for name in FIVE:
        assert len(shards[name]) <= full_hub.sent[name] <= copies * len(shards[name])


def test_a_server_that_falls_silent_is_asked_again(
    full_hub: HubServer, shards: dict[str, bytes], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    full_hub.faults["*"] = ["stall"]
    fetch(REPO, out, shards=5)
    assert_whole(out, shards, FIVE)
    for name in FIVE:
        assert len(full_hub.gets(name)) >= 2


def test_a_busy_listing_is_asked_for_again(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    full_hub.listing_faults = ["500", "429"]
    fetch(REPO, out, shards=1)
    assert_whole(out, shards, NAMES[:2])


def test_a_server_that_asks_to_wait_is_not_asked_before(
    full_hub: HubServer, out: Path, quick: list[float]
) -> None:
    full_hub.busy_headers = {"Retry-After": "60"}
    full_hub.faults[NAMES[0]] = ["429"]
    fetch(REPO, out, shards=1)
    assert len(full_hub.gets(NAMES[0])) == 2
    assert len(quick) == 1 and quick[0] >= 60


def test_a_server_that_never_answers_is_given_up_and_whole_shards_are_kept(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    full_hub.faults[NAMES[1]] = ["500"] * 20
    with pytest.raises(QuinticError, match=f"does not give {NAMES[1]}: .*500"):
        fetch(REPO, out, shards=1)
    assert len(full_hub.gets(NAMES[1])) == 1 + len(client._PAUSES_S)
    assert not (out / NAMES[1]).exists()
    full_hub.faults.clear()
    fetch(REPO, out, shards=1)
    assert_whole(out, shards, NAMES[:2])
    assert full_hub.sent == {name: len(shards[name]) for name in NAMES[:2]}


def test_a_shard_that_is_damaged_twice_is_refused_and_never_visible(
    full_hub: HubServer, out: Path
) -> None:
    full_hub.faults[NAMES[1]] = ["corrupt", "corrupt"]
    with pytest.raises(QuinticError, match="another checksum than its source gives"):
        fetch(REPO, out, shards=1)
    assert not (out / NAMES[1]).exists()
    assert not list((out / STATE_FOLDER).rglob(f"{NAMES[1]}*"))


def test_a_shard_with_a_wrong_header_is_never_visible(
    full_hub: HubServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = full_hub.repos["org/data"].files[NAMES[1]]
    full_hub.repos["org/data"].files[NAMES[1]] = b"\0" * 1024 + content[1024:]
    line = refusal(["data", "fetch", REPO, "--out", out], capsys)
    assert f"{NAMES[1]} was not kept" in line and "is not a token shard" in line
    assert not (out / NAMES[1]).exists()
    assert full_hub.sent[NAMES[1]] == len(content)  # right by its checksum: not fetched twice


# Interrupted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_fetch_that_was_killed_keeps_whole_shards_and_fetches_the_others(
    full_hub: HubServer, shards: dict[str, bytes], out: Path, number: signal.Signals
) -> None:
    full_hub.faults[FIVE[-1]] = ["hold"]
    process = started("data", "fetch", REPO, "--shards", 5, "--out", out)
    wait_until(
        lambda: len(list(out.glob("*.bin"))) == 5 and full_hub.sent[FIVE[-1]] > 0,
        "all but one",
        alive=lambda: process.poll() is None,
    )
    if number == signal.SIGINT:
        outputs_after_ctrl_c(process)
    else:
        process.send_signal(number)
        outputs(process)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    full_hub.released.set()
    for name in FIVE[:-1]:
        assert (out / name).read_bytes() == shards[name]
    assert not (out / FIVE[-1]).exists()
    fetch(REPO, out, shards=5)
    assert_whole(out, shards, FIVE)
    assert all(len(full_hub.gets(name)) == 1 for name in FIVE[:-1])
    assert len(full_hub.gets(FIVE[-1])) == 2


def test_ctrl_c_does_not_wait_for_a_silent_server(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    full_hub.faults["*"] = ["hold"]
    process = started("data", "fetch", REPO, "--shards", 5, "--out", out)
    halves = sum(len(shards[name]) // 2 for name in FIVE)
    wait_until(
        lambda: full_hub.sent.total() >= halves,
        "one half of each",
        alive=lambda: process.poll() is None,
    )
    outputs_after_ctrl_c(process)
    assert process.returncode == 130
    full_hub.released.set()
    fetch(REPO, out, shards=5)
    assert_whole(out, shards, FIVE)


def test_two_processes_fetch_once(full_hub: HubServer, shards: dict[str, bytes], out: Path) -> None:
    full_hub.faults["*"] = ["hold"]
    command = ("data", "fetch", REPO, "--shards", 5, "--out", out)
    first = started(*command)
    wait_until(
        lambda: full_hub.sent.total() > 0, "a first byte", alive=lambda: first.poll() is None
    )
    second = started(*command)
    assert second.stdout is not None
    assert "another process is fetching" in second.stdout.readline()
    full_hub.released.set()
    said = [outputs(process) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert_whole(out, shards, FIVE)
    assert full_hub.sent == {name: len(shards[name]) for name in FIVE}


# What is in the folder ----------------------------------------------------------------------------


def test_shards_from_elsewhere_are_verified_and_not_fetched(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    out.mkdir()
    for name in FIVE:
        (out / name).write_bytes(shards[name])
    fetch(REPO, out, shards=5)
    assert full_hub.sent.total() == 0


@pytest.mark.parametrize("change", ["other content", "other length"])
def test_a_shard_that_is_not_the_hubs_is_neither_overwritten_nor_kept_silently(
    full_hub: HubServer,
    shards: dict[str, bytes],
    out: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    out.mkdir()
    if change == "other content":
        (out / NAMES[1]).write_bytes(shards[NAMES[2]])
    else:
        write_shard(out / NAMES[1], [1, 2, 3])
    before = (out / NAMES[1]).read_bytes()
    line = refusal(["data", "fetch", REPO, "--shards", 1, "--out", out], capsys)
    assert f"{out / NAMES[1]} is another file than" in line
    assert (out / NAMES[1]).read_bytes() == before


def test_a_damaged_shard_is_fetched_again(
    full_hub: HubServer, shards: dict[str, bytes], out: Path
) -> None:
    fetch(REPO, out, shards=2)
    (out / NAMES[1]).write_bytes(shards[NAMES[1]][:5000])
    said: list[str] = []
    fetch(REPO, out, shards=2, log=said.append)
    assert_whole(out, shards, NAMES[:3])
    assert said == [f"{out / NAMES[1]} is damaged: fetching it again"]


def test_a_folder_with_another_dataset_is_refused_untouched(
    full_hub: HubServer, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tiny_data.iterdir())
    line = refusal(["data", "fetch", REPO, "--out", tiny_data], capsys)
    assert "already holds tiny_train_000001.bin, which is not of this dataset" in line
    assert sorted(tiny_data.iterdir()) == before


def test_a_disk_too_small_is_refused_before_the_first_byte(
    full_hub: HubServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_hub.repos["org/data"].claimed_sizes[NAMES[1]] = 10**17
    line = refusal(["data", "fetch", REPO, "--out", out], capsys)
    assert "has no room: 100,000,000,001 MB are to be fetched" in line and "--shards" in line
    assert full_hub.sent.total() == 0 and not out.exists()


def test_a_disk_that_fills_up_is_one_line_and_the_fetch_continues_once_there_is_room(
    full_hub: HubServer, shards: dict[str, bytes], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        line = refusal(["data", "fetch", REPO, "--shards", 1, "--out", out], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in line and not list(out.glob("*.bin"))
    fetch(REPO, out, shards=1)
    assert_whole(out, shards, NAMES[:2])
    assert all(len(full_hub.gets(name)) <= 2 for name in NAMES[:2])


def test_a_folder_that_cannot_be_made_is_one_line(
    full_hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    line = refusal(["data", "fetch", REPO, "--out", tmp_path / "file/out"], capsys)
    assert "Not a directory" in line


# What a user gets wrong ---------------------------------------------------------------------------


def test_an_unknown_name_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean fineweb10B?" in refusal(["data", "fetch", "fineweb-10b"], capsys)


@pytest.mark.parametrize("name", ["hub:fineweb", "hub:a/b/c", "hub:../x", "http://[", "data/x"])
def test_a_source_that_is_none_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in refusal(["data", "fetch", name], capsys)


def test_a_web_address_says_what_to_do_instead(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["data", "fetch", "https://example.org/shards/"], capsys)
    assert "hub:OWNER/NAME" in line and "--data.path" in line


@pytest.mark.parametrize("count", [0, -1])
def test_no_shards_are_refused_before_the_network_is_asked(
    out: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    line = refusal(["data", "fetch", REPO, "--shards", count, "--out", out], capsys)
    assert f"--shards is {count}: it must be at least 1; leave it out for all" in line
    assert not out.exists()


def test_more_shards_than_there_are_is_one_line(
    full_hub: HubServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(["data", "fetch", REPO, "--shards", 8, "--out", out], capsys)
    assert "has 7 training shards" in line and "ask for 1 to 7" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("deny", "expected"),
    [
        (None, "there is no such dataset repository"),
        ((401, "RepoNotFound"), "if it is private, log in with `hf auth login`, or set HF_TOKEN"),
        ((401, ""), "log in with `hf auth login`, or set HF_TOKEN"),
        ((403, "GatedRepo"), "it is gated; accept its conditions on"),
        ((403, ""), "the hub denies permission (HTTP 403)"),
        ((410, ""), "410"),
    ],
)
def test_a_repository_that_is_missing_or_forbidden_is_one_line(
    hub: HubServer,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    deny: tuple[int, str] | None,
    expected: str,
) -> None:
    hub.deny = deny
    line = refusal(["data", "fetch", "hub:org/private", "--out", out], capsys)
    assert line.startswith("hub:org/private cannot be listed: ") and expected in line
    assert not out.exists() and len(hub.requests) == 1


def test_a_file_that_is_forbidden_is_one_line(
    full_hub: HubServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_hub.faults[NAMES[0]] = ["403"]
    line = refusal(["data", "fetch", REPO, "--shards", 1, "--out", out], capsys)
    assert NAMES[0] in line and "denies permission (HTTP 403)" in line


def test_a_repository_without_shards_is_one_line(
    hub: HubServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["org/model"] = Repo({"pytorch_model.bin": b"x"})
    line = refusal(["data", "fetch", "hub:org/model", "--out", out], capsys)
    assert "has no train shards: expected files named *_train_*.bin" in line
    assert not out.exists()


def test_no_network_is_one_line(
    hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    line = refusal(["data", "fetch", REPO, "--out", out], capsys)
    assert "http://127.0.0.1:9 cannot be reached (ConnectError: " in line
    assert "check the network" in line and not out.exists()


def test_offline_mode_says_so_in_one_line_and_asks_nobody(full_hub: HubServer, out: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "quintic", "data", "fetch", REPO, "--out", out],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "HF_HUB_OFFLINE is set; unset it" in done.stderr
    assert not full_hub.requests and not out.exists()


def test_what_is_in_place_needs_no_network(
    full_hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(REPO, out, shards=2)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said: list[str] = []
    assert len(fetch(REPO, out, shards=2, log=said.append).train.shards) == 2
    assert "cannot be reached" in said[0] and f"already in {out}" in said[0]
    with pytest.raises(QuinticError, match="cannot be reached"):
        fetch(REPO, out, shards=3)
    with pytest.raises(QuinticError, match="cannot be reached"):
        fetch("fineweb10B", out, shards=2)


# Datasets with a manifest -------------------------------------------------------------------------


@pytest.fixture
def own_repo(hub: HubServer, small_dataset: Path) -> Repo:
    """A dataset that quintic built, with a second training shard, as org/own."""
    files = {path.name: path.read_bytes() for path in small_dataset.iterdir() if path.is_file()}
    manifest = json.loads(files[MANIFEST_FILE])
    record = next(record for record in manifest["shards"] if record["split"] == "train")
    second = {**record, "file": record["file"].replace("_train_", "_train_1")}
    files[second["file"]] = files[record["file"]]
    manifest["shards"].append(second)
    files[MANIFEST_FILE] = json.dumps(manifest).encode()
    hub.repos["org/own"] = Repo(files)
    return hub.repos["org/own"]


def test_a_dataset_of_quintics_own_arrives_with_tokenizer_and_manifest(
    own_repo: Repo, out: Path
) -> None:
    fetch("hub:org/own", out)
    main(["data", "check", str(out)])
    assert (out / "tokenizer.json").read_bytes() == own_repo.files["tokenizer.json"]


def test_the_manifest_lists_the_shards_that_were_fetched(own_repo: Repo, out: Path) -> None:
    fetch("hub:org/own", out, shards=1)
    assert len(Manifest.read(out).shards) == 2
    main(["data", "check", str(out)])
    fetch("hub:org/own", out)
    assert len(Manifest.read(out).shards) == 3
    main(["data", "check", str(out)])


# Training on it -----------------------------------------------------------------------------------

TINY_MODDED = {
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 1,
    "model.context": 32,
    "train.device": "cpu",
    "train.steps": 2,
    "train.batch-tokens": 128,
    "train.eval-every": 2,
    "train.eval-tokens": 128,
}


def test_modded_trains_on_what_was_fetched(
    full_hub: HubServer, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "fetch", "fineweb10B", "--shards", "2", "--out", str(out)])
    run = tmp_path / "run"
    options = [word for key, value in TINY_MODDED.items() for word in (f"--{key}", str(value))]
    command = ["train", "modded", "--data.path", str(out), *options]
    off = ["--train.no-compile", "--train.no-report", "--train.sample-tokens", "0"]
    main([*command, *off, "--train.log-to", "--out", str(run)])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {0, 1} <= {record["step"] for record in records}


def test_a_recipe_whose_data_is_missing_suggests_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    modded = refusal(["train", "modded", "--train.no-compile", "--train.device", "cpu"], capsys)
    assert "fetch it with `quintic data fetch fineweb10B --shards 27`" in modded
    (tmp_path / "data/fineweb10B" / STATE_FOLDER).mkdir(parents=True)  # nothing has arrived yet
    gpt2 = refusal(["train", "gpt2", "--train.no-compile", "--train.device", "cpu"], capsys)
    assert "`quintic data fetch fineweb10B --shards 99`" in gpt2
    assert not (tmp_path / "runs").exists()


def test_the_suggested_command_names_the_folder_unless_it_is_the_default() -> None:
    assert fetch_command(Path("data/fineweb10B"), 1) == "quintic data fetch fineweb10B --shards 1"
    elsewhere = fetch_command(Path("/disk/finewebedu10B"), 10**12)
    assert elsewhere == "quintic data fetch finewebedu10B --shards 99 --out /disk/finewebedu10B"
    assert fetch_command(Path("data/own"), 1) is None

"""What earlier processes left in the store deceives nobody: every start has a name of its own."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from quintic.cli.main import main
from quintic.distributed import rendezvous
from quintic.distributed.rendezvous import HELLO, MEETING_TIMEOUT, NOTICE_S, rendezvous_barrier
from quintic.errors import LostRankError, QuinticError
from tests.waiting import LAST_BOUND_S, wait_until


def call(store: HashStore, rank: int, size: int, after_s: float = 0.0) -> str:
    time.sleep(after_s)
    start, own_store = rendezvous_barrier(store, rank, size, LAST_BOUND_S)
    own_store.add("arrived", 1)
    wait_until(lambda: own_store.add("arrived", 0) >= size, "all ranks")
    assert own_store.add("arrived", 0) == size, "others' keys, or not all of this start's"
    return start


def all_call(store: HashStore, size: int, late: int | None = None) -> set[str]:
    with ThreadPoolExecutor(size) as pool:
        calls = [
            pool.submit(call, store, rank, size, 0.3 if rank == late else 0.0)
            for rank in range(size)
        ]
        return {each.result() for each in calls}


@pytest.mark.parametrize("late", [None, 0, 2])
def test_each_start_has_one_name_on_all_ranks_also_where_a_rank_comes_late(
    late: int | None,
) -> None:
    store = HashStore()
    names = [all_call(store, 3, late) for _ in range(3)]
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names)) == 3


def test_a_start_that_was_cut_short_and_one_of_another_size_are_not_answered() -> None:
    store = HashStore()
    with pytest.raises(TimeoutError, match="no answer from rank 1, 2 in 0 s"):
        rendezvous_barrier(store, 0, 3, 0.2)
    first = all_call(store, 3)
    store.set(HELLO.format(1), "dead")
    with pytest.raises(TimeoutError, match="no answer from the processes of an earlier start"):
        rendezvous_barrier(store, 0, 3, 0.2)
    assert len({*first, *all_call(store, 3), *all_call(store, 2), *all_call(store, 4)}) == 4


def test_a_second_process_with_the_place_of_rank_0_ends_the_first() -> None:
    store = HashStore()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(rendezvous_barrier, store, 0, 2, LAST_BOUND_S)
        wait_until(lambda: store.check([HELLO.format(0)]), "rank 0", alive=lambda: not first.done())
        store.set(HELLO.format(0), "another")
        with pytest.raises(RuntimeError, match="another process has begun as rank 0"):
            first.result()


def test_who_is_missing_is_said_long_before_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert NOTICE_S <= 30 < MEETING_TIMEOUT.total_seconds()
    monkeypatch.setattr(rendezvous, "NOTICE_S", 0.3)
    with ThreadPoolExecutor(2) as pool:
        store = HashStore()
        for waits in [pool.submit(rendezvous_barrier, store, rank, 4, 1.0) for rank in (1, 3)]:
            with pytest.raises(TimeoutError, match="no answer from rank 0, 2 in 1 s"):
                waits.result()
    said = capsys.readouterr().err.splitlines()
    assert 1 <= len(said) <= 3
    for line in said:
        assert line.startswith(
            f"quintic: rank 1 of 4 on {socket.gethostname()} waits for rank 0, 2,"
        )
        assert line.endswith("if this is to be a run of one process, unset WORLD_SIZE and RANK")


def launched(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = str(unused.getsockname()[1])
    usual = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {**usual, **environment}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("rank", "waits_for", "reason"),
    [
        (0, "rank 1, for", "no answer from rank 1"),
        (1, "rank 0 at localhost:", "client socket has|timed out|Timed out"),
    ],
)
def test_a_process_whose_environment_names_others_says_for_whom_it_waits(
    rank: int,
    waits_for: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched(monkeypatch, RANK=str(rank))
    say = rendezvous._say_waiting

    def say_and_give_up(*words: Any) -> None:
        say(*words)
        monkeypatch.setattr(rendezvous, "MEETING_TIMEOUT", timedelta(0))

    # Rank 1 speaks when it has failed to connect, however long that takes, and gives up then.
    monkeypatch.setattr(rendezvous, "NOTICE_S", 1.0)
    monkeypatch.setattr(rendezvous, "MEETING_TIMEOUT", timedelta(seconds=5 if rank == 0 else 600))
    monkeypatch.setattr(rendezvous, "_say_waiting", say_and_give_up)
    with pytest.raises(LostRankError, match=reason) as caught:
        rendezvous.connect("cpu")
    assert f"rank {rank} on {socket.gethostname()} could not meet" in str(caught.value)
    said = capsys.readouterr().err.splitlines()
    assert f"rank {rank} of 2 on {socket.gethostname()} waits for {waits_for}" in said[0]
    assert said[0].endswith("unset WORLD_SIZE and RANK")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment: .*unset it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment: .*unset it"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 and RANK is not set: .*unset WORLD_SIZE$"),
        ({"RANK": "2"}, "RANK is 2, of WORLD_SIZE 2"),
        ({"RANK": "0", "MASTER_PORT": "x"}, "invalid literal"),
    ],
)
def test_what_is_left_over_of_another_start_is_named(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    launched(monkeypatch, **environment)
    with pytest.raises(QuinticError, match=message):
        rendezvous.connect("cpu")


def test_procs_in_a_process_of_several_is_refused(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched(monkeypatch, RANK="0")
    with pytest.raises(SystemExit) as ended:
        main([*tiny, "--out", str(tmp_path / "run"), "--procs", "2"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "quintic: --procs 2 starts processes of its own, and WORLD_SIZE is 2 in the environment, "
        "as if this were one of several already: unset WORLD_SIZE and RANK, or leave --procs out\n"
    )

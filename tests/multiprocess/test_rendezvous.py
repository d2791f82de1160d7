"""What earlier processes left in the store deceives nobody: every start has a name of its own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._C._distributed_c10d import HashStore

from quintic.distributed.rendezvous import HELLO, rendezvous_barrier
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

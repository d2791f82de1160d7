"""Independent work on a CPU side by side, each piece on one thread.

A product of two matrices of a few hundred rows divides badly among threads, and its pieces have to
wait for each other after each of a hundred products; whole matrices side by side need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all of these, as many at a time as PyTorch computes with threads, each with one.

    Raises what a task raised; those that have not begun are then left out.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(tasks))
    if workers < 2:
        for task in tasks:
            task()
        return
    # PyTorch's number is a thread's own, but also that of threads to come: it is set back.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for done in [pool.submit(task) for task in tasks]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)

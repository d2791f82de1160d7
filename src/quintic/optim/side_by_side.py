"""Independent work on a CPU side by side, each piece on one thread.

A product of two matrices of a few hundred rows divides badly among threads, and its pieces have to
wait for each other after each of a hundred products; whole matrices side by side need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

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
    began = Barrier(workers + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes over the program's number when it first asks
        began.wait()

    pool = ThreadPoolExecutor(workers, initializer=begin)
    try:
        results = [pool.submit(task) for task in tasks]
        began.wait()
        # PyTorch's number is a thread's own, but also that of all threads that begin to use it
        # from now on, here or elsewhere in the program: it is set back at once.
        torch.set_num_threads(threads)
        for result in results:
            result.result()
    finally:
        began.abort()  # where not all could be started
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)

"""Independent work on a CPU side by side, each piece on one thread.

A product of two matrices of a few hundred rows divides badly among threads, and its pieces have to
wait for each other after each of a hundred products; whole matrices side by side need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Semaphore, Thread

import torch


def workers_for(tasks: Sequence[object]) -> int:
    """Return how many of these are done at a time."""
    return min(torch.get_num_threads(), len(tasks))


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all of these, as many at a time as PyTorch computes with threads, each with one.

    Raises what a task raised; those that have not begun are then left out.
    """
    threads, workers = torch.get_num_threads(), workers_for(tasks)
    if workers < 2:
        for task in tasks:
            task()
        return
    waiting, errors = iter(tasks), list[BaseException]()
    ready = Semaphore(0)

    def work() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes over the program's number when it first asks
        ready.release()
        for task in waiting:  # that of a list gives each to one thread
            try:
                task()
            except BaseException as error:
                errors.append(error)
            if errors:
                return

    started: list[Thread] = []
    try:
        for _ in range(workers):
            thread = Thread(target=work, name="side by side")
            thread.start()
            started.append(thread)
        for _ in started:
            ready.acquire()
        # PyTorch's number is a thread's own, but also that of all threads that begin to use it
        # from now on, here or elsewhere in the program: it is set back at once.
        torch.set_num_threads(threads)
        for thread in started:
            thread.join()
    except BaseException as error:  # a Ctrl-C, or a thread that cannot be started
        errors.append(error)
    finally:
        for thread in started:
            thread.join()
        torch.set_num_threads(threads)
    if errors:
        raise errors[0]

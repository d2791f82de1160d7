"""Work that nothing waits for at the end of the process."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def in_background(action: Callable[[], T]) -> Future[T]:
    """Begin an action in a thread of its own, and return its future.

    Unlike those of a ThreadPoolExecutor, the thread is not waited for at the end of the process:
    one that waits for a silent server, or for gigabytes, cannot be told of a Ctrl-C.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except Exception as error:  # for whoever asks for the result
            future.set_exception(error)

    Thread(target=run, name="background", daemon=True).start()
    return future

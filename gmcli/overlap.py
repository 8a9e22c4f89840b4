"""Let reading go on while something else computes."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.1


@contextmanager
def ahead(source: Iterator[T], depth: int) -> Iterator[Iterator[T]]:
    """Run an iterator in a thread, at most `depth` values ahead of who takes them, so that memory stays bounded.

    Use as a context: on leaving it the thread has ended, whether all values were taken or not. What the iterator raises
    is raised where its next value would have been taken.
    """
    values: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None, bool]) -> bool:
        while not stop.is_set():
            try:
                values.put(entry, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for value in source:
                if not put((value, None, False)):
                    return
        except BaseException as error:
            put((None, error, True))
        else:
            put((None, None, True))

    def taken() -> Iterator[T]:
        while True:
            value, error, end = values.get()
            if error is not None:
                raise error
            if end:
                return
            yield value  # type: ignore[misc]

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        thread.join()

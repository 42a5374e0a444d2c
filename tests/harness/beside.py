"""Work of a thread beside a block: at most as long as the block, and its failure is the block's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """`work(stop)` in a thread while the block runs; `stop` is set where the block ends, and what `work` raised is
    raised there."""
    stop, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def paced(work: Callable[[], object], per_s: float, stop: threading.Event) -> None:
    """Call `work` so many times a second until `stop`, whether or not it keeps up (an open loop)."""
    due_s = time.monotonic()
    while not stop.wait(max(0.0, due_s - time.monotonic())):
        work()
        due_s += 1 / per_s

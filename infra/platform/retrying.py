"""Trying again what a dependency's absence has failed: in place, so that order is kept, and ever less often.

The schedule is pure; `retry` is the loop around it for coroutines. Loops that have more to do than wait take the
schedule alone. `locked` tries for a lock that another process holds.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
LOCK_WAIT_S = 0.1


class BackOff:
    """Waits, each twice as long as the one before, from `first` to `longest`; of whatever unit."""

    def __init__(self, first: float = FIRST_WAIT_S, longest: float = LONGEST_WAIT_S) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def next(self) -> float:
        wait, self._next = self._next, min(2 * self._next, self._longest)
        return wait

    def reset(self) -> None:
        """Begin with `first` again."""
        self._next = self._first


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    is_absence: Callable[[Exception], bool],
    report: Callable[[Exception, float], None],
    waits: BackOff | None = None,
) -> T:
    """Return what `call` answers, however long the other side is away; `report` is told each error and the seconds to
    the next try. Raises what is no absence."""
    waits = waits or BackOff()
    while True:
        try:
            return await call()
        except Exception as error:
            if not is_absence(error):
                raise
            wait_s = waits.next()
            report(error, wait_s)
        await asyncio.sleep(wait_s)


@contextmanager
def locked(path: Path, go_on: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be. While another process has it, `go_on` is called before each
    next try; what it raises ends the wait."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                go_on()
                time.sleep(LOCK_WAIT_S)
        yield

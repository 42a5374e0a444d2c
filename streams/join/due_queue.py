"""A queue of names by the event time at which they are due: finding these costs nothing for the others."""

from __future__ import annotations

from heapq import heappop, heappush


class DueQueue:
    """At most one time for each name. A changed time leaves an entry behind that is passed over when it comes up."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._due_ms: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._due_ms)

    def put(self, name: str, due_ms: int | None) -> None:
        """Set or change a name's time; None: it is not due at all."""
        if due_ms is None:
            self._due_ms.pop(name, None)
        elif self._due_ms.get(name) != due_ms:
            self._due_ms[name] = due_ms
            heappush(self._heap, (due_ms, name))

    def take(self, until_ms: int, most: int) -> tuple[list[str], int]:
        """Take out those who are due, and up to when these are all: `until_ms`, or earlier when there are more than
        `most` (who are due together are taken together)."""
        taken: list[str] = []
        last_ms = -1
        while self._heap and self._heap[0][0] <= until_ms:
            due_ms, name = self._heap[0]
            if len(taken) >= most and due_ms > last_ms:
                return taken, due_ms - 1
            heappop(self._heap)
            if self._due_ms.get(name) == due_ms:
                del self._due_ms[name]
                taken.append(name)
                last_ms = due_ms
        return taken, until_ms

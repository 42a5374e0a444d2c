"""The admission of new items: those get a row that have been watched often enough.

A stream brings ids that are seen once and never again; each row they would take costs memory in the trainer and a
write to the index (Monolith, 2022). Candidates are counted in bounded memory: when it is full, the one that has waited
longest without another watch is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict

CAPACITY = 100_000


class Admission:
    """Counts the watches of items that have no row yet."""

    def __init__(self, after: int, capacity: int = CAPACITY) -> None:
        """An item is admitted with its watch number `after`."""
        self._after, self._capacity = after, capacity
        self._counts: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def admits(self, item_id: str) -> bool:
        """Count one watch; whether the item may have a row from now on."""
        count = self._counts.pop(item_id, 0) + 1
        if count >= self._after:
            return True
        self._counts[item_id] = count
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)
        return False

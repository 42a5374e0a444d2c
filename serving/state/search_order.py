"""Decides who is asked first for candidates, where the settings leave it open (`serving.first` is `auto`).

The index and the exact mirror find the same items; what differs is how long they take. A small catalogue is compared
whole in less time than a call to Milvus takes, above all where Milvus shares the processor; a large one is not. So the
quicker one of late goes first: whoever is not first is timed by the queries that are sent to it for the audit.
"""

from __future__ import annotations

from collections import deque
from statistics import median

INDEX, MIRROR = "index", "mirror"
RECENT = 15  # calls
SMALL = 100_000  # items: until both were timed, the mirror of no more goes first
CLEARLY = 1.5  # times as long as the other, before the order changes


class SearchOrder:
    """`first`: index, mirror, or auto. Times may be added by any thread."""

    def __init__(self, first: str) -> None:
        self._first = first
        self._recent: dict[str, deque[float]] = {INDEX: deque(maxlen=RECENT), MIRROR: deque(maxlen=RECENT)}
        self._is_mirror_first: bool | None = None

    def add(self, who: str, seconds: float, queries: int) -> None:
        """One more call, of so many queries, has taken so long."""
        self._recent[who].append(seconds / max(1, queries))

    def is_mirror_first(self, items: int) -> bool:
        """Compare the median seconds a query of either; `items` decides until both are known."""
        if self._first != "auto":
            return self._first == MIRROR
        known = self._is_mirror_first
        if known is None:
            known = items <= SMALL
        index, mirror = list(self._recent[INDEX]), list(self._recent[MIRROR])
        if index and mirror:
            first, other = (mirror, index) if known else (index, mirror)
            known = self._is_mirror_first = known != (median(first) > CLEARLY * median(other))
        return known

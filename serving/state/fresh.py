"""Items published lately, newest known first at hand: what the source `fresh` draws from.

Only what is younger than the window is kept, so a catalogue of millions costs nothing here; what grows too old is let
go from the front when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class FreshView:
    """Items that may be shown and were published within `window_ms`. At most `most`: those dated farthest ahead make
    way first, since a wrong date would keep its place for ever, then the oldest."""

    def __init__(self, window_ms: float, most: int = 2000) -> None:
        self._window_ms, self._most = window_ms, most
        self._published: dict[str, int] = {}
        self._ordered: list[tuple[int, str]] = []  # oldest first

    def __len__(self) -> int:
        return len(self._ordered)

    def put(self, item_id: str, published_ms: int | None, now_ms: int) -> None:
        """Set when an item was published; one published in the future is fresh from then on."""
        self.remove(item_id)
        if published_ms is None or published_ms < now_ms - self._window_ms:
            return
        self._published[item_id] = published_ms
        insort(self._ordered, (published_ms, item_id))
        if len(self._ordered) > self._most:
            is_ahead = self._ordered[-1][0] > now_ms
            _, leaves = self._ordered.pop(-1 if is_ahead else 0)
            del self._published[leaves]

    def remove(self, item_id: str) -> None:
        published_ms = self._published.pop(item_id, None)
        if published_ms is not None:
            del self._ordered[bisect_left(self._ordered, (published_ms, item_id))]

    def newest(self, now_ms: int) -> list[tuple[int, str]]:
        """Publishing time and item, oldest first: what is fresh at `now_ms`."""
        old = bisect_left(self._ordered, (now_ms - self._window_ms, ""))
        for _, item_id in self._ordered[:old]:
            del self._published[item_id]
        del self._ordered[:old]
        return self._ordered[: bisect_left(self._ordered, (now_ms + 1, ""))]

"""What is watched now: an exponentially decayed count of completed watches per item. Pure; time is the events' own.

Counts are kept on a scale that moves with time (a watch at time t weighs 2^((t - origin) / half-life)), so that decay
costs nothing per event: an item's count changes only when it is watched.
"""

from __future__ import annotations

from heapq import nlargest
from operator import itemgetter

from streams.messages import Trending

# Beyond this exponent the scale is moved: float64 has room for 1,023 doublings.
_MOST_DOUBLINGS = 500.0


class DecayedCounts:
    """Decayed counts of one partition's items. Holds at most `room` items; the least watched make way."""

    def __init__(self, half_life_s: float, room: int) -> None:
        self._half_life_ms = half_life_s * 1000
        self._room = room
        self._scaled: dict[str, float] = {}
        self._origin_ms = 0
        self.as_of_ms = 0
        self.offset = -1  # newest source offset counted

    def add(self, item_id: str, event_ms: int, offset: int) -> bool:
        """Count one watch; False when its offset was counted before."""
        if offset <= self.offset:
            return False
        self.offset = offset
        if not self._scaled:
            self._origin_ms = event_ms
        doublings = (event_ms - self._origin_ms) / self._half_life_ms
        if doublings > _MOST_DOUBLINGS:
            self._move_origin(event_ms)
            doublings = 0.0
        self._scaled[item_id] = self._scaled.get(item_id, 0.0) + 2.0**doublings
        self.as_of_ms = max(self.as_of_ms, event_ms)
        if len(self._scaled) > 2 * self._room:
            self._scaled = dict(nlargest(self._room, self._scaled.items(), key=itemgetter(1)))
        return True

    def top(self, limit: int) -> list[tuple[str, float]]:
        """The most watched items and their counts as of `as_of_ms`, most watched first, ties by id."""
        now = 2.0 ** ((self.as_of_ms - self._origin_ms) / self._half_life_ms)
        best = nlargest(limit, self._scaled.items(), key=lambda entry: (entry[1], entry[0]))
        return [(item_id, scaled / now) for item_id, scaled in best]

    def message(self, scope: str, partition: int, limit: int) -> Trending:
        half_life_s = self._half_life_ms / 1000
        return Trending(scope, partition, self.as_of_ms, half_life_s, tuple(self.top(limit)), self.offset)

    def restore(self, message: Trending) -> None:
        """Go on from what was published; what was not in its top list is forgotten."""
        self._scaled = dict(message.items)
        self._origin_ms = self.as_of_ms = message.as_of_ms
        self.offset = message.offset

    def _move_origin(self, event_ms: int) -> None:
        shrink = 2.0 ** -((event_ms - self._origin_ms) / self._half_life_ms)
        self._scaled = {item_id: scaled * shrink for item_id, scaled in self._scaled.items() if scaled * shrink > 0}
        self._origin_ms = event_ms

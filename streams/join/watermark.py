"""The watermark, how far event time has come on a partition: what is stamped earlier has been read. Pure; the clock is
an argument.

The watermark is the minimum, over the topics that are read together, of the greatest event time seen. A topic that is
read to its end and silent holds nobody back. When all are, event time goes on as the clock does: a window closes also
when nobody watches any more. It never goes back, and never ahead of the clock; and a jump of the clock is no silence
(streams/clock.py), else one forward would close every window.
"""

from __future__ import annotations

from collections.abc import Iterable

from streams.clock import Clock

IDLE_MS = 2_000  # a topic that is read to its end is silent after this
STUCK_MS = 60_000  # and one that has not given a message for this long, whatever its lag is said to be


class Watermark:
    """`floor_ms`: where it stood before, at least."""

    def __init__(self, topics: Iterable[str], now_ms: int, *, floor_ms: int = 0) -> None:
        self.value_ms = floor_ms
        self._latest_ms = floor_ms
        self._newest_ms: dict[str, int] = {}
        self._clock = Clock(now_ms)
        self._read_at_ms = dict.fromkeys(topics, 0)  # by the time that has passed

    def observe(self, topic: str, event_ms: int, now_ms: int) -> None:
        self._newest_ms[topic] = max(event_ms, self._newest_ms.get(topic, 0))
        self._latest_ms = max(event_ms, self._latest_ms, self.value_ms)  # an old event does not take time back
        self._read_at_ms[topic] = self._clock.look(now_ms).passed_ms

    def know(self, event_ms: int) -> None:
        """An event time that was read before a restart: from it time goes on when nothing comes."""
        self._latest_ms = max(event_ms, self._latest_ms)

    def advance(self, behind: Iterable[str], now_ms: int) -> int:
        """Move on, where possible; `behind` are the topics that are not read to their ends."""
        behind, clock = set(behind), self._clock.look(now_ms)
        holding = [
            topic
            for topic, read_at_ms in self._read_at_ms.items()
            if clock.passed_ms - read_at_ms < (STUCK_MS if topic in behind else IDLE_MS)
        ]
        if holding:
            reached_ms = min(self._newest_ms.get(topic, 0) for topic in holding)
        else:
            reached_ms = self._latest_ms + clock.passed_ms - max(self._read_at_ms.values())
        self.value_ms = max(self.value_ms, min(reached_ms, clock.latest_ms))
        return self.value_ms

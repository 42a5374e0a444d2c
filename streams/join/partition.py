"""A partition of the join worker beside the states of its users: made anew by each owner."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from infra.platform import metrics
from infra.platform.settings import Settings
from streams import topics
from streams.join.due_queue import DueQueue
from streams.join.item_statistics import ItemStatistics
from streams.join.watermark import Watermark
from streams.messages import StatisticsRow

TOPICS = (topics.IMPRESSIONS, topics.WATCH_EVENTS)  # read together


class Partition:
    """All that the worker knows of one partition beside the states of its users."""

    def __init__(self, number: int, settings: Settings, rows: Iterable[StatisticsRow], now_ms: int) -> None:
        self.number = number
        self.due_queue = DueQueue()
        self.statistics = ItemStatistics(number, settings.join.half_life_h)
        for row in rows:
            self.statistics.restore(row)
        self.closed_ms = self.statistics.closed_ms
        self.watermark = Watermark(TOPICS, now_ms, floor_ms=self.closed_ms)
        self.handled: dict[str, int] = {}  # offset after the newest that was handled, by topic
        self.open = 0
        self.pushed_by = -1

    def show(self, now_ms: int) -> None:
        label = str(self.number)
        metrics.OPEN_IMPRESSIONS.labels(label).set(self.open)
        metrics.STATISTICS_ROWS.labels(label).set(len(self.statistics))
        if self.watermark.value_ms:
            metrics.WATERMARK_LAG.labels(label).set((now_ms - self.watermark.value_ms) / 1000)

    def hide(self) -> None:
        for gauge in (metrics.OPEN_IMPRESSIONS, metrics.STATISTICS_ROWS, metrics.WATERMARK_LAG):
            with suppress(KeyError):  # it was never shown
                gauge.remove(str(self.number))

"""What is known of each item, in columns: channel, topics, duration, publishing time, availability.

Features and side embeddings read whole arrays by row number, never one item at a time. An item that nothing is known
of is not an error: streams are not ordered between topics, so a watch may arrive before its catalogue entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.columns import Columns

Rows = npt.NDArray[np.int64]


class Catalogue:
    """Item facts by row. Codes of channels and topics start at 1; 0 means unknown, -1 as a row means unknown item."""

    def __init__(self) -> None:
        self.item_ids: list[str] = []
        self.channels: list[str] = [""]
        self.topics: list[str] = [""]
        self._row_of: dict[str, int] = {}
        self._channel_of: dict[str, int] = {}
        self._topic_of: dict[str, int] = {}
        self._topic_codes: list[tuple[int, ...]] = []
        self._columns = Columns(
            channel=np.empty(0, np.int32),
            topic=np.empty(0, np.int32),
            duration_s=np.empty(0, np.float32),
            published_ms=np.empty(0, np.float64),
            available=np.empty(0, np.bool_),
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def upsert(
        self,
        item_id: str,
        *,
        channel: str | None = None,
        topics: Sequence[str] = (),
        duration_s: float | None = None,
        published_ms: int | None = None,
        available: bool = True,
    ) -> int:
        """Set what is known of an item, replacing what was; its row. A duration of 0 is an unknown one."""
        codes = tuple(dict.fromkeys(_code(topic, self._topic_of, self.topics) for topic in topics if topic))
        facts = {
            "channel": _code(channel, self._channel_of, self.channels) if channel else 0,
            "topic": codes[0] if codes else 0,
            "duration_s": duration_s or np.nan,
            "published_ms": np.nan if published_ms is None else published_ms,
            "available": available,
        }
        row = self._row_of.get(item_id)
        if row is None:
            row = self._columns.append(**facts)
            self._row_of[item_id] = row
            self.item_ids.append(item_id)
            self._topic_codes.append(codes)
            return row
        for name, value in facts.items():
            self._columns[name][row] = value
        self._topic_codes[row] = codes
        return row

    def remove(self, item_id: str) -> None:
        """Take an item down. Unknown ones are remembered too: the takedown may come before the item's first watch."""
        row = self._row_of.get(item_id)
        if row is None:
            self.upsert(item_id, available=False)
        else:
            self._columns["available"][row] = False

    def row(self, item_id: str) -> int:
        return self._row_of.get(item_id, -1)

    def rows(self, item_ids: Iterable[str]) -> Rows:
        """int64 [N], -1 for unknown items."""
        row_of = self._row_of
        return np.array([row_of.get(item_id, -1) for item_id in item_ids], np.int64)

    def is_available(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """bool [N]; unknown items are available."""
        return self._at("available", rows, True)

    def channel_codes(self, rows: Rows) -> npt.NDArray[np.int32]:
        """int32 [N], 0 for unknown."""
        return self._at("channel", rows, 0)

    def topic_codes(self, rows: Rows) -> npt.NDArray[np.int32]:
        """int32 [N]: each item's first topic, 0 for unknown."""
        return self._at("topic", rows, 0)

    def duration_s(self, rows: Rows) -> npt.NDArray[np.float32]:
        """float32 [N], NaN for unknown."""
        return self._at("duration_s", rows, np.nan)

    def published_ms(self, rows: Rows) -> npt.NDArray[np.float64]:
        """float64 [N], NaN for unknown."""
        return self._at("published_ms", rows, np.nan)

    def channel_of(self, row: int) -> str | None:
        return self.channels[self._columns["channel"][row]] or None

    def topics_of(self, row: int) -> tuple[str, ...]:
        return tuple(self.topics[code] for code in self._topic_codes[row])

    def topic_table(self, most: int) -> Rows:
        """int64 [N, T]: the codes of each item's first `most` topics, 0 where there are fewer; T is at least 1."""
        width = max(1, min(most, max(map(len, self._topic_codes), default=1)))
        table = np.zeros((len(self), width), np.int64)  # [N, T]
        for row, codes in enumerate(self._topic_codes):
            table[row, : len(codes[:width])] = codes[:width]
        return table

    def _at(self, name: str, rows: Rows, unknown: object) -> npt.NDArray[Any]:
        column = self._columns[name]
        if not len(column):
            return np.full(np.shape(rows), unknown, column.dtype)
        return np.where(rows >= 0, column[rows], np.asarray(unknown, column.dtype))


def _code(name: str, code_of: dict[str, int], names: list[str]) -> int:
    code = code_of.get(name)
    if code is None:
        code = code_of[name] = len(names)
        names.append(name)
    return code

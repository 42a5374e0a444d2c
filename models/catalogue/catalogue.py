"""All that is known of each item, in columns: channel, topics, further ids, language, duration, time, availability.

Features and side embeddings read whole arrays by row number, never one item at a time. An item that nothing is known
of is not an error: streams are not ordered between topics, so a watch may arrive before its catalogue entry.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import polars as pl

from models.arrays import Array, Doubles, Flags, Floats, Rows
from models.catalogue.columns import Columns
from models.catalogue.id_lists import IdLists

CHANNEL, TOPICS = "channel", "topics"
MOST_ID_NAMES = 16  # beside channel and topics
NO_IDS: Mapping[str, Sequence[str]] = MappingProxyType({})


class Catalogue:
    """Item facts by row; -1 as a row means unknown item.

    Channel, topics and every further id column are lists of codes under their name (`id_names`), all alike; codes start
    at 1, 0 means none. The language is no such column: requests filter by it, nothing is learnt from it.
    """

    def __init__(self) -> None:
        self.item_ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._ids = {CHANNEL: IdLists(), TOPICS: IdLists()}
        self._languages = IdLists()
        self._columns = Columns(
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
        language: str | None = None,
        ids: Mapping[str, Sequence[str] | None] = NO_IDS,
    ) -> int:
        """Set what is known of an item, replacing what was; its row. A duration of 0 is an unknown one.

        `ids`: by column the item's ids there, for example {"music": ["77"]}. Columns after the first MOST_ID_NAMES are
        passed over, and so are channel and topics, which have their own arguments.
        """
        facts = {
            "duration_s": duration_s or np.nan,
            "published_ms": np.nan if published_ms is None else published_ms,
            "available": available,
        }
        row = self._row_of.get(item_id)
        if row is None:
            row = self._columns.append(**facts)
            item_id = sys.intern(item_id)  # one string for all tables of a process that name the item
            self._row_of[item_id] = row
            self.item_ids.append(item_id)
        else:
            for name, value in facts.items():
                self._columns[name][row] = value
        self._set_ids(row, {**ids, CHANNEL: [channel or ""], TOPICS: topics})
        self._languages.set(row, [language or ""])
        return row

    def upsert_all(self, items: pl.DataFrame) -> None:
        """The same for a table of distinct items at once, columns as the arguments of `upsert` (`ids` a struct of
        lists); of these item_id is needed."""
        item_ids, given = items["item_id"].to_list(), set(items.columns)
        rows = self.rows(item_ids)
        new = np.flatnonzero(rows < 0)
        rows[new] = np.arange(len(self), len(self) + len(new))
        self._columns.extend(len(new), duration_s=np.nan, published_ms=np.nan, available=True)
        names = [sys.intern(item_ids[at]) for at in new.tolist()]
        self._row_of.update(zip(names, rows[new].tolist(), strict=True))
        self.item_ids += names
        duration_s = _numbers(items, "duration_s")
        self._columns["duration_s"][rows] = np.where(duration_s == 0, np.nan, duration_s)
        self._columns["published_ms"][rows] = _numbers(items, "published_ms")
        self._columns["available"][rows] = items["available"].to_numpy() if "available" in given else True
        self._set_all_ids(rows, _id_lists(items))
        self._languages.set_all(rows, _lists(items, "language"))

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
        return np.fromiter(map(self._row_of.get, item_ids, repeat(-1)), np.int64)

    def is_available(self, rows: Rows) -> Flags:
        """bool [N]; unknown items are available."""
        return self._at("available", rows, True)

    @property
    def id_names(self) -> tuple[str, ...]:
        """channel, topics, then the further id columns in the order in which they came."""
        return tuple(self._ids)

    def id_values(self, name: str) -> list[str]:
        """The id of each code of a column; that of 0 is empty."""
        return self._ids[name].names

    def id_table(self, name: str, most: int) -> Rows:
        """int64 [N, T]: the codes of each item's first `most` ids in a column, 0 where there are fewer; T is at least
        1."""
        return self._ids[name].table(len(self), most)

    def id_lists(self, name: str) -> pl.Series:
        """Each item's ids in a column, a list of text."""
        return self._ids[name].lists(len(self))

    def all_ids_of(self, row: int) -> dict[str, tuple[str, ...]]:
        """The ids of one item in every column, channel and topics included."""
        return {name: values for name, ids in self._ids.items() if (values := ids.names_of(row))}

    def code_of_id(self, name: str, value: str) -> int:
        """The code of an id in a column, 0 when no item has had it."""
        return self._ids[name].code_of(value)

    def code_of_language(self, language: str) -> int:
        """The code of a language, 0 when no item has had it."""
        return self._languages.code_of(language)

    def channel_codes(self, rows: Rows) -> npt.NDArray[np.int32]:
        """int32 [N], 0 for unknown."""
        return self._ids[CHANNEL].first(rows)

    def topic_codes(self, rows: Rows) -> npt.NDArray[np.int32]:
        """int32 [N]: each item's first topic, 0 for unknown."""
        return self._ids[TOPICS].first(rows)

    def language_codes(self, rows: Rows) -> npt.NDArray[np.int32]:
        """int32 [N], 0 for unknown."""
        return self._languages.first(rows)

    def topics_at(self, rows: Rows, most: int) -> npt.NDArray[np.int32]:
        """int32, in the shape of `rows` and [T] behind it: the first `most` topics of each, 0 for none."""
        return self._ids[TOPICS].first_of(rows, most)

    def duration_s(self, rows: Rows) -> Floats:
        """float32 [N], NaN for unknown."""
        return self._at("duration_s", rows, np.nan)

    def published_ms(self, rows: Rows) -> Doubles:
        """float64 [N], NaN for unknown."""
        return self._at("published_ms", rows, np.nan)

    def channel_of(self, row: int) -> str | None:
        return next(iter(self._ids[CHANNEL].names_of(row)), None)

    def topics_of(self, row: int) -> tuple[str, ...]:
        return self._ids[TOPICS].names_of(row)

    def _set_ids(self, row: int, ids: Mapping[str, Sequence[str] | None]) -> None:
        for name in ids:
            if name not in self._ids and ids[name] and len(self._ids) < MOST_ID_NAMES + 2:
                self._ids[name] = IdLists()
        for name, lists in self._ids.items():
            lists.set(row, ids.get(name) or ())

    def _set_all_ids(self, rows: Rows, ids: Mapping[str, pl.Series]) -> None:
        """Columns that are new come in the order in which their first ids do."""
        first = {name: int((ids[name].list.len() > 0).arg_max() or 0) for name in ids if name not in self._ids}
        for name in sorted(first, key=first.__getitem__):
            if ids[name].list.len()[first[name]] and len(self._ids) < MOST_ID_NAMES + 2:
                self._ids[name] = IdLists()
        for name, lists in self._ids.items():
            lists.set_all(rows, ids[name] if name in ids else _no_lists(len(rows)))

    def _at(self, name: str, rows: Rows, unknown: object) -> Array:
        column = self._columns[name]
        if not len(column):
            return np.full(np.shape(rows), unknown, column.dtype)
        return np.where(rows >= 0, column[rows], np.asarray(unknown, column.dtype))


def _numbers(items: pl.DataFrame, name: str) -> Doubles:
    """float64 [N], NaN where nothing is known."""
    if name not in items.columns:
        return np.full(len(items), np.nan)
    return items[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def _id_lists(items: pl.DataFrame) -> dict[str, pl.Series]:
    """By id column each item's list of text, or null."""
    ids = items["ids"].struct.unnest() if isinstance(items.schema.get("ids"), pl.Struct) else pl.DataFrame()
    further = {name: ids[name].cast(pl.List(pl.String)) for name in ids.columns}
    topics = items[TOPICS].cast(pl.List(pl.String)) if TOPICS in items.columns else _no_lists(len(items))
    return further | {CHANNEL: _lists(items, CHANNEL), TOPICS: topics}


def _lists(items: pl.DataFrame, name: str) -> pl.Series:
    """A column of text as lists of one."""
    if name not in items.columns:
        return _no_lists(len(items))
    return items.select(pl.concat_list(pl.col(name).cast(pl.String))).to_series()


def _no_lists(size: int) -> pl.Series:
    return pl.Series([None], dtype=pl.List(pl.String)).new_from_index(0, size)

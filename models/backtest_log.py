"""A log as a backtest walks it: numbered users and items, positives in time, and when each item became known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from models.cases import Stream
from models.log import Log

Rows = npt.NDArray[np.int64]

ALWAYS_MS = -1  # when an item became known that the catalogue has without a date


@dataclass(frozen=True)
class Reading:
    """`stream` and the ids behind its numbers. Items are in the order in which they became known: at their publication
    or first row of the log, whichever is earlier, and before everything where the catalogue has them without a date.
    """

    stream: Stream
    user_ids: pl.Series  # [U]
    item_ids: pl.Series  # [I]
    known_ms: Rows  # [I], never falls
    born_ms: Rows  # [I] publication, else first row of the log, else the time of the first row of all

    def known_at(self, cut: int) -> int:
        """C: how many items were known just before row `cut` of the stream."""
        return int(np.searchsorted(self.known_ms, self.stream.event_ms[cut], side="left"))


def read_stream(log: Log, items: pl.DataFrame | None) -> Reading:
    """`items` is a catalogue as `models.log.read_items` gives it."""
    facts = _item_facts(log, items)
    user_ids = log.frame["user_id"].unique(maintain_order=True)
    positives = log.frame.lazy().filter("completed").select("user_id", "item_id", "event_ms")
    numbered = (
        positives.join(_numbers("user_id", user_ids), on="user_id", how="left", maintain_order="left")
        .join(_numbers("item_id", facts["item_id"]), on="item_id", how="left", maintain_order="left")
        .select("user_id_number", "item_id_number", "event_ms")
        .collect()
    )
    users, rows, event_ms = (numbered[name].cast(pl.Int64).to_numpy() for name in numbered.columns)
    return Reading(
        Stream(users, rows, event_ms),
        user_ids,
        facts["item_id"],
        facts["known_ms"].to_numpy(),
        facts["born_ms"].to_numpy(),
    )


def _item_facts(log: Log, items: pl.DataFrame | None) -> pl.DataFrame:
    """item_id, known_ms, born_ms of every item, in the order of known_ms."""
    facts = log.frame.group_by("item_id", maintain_order=True).agg(first_ms=pl.col("event_ms").min())
    if items is None:
        facts = facts.with_columns(published_ms=pl.lit(None, pl.Int64), listed=False)
    else:
        listed = items.select("item_id", pl.col("published_ms").cast(pl.Int64), listed=True)
        facts = listed.join(facts, on="item_id", how="full", coalesce=True, maintain_order="right_left")
    published, first = pl.col("published_ms"), pl.col("first_ms")
    undated = pl.col("listed").fill_null(False) & published.is_null()
    start_ms = log.frame["event_ms"][0]
    return facts.select(
        "item_id",
        known_ms=pl.when(undated).then(ALWAYS_MS).otherwise(pl.min_horizontal(published, first)),
        born_ms=pl.coalesce(published, first, pl.lit(start_ms)),
    ).sort("known_ms", maintain_order=True)


def _numbers(name: str, ids: pl.Series) -> pl.LazyFrame:
    return pl.LazyFrame({name: ids}).with_row_index(f"{name}_number")

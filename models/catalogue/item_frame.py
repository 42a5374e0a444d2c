"""A catalogue as a table, one row an item: the one form in which items stand in files, beside the columns in memory."""

from __future__ import annotations

import numpy as np
import polars as pl

from models.catalogue.catalogue import CHANNEL, TOPICS, Catalogue


def catalogue_of(items: pl.DataFrame) -> Catalogue:
    """Build a catalogue of the rows in their order; columns are the arguments of Catalogue.upsert. Of an item that is
    there twice the last row holds."""
    catalogue = Catalogue()
    if items["item_id"].is_duplicated().any():
        items = items.group_by("item_id", maintain_order=True).last()
    catalogue.upsert_all(items)
    return catalogue


def catalogue_frame(catalogue: Catalogue) -> pl.DataFrame:
    """The reverse; models.logs.log.items_from_frame takes it, too."""
    rows = np.arange(len(catalogue))
    lists = {name: catalogue.id_lists(name) for name in catalogue.id_names}
    channel, topics = lists.pop(CHANNEL), lists.pop(TOPICS)
    ids = {"ids": pl.DataFrame(lists).to_struct("ids")} if lists else {}
    return pl.DataFrame(
        {
            "item_id": pl.Series(catalogue.item_ids, dtype=pl.String),
            "channel": channel.list.first(),
            "topics": topics,
            "duration_s": pl.Series(catalogue.duration_s(rows)).fill_nan(None),
            "published_ms": pl.Series(catalogue.published_ms(rows)).fill_nan(None).cast(pl.Int64),
            "available": catalogue.is_available(rows),
        }
        | ids
    )

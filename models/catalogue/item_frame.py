"""A catalogue as a table, one row an item: the one form in which items stand in files, beside the columns in memory."""

from __future__ import annotations

import numpy as np
import polars as pl

from models.catalogue.catalogue import Catalogue


def catalogue_of(items: pl.DataFrame) -> Catalogue:
    """Build a catalogue of the rows in their order; columns are the arguments of Catalogue.upsert."""
    catalogue = Catalogue()
    for item in items.iter_rows(named=True):
        catalogue.upsert(**{**item, "ids": item.get("ids") or {}})
    return catalogue


def catalogue_frame(catalogue: Catalogue) -> pl.DataFrame:
    """The reverse; models.logs.log.items_from_frame takes it, too."""
    rows = np.arange(len(catalogue))
    channels = [catalogue.channel_of(row) for row in rows.tolist()]
    topics = [list(catalogue.topics_of(row)) for row in rows.tolist()]
    names = catalogue.id_names[2:]  # beside channel and topics
    further = [{name: list(catalogue.all_ids_of(row).get(name, ())) for name in names} for row in rows.tolist()]
    ids = {"ids": pl.Series(further, dtype=pl.Struct({name: pl.List(pl.String) for name in names}))} if names else {}
    return pl.DataFrame(
        {
            "item_id": catalogue.item_ids,
            "channel": pl.Series(channels, dtype=pl.String),
            "topics": pl.Series(topics, dtype=pl.List(pl.String)),
            "duration_s": pl.Series(catalogue.duration_s(rows)).fill_nan(None),
            "published_ms": pl.Series(catalogue.published_ms(rows)).fill_nan(None).cast(pl.Int64),
            "available": catalogue.is_available(rows),
        }
        | ids
    )

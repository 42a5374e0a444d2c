"""A stored log as it is learnt from: its items as rows of a catalogue, its completed watches as a data set.

Items are numbered in the order in which they became known, so that those known at any time are the first so many:
a model that is judged at a cut must not have a row for what nobody could know then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import polars as pl

from models.arrays import Array, Floats, Rows
from models.catalogue.catalogue import Catalogue
from models.catalogue.content import ItemContent
from models.catalogue.content_table import NOTHING_SAID, ContentTable, content_table
from models.catalogue.context import FIELDS, TRAITS, ContextVocabulary
from models.catalogue.item_frame import catalogue_of
from models.logs.array_file import ArrayFile, mapped
from models.logs.dataset import Dataset
from models.logs.log import SIGNAL, content_columns, items_from_frame
from models.logs.skips import SkipTimeline, has_skips
from models.logs.stored_log import BUFFER_ROWS, StoredLog
from models.logs.stored_searches import SearchTimeline, StoredSearches

NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})
ALWAYS_MS = -1  # when an item became known that the catalogue has without a date


@dataclass(frozen=True)
class TrainingSet:
    """`catalogue` has a row for every item of `dataset`. By row of the catalogue, int64 [N]: `known_ms` when an item
    became known (never falls), `born_ms` when it was published or else first seen. `completed` int64 [P]: the log's row
    of each row of the data set; `rows` int64 [I]: the catalogue row of each item of the log. `said`: what items
    say of themselves beside their ids, where that was asked for."""

    dataset: Dataset
    catalogue: Catalogue
    contexts: ContextVocabulary
    known_ms: Rows
    born_ms: Rows
    completed: Rows
    rows: Rows
    said: ContentTable = NOTHING_SAID

    def content_of(self, row: int) -> ItemContent:
        """What an item says of itself, its ids included."""
        return self.said.of(row, self.catalogue.all_ids_of(row))

    def known_at(self, cut: int) -> int:
        """Count the items that were known just before row `cut` of the data set."""
        return int(np.searchsorted(self.known_ms, self.dataset.event_ms[cut], side="left"))


def prepare(
    log: StoredLog,
    items: pl.DataFrame | None,
    *,
    searches: StoredSearches | None = None,
    context: bool = True,
    skips: int = 0,
    content: bool = False,
    signals: Mapping[str, float] = NO_WEIGHTS,
) -> TrainingSet:
    """Positives of a log and the catalogue of its items; columns are written beside the log's own and mapped. `skips`:
    how many of a user's uncompleted watches are to be known, where there are any. `content`: keep what items say
    of themselves. `signals`: by kind the weight of a watch of which its user said so, as an example."""
    none = pl.DataFrame({"item_id": []}, schema={"item_id": pl.String})
    given = none if items is None else items
    listed = items_from_frame(given if content else given.drop(content_columns(given)))
    vectors = listed["vector"] if "vector" in listed.columns else None  # large: it goes through no join
    facts = _item_facts(log, listed.drop("vector", strict=False))
    catalogue = catalogue_of(facts.select("item_id", "channel", "topics", "duration_s", "published_ms", "ids"))
    rows = catalogue.rows(log.item_ids)
    completed, columns = _positives(log, rows, context=context)
    vocabulary = ContextVocabulary()
    if context:
        vocabulary = ContextVocabulary(
            {name: tuple(log.vocabularies[name][1:]) for name in FIELDS if name in log.contexts},
            tuple(name for name in TRAITS if name in log.contexts),
        )
    dataset = Dataset(
        columns["users"],
        columns["items"],
        columns["event_ms"],
        contexts=columns.get("contexts"),
        traits=columns.get("traits"),
        searches=SearchTimeline(searches) if searches is not None and len(searches) else None,
        weights=_weights(log, completed, signals),
        skips=SkipTimeline(log, rows, skips) if skips and has_skips(log) else None,
        timeline_file=log.directory / "timeline.npy",
    )
    known_ms, born_ms = facts["known_ms"].to_numpy(), facts["born_ms"].to_numpy()
    said = content_table(facts, vectors, log.directory / "item_vectors.npy")
    return TrainingSet(dataset, catalogue, vocabulary, known_ms, born_ms, completed, rows, said)


def _weights(log: StoredLog, completed: Rows, signals: Mapping[str, float]) -> Floats | None:
    """float32 [P]: of each positive as an example; None where all weigh 1."""
    if not signals or SIGNAL not in log.contexts or not len(completed):
        return None
    said = (kinds.split("|") for kinds in log.vocabularies[SIGNAL])
    of_code = np.array([prod(signals.get(kind, 1.0) for kind in kinds) for kinds in said], np.float32)
    codes = log.contexts[SIGNAL]
    blocks = range(0, len(completed), BUFFER_ROWS)
    return np.concatenate([of_code[codes[completed[start : start + BUFFER_ROWS]]] for start in blocks])


def _item_facts(log: StoredLog, listed: pl.DataFrame) -> pl.DataFrame:
    """All items of a checked catalogue and of the log with what is known of them, in the order of known_ms; `at`: its
    row in the catalogue, null for none."""
    seen = pl.DataFrame(
        {
            "item_id": log.item_ids,
            "first_ms": _first_ms(log),
            "log_duration_s": pl.Series(log.item_durations()).fill_nan(None),
        }
    )
    facts = (
        listed.with_row_index("at")
        .with_columns(listed=True)
        .join(seen, on="item_id", how="full", coalesce=True, maintain_order="left_right")
    )
    if "ids" not in facts.columns:
        facts = facts.with_columns(ids=pl.lit(None))
    published, first = pl.col("published_ms"), pl.col("first_ms")
    undated = pl.col("listed").fill_null(False) & published.is_null()
    return facts.with_columns(
        pl.col("topics").fill_null([]),
        duration_s=pl.coalesce("duration_s", "log_duration_s"),
        known_ms=pl.when(undated).then(ALWAYS_MS).otherwise(pl.min_horizontal(published, first)),
        born_ms=pl.coalesce(published, first, pl.lit(int(log.event_ms[0]))),
    ).sort("known_ms", maintain_order=True)


def _first_ms(log: StoredLog) -> Rows:
    """int64 [I]: when each item is first in the log."""
    first = np.full(len(log.item_ids), np.iinfo(np.int64).max, np.int64)
    for start in range(0, len(log), BUFFER_ROWS):
        items, at = np.unique(log.items[start : start + BUFFER_ROWS], return_index=True)
        first[items] = np.minimum(first[items], log.event_ms[start + at])
    return first


def _positives(log: StoredLog, rows: Rows, *, context: bool) -> tuple[Rows, dict[str, Array]]:
    """The log's row of each completed watch, and its columns as files beside the log."""
    names = {"contexts": FIELDS, "traits": TRAITS} if context else {}
    given = {group: [name for name in all_of if name in log.contexts] for group, all_of in names.items()}
    groups = {group: own for group, own in given.items() if own}
    kinds: dict[str, npt.DTypeLike] = {group: log.contexts[own[0]].dtype for group, own in groups.items()}
    kinds |= {"users": np.int32, "items": np.int32, "event_ms": np.int64, "completed": np.int64}
    files = {
        name: ArrayFile(log.directory / f"positive_{name}.npy", dtype, (len(groups[name]),) if name in groups else ())
        for name, dtype in kinds.items()
    }
    for start in range(0, len(log), BUFFER_ROWS):
        at = start + np.flatnonzero(log.completed[start : start + BUFFER_ROWS])
        files["users"].append(log.users[at])
        files["items"].append(rows[log.items[at]])
        files["event_ms"].append(log.event_ms[at])
        files["completed"].append(at)
        for group, own in groups.items():
            files[group].append(np.stack([log.contexts[name][at] for name in own], axis=1))
    for file in files.values():
        file.close()
    columns = {name: mapped(file.path) for name, file in files.items()}
    return columns.pop("completed"), columns

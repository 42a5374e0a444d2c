"""What was watched last in a log, as a part of the trending lists beside those of the partitions.

It is counted as the trending worker counts, at the rows' own times, and stands under keys of its own: to load a log
again writes the same over it. What is watched from then on decays it, as it does the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from infra.platform.settings import Settings
from models.logs.stored_log import StoredLog
from streams.messages import Trending
from streams.trending.app import start

PART = "loaded"  # in place of a partition, in the key
NO_PARTITION = -1
SOME_ROWS = 50_000  # counted between two reports


def trending_of(
    log: StoredLog, settings: Settings, report: Callable[[int], None] = lambda done: None
) -> Iterator[tuple[str, Trending]]:
    """Key and message of each scope; `report` is told how many rows were counted."""
    counts = start(NO_PARTITION, (), settings)
    regions, names = log.contexts.get("region"), log.vocabularies.get("region", [])
    for first in range(0, len(log), SOME_ROWS):
        at = first + np.flatnonzero(log.completed[first : first + SOME_ROWS])
        places = np.zeros(len(at), np.int64) if regions is None else regions[at]
        columns = zip(log.items[at].tolist(), places.tolist(), log.event_ms[at].tolist(), at.tolist(), strict=True)
        for item, place, event_ms, offset in columns:
            counts.add(log.item_ids[item], names[place] if place else None, event_ms, offset)
        report(min(first + SOME_ROWS, len(log)))
    for scope, message in counts.changes(NO_PARTITION).items():
        if message is not None:
            yield f"{scope}/{PART}", message

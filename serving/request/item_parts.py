"""Looks up what the ranker has of the candidates' items whoever asks, and works out what is not there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.ranking.ranker import ItemParts
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from serving.state.release import LiveRelease
from serving.state.views import StatisticsView
from streams.messages import UserHistory

Rows = NDArray[np.int64]

NOBODY = UserHistory("nobody")


def slots_of(item_ids: Sequence[str], rows: Rows, live: LiveRelease, statistics: StatisticsView) -> Rows:
    """int64 [N]: the slots of items, whose rows of the catalogue are given, among those that are known."""

    def learn(places: Rows) -> ItemParts:
        new = query_of_nobody([item_ids[at] for at in places.tolist()], rows[places], statistics.known_ms)
        return live.ranker.item_parts(ranking_batch_of([new], live.catalogue, [live.statistics, statistics.statistics]))

    return live.known.slots(rows, statistics.moment, learn)


def query_of_nobody(item_ids: list[str], rows: Rows, known_ms: int, now_ms: int = 0) -> RankingQuery:
    """The question about these items for a viewer of whom nothing is known."""
    nothing = np.full(len(item_ids), np.nan, np.float32)
    return RankingQuery(NOBODY, now_ms or known_ms, item_ids, nothing, rows=rows, known_ms=known_ms)

"""Where an item starts that nobody has watched yet: at the mean of its channel and of its topics, not at noise.

Means are shrunk towards the mean of all items, so that a channel with a single item does not make a twin of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.catalogue import Catalogue

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

SHRINK = 2.0  # items' worth of the overall mean in each group's
TOPICS = 8  # most topics of an item that count


class Start(NamedTuple):
    """What an item begins with: output vector [D], bias, embedding on the user's side [D]."""

    vector: Floats
    bias: float
    query_row: Floats


class ColdStart:
    """Means of what items have learnt, by channel and by topic."""

    def __init__(
        self, vectors: Floats, bias: Floats, query_rows: Floats, *, catalogue: Catalogue, learnt: npt.NDArray[np.bool_]
    ) -> None:
        """vectors and query_rows [N, D] and bias [N] by row of the catalogue; `learnt` bool [N]: whose are averaged."""
        rows = np.flatnonzero(learnt)
        self._dim = vectors.shape[1]
        table = np.concatenate([vectors[rows], bias[rows, None], query_rows[rows]], axis=1)  # [R, P]
        self._overall = table.mean(axis=0) if len(rows) else np.zeros(table.shape[1], np.float32)
        self._channels = self._means(table, catalogue.channel_codes(rows)[:, None], catalogue.channels)
        self._topics = self._means(table, catalogue.topic_table(TOPICS)[rows], catalogue.topics)

    def place(self, channel: str | None, topics: Sequence[str]) -> Start:
        """The start of an item of this channel and these topics; unknown ones say nothing."""
        by_channel = self._channels.get(channel) if channel else None
        by_topic = _mean(self._topics[topic] for topic in topics if topic in self._topics)
        start = _mean(part for part in (by_channel, by_topic) if part is not None)
        start = self._overall if start is None else start
        return Start(start[: self._dim], float(start[self._dim]), start[self._dim + 1 :])

    def _means(self, table: Floats, codes: npt.NDArray[np.integer], names: Sequence[str]) -> dict[str, Floats]:
        """table [R, P]; codes [R, T], 0 for none."""
        sums = np.zeros((len(names), table.shape[1]), np.float64)
        for column in codes.T:
            np.add.at(sums, column, table)
        counts = np.bincount(codes.ravel(), minlength=len(names))
        means = (sums + SHRINK * self._overall) / (counts + SHRINK)[:, None]
        return {names[code]: means[code].astype(np.float32) for code in np.flatnonzero(counts).tolist() if code > 0}


def _mean(parts: Iterable[Floats]) -> Floats | None:
    found = list(parts)
    return np.mean(found, axis=0, dtype=np.float32) if found else None

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

Sums = npt.NDArray[np.float64]

AT_ONCE = 100_000  # rows summed up together
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
        self._dim = vectors.shape[1]
        width = 2 * self._dim + 1
        channels, topics = np.zeros((len(catalogue.channels), width)), np.zeros((len(catalogue.topics), width))
        counts = np.zeros(len(channels)), np.zeros(len(topics))
        total = np.zeros(width)
        learnt_rows = np.flatnonzero(learnt)
        codes = catalogue.topic_table(TOPICS) if len(learnt_rows) else np.zeros((0, 1), np.int64)
        for start in range(0, len(learnt_rows), AT_ONCE):
            rows = learnt_rows[start : start + AT_ONCE]
            table = np.concatenate([vectors[rows], bias[rows, None], query_rows[rows]], axis=1)  # [R, P]
            total += table.sum(axis=0, dtype=np.float64)
            _add(table, catalogue.channel_codes(rows)[:, None], channels, counts[0])
            _add(table, codes[rows], topics, counts[1])
        self._overall = (total / max(len(learnt_rows), 1)).astype(np.float32)
        self._channels = self._means(channels, counts[0], catalogue.channels)
        self._topics = self._means(topics, counts[1], catalogue.topics)

    def place(self, channel: str | None, topics: Sequence[str]) -> Start:
        """The start of an item of this channel and these topics; unknown ones say nothing."""
        by_channel = self._channels.get(channel) if channel else None
        by_topic = _mean(self._topics[topic] for topic in topics if topic in self._topics)
        start = _mean(part for part in (by_channel, by_topic) if part is not None)
        start = self._overall if start is None else start
        return Start(start[: self._dim], float(start[self._dim]), start[self._dim + 1 :])

    def _means(self, sums: Sums, counts: Sums, names: Sequence[str]) -> dict[str, Floats]:
        """sums [C, P] and counts [C] by code, 0 is none."""
        means = (sums + SHRINK * self._overall) / (counts + SHRINK)[:, None]
        return {names[code]: means[code].astype(np.float32) for code in np.flatnonzero(counts).tolist() if code > 0}


def _add(table: Floats, codes: npt.NDArray[np.integer], sums: Sums, counts: Sums) -> None:
    """table [R, P]; codes [R, T], 0 for none; to sums [C, P] and counts [C]."""
    for column in codes.T:
        np.add.at(sums, column, table)
    counts += np.bincount(codes.ravel(), minlength=len(counts))


def _mean(parts: Iterable[Floats]) -> Floats | None:
    found = list(parts)
    return np.mean(found, axis=0, dtype=np.float32) if found else None

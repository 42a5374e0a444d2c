"""Where an item starts that nobody has watched yet: at the mean of its channel and of its topics, not at noise.

Means are shrunk towards the mean of all items, so that a channel with a single item does not make a twin of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from models.catalogue import Catalogue

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

SHRINK = 2.0  # items' worth of the overall mean in each group's


class ColdStart:
    """Means of `parameters` float32 [N, P] (whatever an item has learnt, side by side) by channel and by topic."""

    def __init__(self, parameters: Floats, catalogue: Catalogue, rows: Rows) -> None:
        """`rows` are the items that have learnt something: the means are theirs. Rows of the catalogue and of
        `parameters` are the same."""
        learnt = parameters[rows]
        self._overall = learnt.mean(axis=0) if len(rows) else np.zeros(parameters.shape[1], np.float32)
        topics = catalogue.topic_table(8)[rows]  # [N, T]
        self._channels = self._means(learnt, catalogue.channel_codes(rows)[:, None], catalogue.channels)
        self._topics = self._means(learnt, topics, catalogue.topics)

    def place(self, channel: str | None, topics: Sequence[str]) -> Floats:
        """float32 [P]: the start of an item of this channel and these topics."""
        by_topic = _mean(self._topics[topic] for topic in topics if topic in self._topics)
        by_channel = self._channels.get(channel) if channel else None
        start = _mean(part for part in (by_channel, by_topic) if part is not None)
        return self._overall if start is None else start

    def _means(self, learnt: Floats, codes: npt.NDArray[np.integer], names: Sequence[str]) -> dict[str, Floats]:
        """learnt [N, P]; codes [N, T], 0 for none."""
        sums = np.zeros((len(names), learnt.shape[1]), np.float64)
        for column in codes.T:
            np.add.at(sums, column, learnt)
        counts = np.bincount(codes.ravel(), minlength=len(names))
        means = (sums + SHRINK * self._overall) / (counts + SHRINK)[:, None]
        return {names[code]: means[code].astype(np.float32) for code in np.flatnonzero(counts).tolist() if code > 0}


def _mean(parts: Iterable[Floats]) -> Floats | None:
    found = list(parts)
    return np.mean(found, axis=0, dtype=np.float32) if found else None

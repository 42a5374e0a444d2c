"""How far the published rows have learnt, while some rows wait.

Publishing a row costs broker, indexer, index and servers alike, and most steps move it too little to be worth that. So
a row that has moved little waits, and `Progress`, which says where a restart goes on, stays before the first example
that a waiting row has learnt. A restart learns those examples again. A row that was published ahead of the progress
says so itself (`ItemVector.learnt_to`), so that each watch counts once in it all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

PROGRESS_KEY = b""  # in item-vectors; no item has an empty id


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """The place up to which the published rows have learnt: the next offset of `training-examples`, and by partition of
    `watch-events` the newest watch learnt (an example at or below is a duplicate of the history worker's)."""

    next_offset: int = 0
    watched: dict[int, int] = {}


class WaitingRows:
    """The keys of rows that have learnt more than is published, in the order in which they began to wait: for
    `publish_s` at most, and while no more than `most` examples are learnt meanwhile."""

    def __init__(self, publish_s: float, most: int) -> None:
        self._publish_s, self._most = publish_s, most
        self._since: OrderedDict[bytes, tuple[float, Progress]] = OrderedDict()

    def add(self, keys: Iterable[bytes], before: Progress, now_s: float) -> None:
        """Rows that a step has changed; `before`: the progress before that step."""
        for key in keys:
            self._since.setdefault(key, (now_s, before))

    def discard(self, key: bytes) -> None:
        """The row is published as it is now, or gone."""
        self._since.pop(key, None)

    def overdue(self, now_s: float, next_offset: int) -> list[bytes]:
        """The rows that have waited long enough, when all below `next_offset` is learnt."""
        keys = []
        for key, (since_s, before) in self._since.items():
            if now_s - since_s < self._publish_s and next_offset - before.next_offset <= self._most:
                break
            keys.append(key)
        return keys

    def told(self, progress: Progress) -> Progress:
        """The progress that holds of what is published, where `progress` holds of what is learnt."""
        return next((before for _, before in self._since.values()), progress)

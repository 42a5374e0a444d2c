"""Reads replies and impressions from their topics, as somebody outside would, and says what is wrong with them.

Request ids tell whose they are (`<user>/<anything>`), and what each version thinks of each item for each user is known
(tests/harness/service.py): so a list of mixed versions shows, and so does a request that was answered twice, each time
with another list.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from infra.platform.settings import Kafka
from streams.kafka.follow import TopicFollower
from streams.messages import Impression, RecommendReply, decode
from streams.topics import IMPRESSIONS, RECOMMEND_REPLIES
from tests.harness.service import Releases

UNSCORED = {"trending", "catalogue"}  # sources whose own score, or none, may stand where there is no inner product
MOST_BYTES = 8_000_000
TOLERANCE = 1e-3
TAKEDOWN_MS = 2000  # from its acknowledgement until nobody is shown the item


class List(NamedTuple):
    """A list as it was given: when its record was made, from which version, which items."""

    at_ms: int
    version: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Takedown:
    """Acknowledged at `down_ms`; taken back by a message sent at `up_ms`."""

    item: str
    down_ms: int
    up_ms: float


class Lists:
    """All lists by request id, as replied and as recorded."""

    def __init__(self) -> None:
        self.replies: defaultdict[str, list[List]] = defaultdict(list)
        self.impressions: defaultdict[str, list[List]] = defaultdict(list)

    def answered_twice(self) -> list[str]:
        return [request for request, lists in self.replies.items() if len(lists) > 1]

    def answered_otherwise(self, takedowns: Sequence[Takedown] = ()) -> list[str]:
        """Requests that were answered more than once, and not alike but for what was down meanwhile."""
        downs = by_item(takedowns)
        return [request for request, lists in self.replies.items() if not are_alike(lists, downs)]

    def recorded_otherwise(self, takedowns: Sequence[Takedown] = ()) -> list[str]:
        """Requests with a list of which nothing is on record, or another version, or another list (but for what was
        down meanwhile)."""
        downs, shown = by_item(takedowns), self.impressions
        return [
            request
            for request, lists in self.replies.items()
            if lists[0].items and not (request in shown and are_alike([*shown[request], *lists], downs))
        ]


class Witness(Lists):
    """The lists so far, and what was found to be mixed. `read` reads on; one thread at a time."""

    def __init__(self, kafka: Kafka, releases: Releases) -> None:
        super().__init__()
        self._follower = TopicFollower(kafka, RECOMMEND_REPLIES, IMPRESSIONS)
        self._replies_topic = kafka.topic_prefix + RECOMMEND_REPLIES
        self._releases = releases
        self._scores: dict[str, tuple[dict[str, int], dict[str, int], np.ndarray]] = {}
        self.mixed: list[str] = []
        self.compared = 0  # scores
        self.last_items: tuple[str, ...] = ()  # of the newest reply that was read

    def read(self, wait_s: float = 0.1) -> int:
        """Look at what is new; how many records."""
        records = self._follower.poll(wait_s)
        for record in records:
            if record.topic == self._replies_topic:
                self._look_at(record)
            else:
                shown = decode(Impression, record.value, max_bytes=MOST_BYTES)
                self.impressions[shown.request_id].append(list_of(record, shown.version, shown.items))
        return len(records)

    def read_to_the_end(self) -> None:
        ends = sum(self._follower.ends().values())
        while sum(map(len, self.replies.values())) + sum(map(len, self.impressions.values())) < ends:
            self.read()

    def close(self) -> None:
        self._follower.close()

    def shown_late(self, takedowns: Sequence[Takedown], within_ms: int = TAKEDOWN_MS) -> list[str]:
        """Items in replies that were made longer than `within_ms` after their takedown."""
        downs = by_item(takedowns)
        return [
            f"{request}: {item} {at_ms - down.down_ms} ms after its takedown"
            for request, lists in self.replies.items()
            for at_ms, _, items in lists
            for item in items
            for down in downs.get(item, ())
            if down.down_ms + within_ms < at_ms < down.up_ms
        ]

    def _look_at(self, record: Any) -> None:
        reply = decode(RecommendReply, record.value, max_bytes=MOST_BYTES)
        given = list_of(record, reply.version, reply.items)
        self.replies[reply.request_id].append(given)
        self.last_items = given.items or self.last_items
        if reply.error is not None:
            self.mixed.append(f"{reply.request_id}: {reply.error}")
        elif reply.version:
            self._compare(reply)

    def _compare(self, reply: RecommendReply) -> None:
        """Each item is one of the version's, and its score the version's own."""
        users, items, scores = self._of(reply.version)
        row = users.get(reply.request_id.rpartition("/")[0])
        for item in reply.items:
            column = items.get(item.item_id)
            if column is None:
                self.mixed.append(f"{reply.request_id}: {item.item_id} is not of {reply.version}")
            elif row is not None and item.score is not None and item.source not in UNSCORED:
                self.compared += 1
                if abs(item.score - scores[row, column]) > TOLERANCE:
                    self.mixed.append(f"{reply.request_id}: {item} of {reply.version}, not {scores[row, column]}")

    def _of(self, version: str) -> tuple[dict[str, int], dict[str, int], np.ndarray]:
        if version not in self._scores:
            self._scores[version] = self._releases.scores(version)
        return self._scores[version]


def by_item(takedowns: Sequence[Takedown]) -> dict[str, list[Takedown]]:
    found: defaultdict[str, list[Takedown]] = defaultdict(list)
    for each in takedowns:
        found[each.item].append(each)
    return dict(found)


def are_alike(lists: Sequence[List], downs: Mapping[str, Sequence[Takedown]]) -> bool:
    """Whether all are of one version and hold the same; a list that is given again lacks what was taken down since."""
    if len(lists) == 1 or len({each[1:] for each in lists}) == 1:
        return True
    since_ms = min(each.at_ms for each in lists) - TAKEDOWN_MS
    until_ms = max(each.at_ms for each in lists) + TAKEDOWN_MS
    everything = {item for each in lists for item in each.items}
    down = {item for item in everything if any(was_down(each, since_ms, until_ms) for each in downs.get(item, ()))}
    return len({(each.version, tuple(item for item in each.items if item not in down)) for each in lists}) == 1


def was_down(takedown: Takedown, since_ms: int, until_ms: int) -> bool:
    return takedown.down_ms <= until_ms and since_ms <= takedown.up_ms


def list_of(record: Any, version: str, items: Any) -> List:
    return List(record.timestamp, sys.intern(version), tuple(sys.intern(item.item_id) for item in items))

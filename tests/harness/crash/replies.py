"""Reads replies and impressions of a system that learns, and says which lists are of mixed versions.

Rows move while they are served, so there is no one score: what an item may have been given is the inner product of its
user's vector, by the tower of the version that the reply names and from the history that its impression says it was
made from, with one of the rows that this version ever had of the item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.platform.settings import Settings
from models.release.bundle import Bundle
from streams.messages import Impression, RecommendReply, UserHistory, decode
from streams.topics import IMPRESSIONS, RECOMMEND_REPLIES, USER_HISTORIES, partition_of
from tests.harness.crash.replay import MOST_BYTES, read_all
from tests.harness.crash.verdict import rows_of
from tests.harness.witness import TOLERANCE, UNSCORED, Lists, list_of

Floats = npt.NDArray[np.float32]


class Replies(Lists):
    """Those of the whole run, with the messages that they came in."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.compared = 0  # scores
        self._settings = settings
        self._given: list[RecommendReply] = []
        self._recorded: dict[str, list[Impression]] = defaultdict(list)
        for record in read_all(settings, RECOMMEND_REPLIES):
            reply = decode(RecommendReply, record.value, max_bytes=MOST_BYTES)
            self._given.append(reply)
            self.replies[reply.request_id].append(list_of(record, reply.version, reply.items))
        for record in read_all(settings, IMPRESSIONS):
            impression = decode(Impression, record.value, max_bytes=MOST_BYTES)
            self._recorded[impression.request_id].append(impression)
            self.impressions[impression.request_id].append(list_of(record, impression.version, impression.items))

    @property
    def versions(self) -> set[str]:
        return {each.version for lists in self.replies.values() for each in lists if each.version}

    def refused(self) -> list[str]:
        return [f"{reply.request_id}: {reply.error}" for reply in self._given if reply.error is not None]

    def mixed(self, bundles: Sequence[Bundle]) -> list[str]:
        """Items that are not of their reply's version, or have a score that this version never gave."""
        by_version = {bundle.manifest.version: bundle for bundle in bundles}
        rows = self._rows(by_version)
        histories = self._histories()
        found = []
        for version, bundle in by_version.items():
            replies = [reply for reply in self._given if reply.version == version]
            judged = [pair for reply in replies if (pair := self._with_history(reply, histories)) is not None]
            if judged:
                vectors = bundle.model.user_vectors([history for _, history in judged], bundle.manifest.created_ms)
                for (reply, _), vector in zip(judged, vectors, strict=True):
                    found += self._compare(reply, vector, rows[version])
        return found

    def _compare(self, reply: RecommendReply, user: Floats, rows: dict[str, list[Floats]]) -> list[str]:
        found = []
        for item in reply.items:
            if item.item_id not in rows:
                found.append(f"{reply.request_id}: {item.item_id} is not of {reply.version}")
            elif item.score is not None and item.source not in UNSCORED:
                self.compared += 1
                scores = np.stack(rows[item.item_id]) @ user
                if np.abs(scores - item.score).min() > TOLERANCE * (1 + abs(item.score)):
                    found.append(f"{reply.request_id}: {item.item_id} of {reply.version} with {item.score}")
        return found

    def _rows(self, by_version: dict[str, Bundle]) -> dict[str, dict[str, list[Floats]]]:
        """By version and item every vector that there was, the release's own first."""
        rows: dict[str, dict[str, list[Floats]]] = {
            version: {item: [row] for item, row in zip(each.model.item_ids, each.model.item_vectors(), strict=True)}
            for version, each in by_version.items()
        }
        for item, row in rows_of(self._settings):
            rows[row.version].setdefault(item, []).append(np.frombuffer(row.vector, "<f4"))
        return rows

    def _histories(self) -> dict[str, list[tuple[int, bytes]]]:
        """By user every history with its offset, in order."""
        found: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for record in read_all(self._settings, USER_HISTORIES):
            found[record.key.decode()].append((record.offset, record.value))
        return found

    def _with_history(
        self, reply: RecommendReply, histories: dict[str, list[tuple[int, bytes]]]
    ) -> tuple[RecommendReply, UserHistory] | None:
        """The reply and the history that it was made from; None where its impression does not say."""
        alike = [each for each in self._recorded.get(reply.request_id, ()) if each.version == reply.version]
        if not alike or USER_HISTORIES not in alike[0].marks:
            return None
        user, marks = alike[0].user_id, alike[0].marks[USER_HISTORIES]
        partition = partition_of(user, self._settings.kafka.partitions)
        until = marks[partition] if partition < len(marks) else 0
        known = [value for offset, value in histories.get(user, ()) if offset < until]
        history: Any = decode(UserHistory, known[-1], max_bytes=MOST_BYTES) if known else UserHistory(user)
        return reply, history

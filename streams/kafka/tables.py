"""Faust tables that hold what travels: str keys and encoded messages, with a changelog that others can read.

The agent writes the changelog itself, in batches: Faust would send one message for each key that is set, which is the
larger part of an event's cost. Recovery and rebalancing are Faust's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import faust
import structlog

from infra.platform.settings import Settings
from streams import topics
from streams.kafka.faust.patches import partitions_by_key
from streams.kafka.faust_app import raw_topic
from streams.kafka.outbox import Outbox
from streams.messages import M, Refused, decode, encode

log = structlog.get_logger(__name__)


class EncodedTable(faust.Table):
    """The Table of an app."""

    def take_over(self, partition: int, records: Iterable[Any]) -> None:
        """Recovery, the only way (see streams.kafka.recovery): records of one partition of the changelog, as aiokafka
        gives them. One without a key, as an unreadable batch becomes one, is nobody's state; a key that is no text
        names nobody, and is nobody's reason to stop the recovery of others. Of a user who was moved the partition of
        before may come last, with a tombstone: that of the user counts."""
        users, partitions = self.data.data, partitions_by_key(self)
        for record in records:
            if record.key is None:
                continue
            user_id = record.key.decode("utf-8", "replace")
            if user_id in users and partitions.get(user_id) != partition and not self._is_home(user_id, partition):
                continue
            if record.value is None:
                users.pop(user_id, None)
                partitions.pop(user_id, None)
            else:
                users[user_id], partitions[user_id] = record.value, partition

    def _is_home(self, user_id: str, partition: int) -> bool:
        return topics.partition_of(user_id, self.partitions) == partition

    def on_key_set(self, key: Any, value: Any) -> None:
        """Nothing to send: see `put`."""

    def on_key_del(self, key: Any) -> None:
        """Nothing to send: see `put`."""


def create_table(app: faust.App, settings: Settings, name: str, changelog: str) -> Any:
    """A table of users, its changelog the topic `changelog` (without the prefix)."""
    options: Any = {"compacting": True, "internal": True, "allow_empty": True, "partitions": settings.kafka.partitions}
    topic = raw_topic(app, settings, changelog, **options)
    return app.Table(name, partitions=settings.kafka.partitions, use_partitioner=True, changelog_topic=topic)


def put(
    table: Any, changelog: str, user_id: str, message: Any, outbox: Outbox, partitions: int, *, compact: bool = True
) -> None:
    """Set a user's message (None: delete it), and put the change into `outbox` for the changelog; `compact` as in
    streams.messages.encode."""
    encoded = None if message is None else encode(message, compact=compact)
    if encoded is None:
        table.pop(user_id, None)
    else:
        table[user_id] = encoded
    outbox.add(changelog, topics.partition_of(user_id, partitions), user_id.encode(), encoded)


def load(table: Any, kind: type[M], user_id: str) -> M:
    """A user's message; an empty one when there is none."""
    encoded = table.get(user_id)
    if encoded is None:
        return kind(user_id)  # type: ignore[call-arg]
    try:
        return decode(kind, encoded, max_bytes=len(encoded))
    except Refused as refused:
        # Somebody else wrote to the changelog. The user starts anew, which the next event makes true on the topic too.
        log.error("unreadable state in a changelog, starting it anew", kind=kind.__name__, reason=str(refused))
        return kind(user_id)  # type: ignore[call-arg]

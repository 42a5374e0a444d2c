"""The join worker as a Faust app: impressions and watch events in, ranking examples and item statistics out.

What it does with them, and in which order, is in streams.join.worker. Windows also close when nothing comes:
`advance_all` moves event time on. A partition is given up between two pieces of work (`give_up` waits for the lock).
"""

from __future__ import annotations

from contextlib import suppress

import faust

from infra.platform.health import Health
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.erasure.erasure_worker import ErasureWorker
from streams.join.partition import TOPICS
from streams.join.worker import JoinWorker
from streams.kafka.consumer_progress import ConsumerProgress
from streams.kafka.faust_app import create_app, declare_agent, do_every, follow_readiness, give_up_with
from streams.kafka.follow import read_to_end
from streams.kafka.tables import EncodedTable, create_table
from streams.messages import JoinState, Refused, StatisticsRow, decode


def create_join_app(settings: Settings, health: Health) -> faust.App:
    app = create_app(settings, "join", fetch_every_s=settings.join.wait_s, Table=EncodedTable)
    states = create_table(app, settings, "join", topics.JOIN_STATE)
    worker = JoinWorker(settings, states, ConsumerProgress(app, settings.kafka.topic_prefix), read_statistics)
    worker.erasure = ErasureWorker(settings, "join", states, JoinState, worker.drop)
    follow_readiness(app, health, recovered=lambda: app.tables.actives_ready and worker.is_current)
    declare_agent(app, settings, "join", TOPICS, worker.handle, max_=settings.join.batch, within=settings.join.wait_s)
    do_every(app, settings, "nextwatch-join-closings", settings.join.publish_s, worker.advance_all)
    give_up_with(app, worker.give_up)
    return app


def read_statistics(kafka: Kafka) -> dict[int, list[StatisticsRow]]:
    """The rows by partition, read from the topic."""
    rows: dict[bytes, StatisticsRow] = {}
    for record in read_to_end(kafka, topics.ITEM_STATISTICS):
        rows.pop(record.key, None)
        with suppress(Refused):  # a tombstone, or somebody else's; ours are written anew when they are touched
            rows[record.key] = decode(StatisticsRow, record.value)
    by_partition: dict[int, list[StatisticsRow]] = {}
    for row in rows.values():
        by_partition.setdefault(row.partition, []).append(row)
    return by_partition

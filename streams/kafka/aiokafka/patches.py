"""Private parts of aiokafka that we use, all of them for the whole process: Faust makes the consumers.

tests/unit/streams/kafka/test_aiokafka_patches.py tells of each when it is no longer needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import aiokafka.consumer.fetcher
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import CloseReason
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.producer.transaction_manager import NO_PRODUCER_EPOCH, NO_PRODUCER_ID, PidAndEpoch
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.util import create_future

from infra.platform.third_parties.kafka_python.patches import Batches
from infra.platform.third_parties.patching import replace, require_version
from streams.clock import running_s

require_version("aiokafka", "0.12", "0.15")

MUCH = 200  # messages that lie ahead: then there is no time to lose
LOOK_S = 0.5  # between two looks for brokers that are silent
SILENT_S = 2.0  # longer than a broker holds a fetch for which there is nothing (Faust: 1.5 s)
ANSWER_S = 1.0  # so long another broker may take to tell who is there


def pace_fetches(every_s: float) -> None:
    """Let a consumer ask a broker once in `every_s` at most, so that what arrives in between costs one fetch and one
    batch.

    Why: a broker answers as soon as there is one message, and aiokafka asks again at once: at 200 messages a second 200
    fetches and 200 batches, each of which costs broker and worker far more than its message does. And where a broker
    answers empty fetches at once (noida does) an idle consumer takes two thirds of a core. `fetch_min_bytes` would not
    do: what is waited for then is a size, for up to `fetch_max_wait_ms`, which Faust sets to 1.5 s.
    Upstream: dpkp/kafka-python#813 (the same there), redpanda-data/redpanda#1115 (a broker that does not wait);
    aiokafka/consumer/fetcher.py, `_proc_fetch_request`.
    """
    replace(aiokafka.consumer.fetcher.Fetcher, "_proc_fetch_request", partial(_paced, every_s))


def _paced(every_s: float, fetch: Any) -> Any:
    async def fetch_in_turn(self: Any, assignment: Any, node_id: Any, request: Any) -> bool:
        begun_s = self.__dict__.setdefault("begun_s", {})  # by broker
        wait_s = begun_s.get(node_id, -math.inf) + every_s - time.monotonic()
        if wait_s > 0 and not _is_behind(assignment, request):
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:  # close() cancels us and awaits our result
                return False
        begun_s[node_id] = time.monotonic()
        has_data: bool = await fetch(self, assignment, node_id, request)
        return has_data

    return fetch_in_turn


def _is_behind(assignment: Any, request: Any) -> bool:
    """Return whether a partition that is asked for has more than a fetch of large messages brings."""
    asked = (TopicPartition(topic, place) for topic, places in request.topics for place, *_ in places)
    states = [state for place in asked if (state := assignment.state_value(place)) is not None]
    return any(s.has_valid_position and (s.highwater or 0) - s.position > MUCH for s in states)


def read_batches(batches: Batches) -> None:
    """Let consumers read what `batches` makes of the fetched bytes.

    Why: a batch is unpacked without a limit, by libraries that need not be installed, and one whose headers have names
    that are not UTF-8 ends each fetch at the same place, for ever. Neither has a setting.
    Upstream: aio-libs/aiokafka#922, robinhood/aiokafka#28 (missing libraries); aiokafka/record/default_records.py,
    `_maybe_uncompress` and `_read_msg`; aiokafka/consumer/fetcher.py, `PartitionRecords`.
    """
    replace(aiokafka.consumer.fetcher, "MemoryRecords", lambda theirs: partial(_Fetched, theirs, batches))
    replace(aiokafka.consumer.fetcher, "PartitionRecords", partial(_records_of, batches))


class _Fetched:
    """aiokafka's MemoryRecords of what was unpacked."""

    def __init__(self, make: Any, batches: Batches, data: bytes) -> None:
        self.data, self.make = batches.unpacked(data), make
        records = make(self.data)
        self.has_next, self.next_batch, self.size_in_bytes = records.has_next, records.next_batch, records.size_in_bytes


def _records_of(batches: Batches, partition_records: Any) -> Any:
    class Records(partition_records):  # type: ignore[misc]
        _records: Any

        def _unpack_records(self) -> Iterator[Any]:
            try:
                yield from super()._unpack_records()
            except (CorruptRecordException, ValueError):
                again = batches.readable(self._records.data)
                if again == self._records.data:
                    raise
                self._records, first = self._records.make(again), self.next_fetch_offset
                yield from (record for record in super()._unpack_records() if record.offset >= first)

    return Records


def note_confirmations() -> None:
    """Let every coordinator keep `heard_s`, when the last request was sent by which the group confirmed us, and
    `settled_s`, the same of one at which it was not about to choose anew.

    Why: a worker that was paused must know whether its partitions may be another's by now, and aiokafka keeps neither
    time. The time of the answer would not do: it may have lain in the socket of the paused process.
    Upstream: kafka-python-ng/kafka-python-ng#188 (the same wish there); aiokafka/consumer/group_coordinator.py,
    `_do_heartbeat` and `_send_sync_group_request`.
    """
    if not hasattr(GroupCoordinator, "heard_s"):
        GroupCoordinator.heard_s = GroupCoordinator.settled_s = -math.inf
    replace(GroupCoordinator, "_do_heartbeat", _noting_heartbeat)
    replace(CoordinatorGroupRebalance, "_send_sync_group_request", _noting_sync)


def _noting_heartbeat(beat: Any) -> Any:
    async def noted_beat(self: Any) -> bool:
        sent_s = running_s()
        is_good: bool = await beat(self)
        if is_good:
            self.heard_s = sent_s
            if not self._rejoin_needed_fut.done():
                self.settled_s = sent_s
        return is_good

    return noted_beat


def _noting_sync(sync: Any) -> Any:
    async def noted_sync(self: Any, request: Any) -> Any:
        sent_s = running_s()
        assignment = await sync(self, request)
        if assignment is not None:
            self._coordinator.heard_s = self._coordinator.settled_s = sent_s
        return assignment

    return noted_sync


def is_out_of_group(coordinator: Any) -> bool:
    """Return whether the group goes on without this member: it has no id any more, has to join again, or has failed.

    Why: aiokafka tells its listener only when it has joined again.
    Upstream: aiokafka/consumer/group_coordinator.py, `ensure_active_group` and `_coordination_routine`.
    """
    is_choosing = not coordinator.member_id or coordinator._rejoin_needed_fut.done()
    has_failed = coordinator._pending_exception is not None or coordinator._coordination_task.done()
    return bool(is_choosing or has_failed)


def number_anew(producer: AIOKafkaProducer) -> None:
    """Let an idempotent producer ask for a new id, under which it numbers its records from 0 on.

    Why: a batch that is given up because its partition has had no leader for too long has taken its numbers with it.
    The broker never sees them, and refuses whatever follows as out of order, for ever.
    Upstream: aiokafka/producer/message_accumulator.py, `drain_by_nodes` and `_pop_batch`; Java's producer does the same
    (KIP-360).
    """
    numbers = producer._txn_manager
    if numbers is not None and numbers.has_pid():  # else it is being asked for
        numbers._pid_and_epoch = PidAndEpoch(NO_PRODUCER_ID, NO_PRODUCER_EPOCH)
        numbers._pid_waiter = create_future()
        numbers._sequence_numbers.clear()


def leave_lost_brokers() -> None:
    """Let every client close its connections to brokers that answer nothing and are no longer in the cluster's list.

    Why: as nextwatch_client/patches.py says of kafka-python; here a request waits for 40 s, in Faust for 90 s.
    Upstream: aio-libs/aiokafka#187 (metadata asked of a broker that is away); aiokafka/client.py, `_metadata_update`.
    """
    replace(AIOKafkaClient, "bootstrap", _watching)


def _watching(bootstrap: Any) -> Any:
    async def watched(self: Any) -> None:
        await bootstrap(self)
        if not hasattr(self, "lost_brokers"):
            self.lost_brokers = asyncio.create_task(_leave_lost(self))
            self._sync_task.add_done_callback(lambda _: self.lost_brokers.cancel())

    return watched


async def _leave_lost(client: Any) -> None:
    silence = Silence()
    while True:
        await asyncio.sleep(LOOK_S)
        silent = silence.look({place: _oldest(conn) for place, conn in client._conns.items()}, time.monotonic())
        if silent:
            await _ask_others(client, {node_id for node_id, _ in silent})
            for node_id, group in silent:
                conn = client._conns.get((node_id, group))
                if conn is not None and client.cluster.broker_metadata(node_id) is None:
                    conn.close(reason=CloseReason.CONNECTION_TIMEOUT)


def _oldest(conn: Any) -> Any:
    """Return what tells the request that a connection has waited for longest from others; None where there is none."""
    return (id(conn), conn._requests[0][0]) if conn._requests else None


class Silence:
    """Since when each connection waits for the same answer."""

    def __init__(self) -> None:
        self._since: dict[Any, tuple[Any, float]] = {}

    def look(self, waiting: Mapping[Any, Any], now_s: float) -> set[Any]:
        """Return the connections that have waited for long. `waiting`: of each what it waits for, None for nothing."""
        before = self._since
        self._since = {
            place: before[place] if place in before and before[place][0] == oldest else (oldest, now_s)
            for place, oldest in waiting.items()
            if oldest is not None
        }
        return {place for place, (_, since_s) in self._since.items() if now_s - since_s >= SILENT_S}


async def _ask_others(client: Any, silent: set[Any]) -> None:
    """Learn from a broker that is not silent who is there and who leads what."""
    brokers = [broker.nodeId for broker in client.cluster.brokers() if broker.nodeId not in silent]
    for node_id in random.sample(brokers, len(brokers)):
        topics = set(client._topics)
        with contextlib.suppress(KafkaError, TimeoutError):
            metadata = await asyncio.wait_for(client.send(node_id, MetadataRequest(list(topics) or None)), ANSWER_S)
            if metadata.brokers and topics == client._topics:
                client.cluster.update_metadata(metadata)
                return

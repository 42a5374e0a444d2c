"""Private parts of kafka-python that we use.

tests/unit/infra/platform/test_kafka_python_patches.py tells of each when it is no longer needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, NotLeaderForPartitionError
from kafka.record import MemoryRecords

from infra.platform.third_parties.patching import replace, require_version

require_version("kafka-python", "3.0", "3.1")


class Batches(Protocol):
    """Fetched record batches made fit for a client (streams/kafka/unpacking.py)."""

    def unpacked(self, records: Any) -> Any: ...
    def readable(self, records: Any) -> bytes: ...


def ask_for_metadata_once() -> None:
    """Let every client of this process ask for an update of its metadata once, until it has come or failed.

    Why: a producer with something to send to a partition without a leader (its broker was stopped in order, or has just
    started) asks in each turn of its loop, and each time wakes itself up for the next: a whole core, in every process,
    just when brokers start. There is no setting for it.
    Upstream: dpkp/kafka-python#1284 (the sender's loop without a leader); kafka/cluster.py, `request_update`.
    """
    replace(ClusterMetadata, "request_update", _asking_once)


def _asking_once(ask: Any) -> Any:
    def request_update(self: Any) -> Any:
        with self._lock:
            asked = self._future if self._need_update else None
        return ask(self) if asked is None or asked.is_done else asked

    return request_update


def look_for_moved_leaders() -> None:
    """Let every consumer of this process wait for new metadata when a broker leads a partition no more whose offsets it
    is asked for.

    Why: it asks the same broker again, without a pause, until its time is over (30 s) or its metadata are five minutes
    old. A server that is given partitions after the brokers were restarted one by one would wait so, and end. Told by
    an error, as where a broker is gone, it asks for metadata and waits for them.
    Upstream: kafka/consumer/fetcher.py, `_fetch_offsets_by_times_async`: partitions to retry.
    """
    replace(Fetcher, "_handle_list_offsets_response", _looking_for_leaders)


def _looking_for_leaders(handle: Any) -> Any:
    def handle_list_offsets_response(self: Any, response: Any) -> Any:
        offsets, moved = handle(self, response)
        if moved:
            raise NotLeaderForPartitionError(str(moved))
        return offsets, moved

    return handle_list_offsets_response


def stop_sending(producer: Any, timeout_s: float) -> None:
    """End the thread of a producer, whatever it has to send.

    Why: `KafkaProducer.close` flushes first, and when that times out it raises and leaves the thread running.
    Upstream: dpkp/kafka-python#2537 (the flush in `close`), #1052 (one that hangs); kafka/producer/kafka.py, `close`.
    """
    producer._sender.force_close()
    producer._sender.join(timeout_s)


def hear_heartbeats(consumer: Any, *, sent: Callable[[], None], received: Callable[[], None]) -> None:
    """Call `sent` when a consumer sends a heartbeat to its group, and `received` when the group has answered it.

    Why: a member that was paused must know whether its partitions may be another's by now. That is told by when the
    last answered heartbeat was *sent* (its answer may have lain in the socket of the paused process), and kafka-python
    keeps the times of the last one sent and of the last answer only.
    Upstream: kafka-python-ng/kafka-python-ng#188 (the same wish); kafka/coordinator/heartbeat.py, `Heartbeat`.
    """
    heartbeat = consumer._coordinator.heartbeat
    heartbeat.sent_heartbeat = _after(sent, heartbeat.sent_heartbeat)
    heartbeat.received_heartbeat = _after(received, heartbeat.received_heartbeat)


def _after(ours: Callable[[], None], theirs: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        ours()
        theirs()

    return call


def read_batches(consumer: Any, batches: Batches) -> Any:
    """Return the same consumer, reading what `batches` makes of the fetched bytes.

    Why: a batch is unpacked without a limit, and one whose headers have names that are not UTF-8 ends each poll at the
    same place, for ever. Neither has a setting. Other consumers of the process are left alone.
    Upstream: kafka/record/default_records.py, `_maybe_uncompress` and `_read_msg`; kafka/consumer/fetcher.py,
    `PartitionRecords` (dpkp/kafka-python#1443 and #541 are of the same kind).
    """
    consumer._fetcher.PartitionRecords = partial(_Records, batches=batches)
    return consumer


class _Records(Fetcher.PartitionRecords):  # type: ignore[misc]
    """Records that a consumer has fetched of a partition."""

    def __init__(self, fetch_offset: int, tp: Any, records: Any, *, batches: Batches, **options: Any) -> None:
        self._batches, self._data = batches, batches.unpacked(records._buffer)
        super().__init__(fetch_offset, tp, MemoryRecords(self._data), **options)

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        try:
            yield from super()._unpack_records(tp, records, *deserializers)
        except (CorruptRecordError, ValueError):
            again = self._batches.readable(self._data)
            if again == self._data:
                raise
            first = self.next_fetch_offset
            rest = super()._unpack_records(tp, MemoryRecords(again), *deserializers)
            yield from (record for record in rest if record.offset >= first)

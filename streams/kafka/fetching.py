"""Has Kafka's clients read what streams/kafka/unpacking.py has unpacked: within bounds, whatever codec, whatever the
names of headers are.

Neither client has a place for that, so what they call on a fetched partition is replaced: in kafka-python for each of
our own consumers, in aiokafka, whose consumers Faust makes, for the process. A process that uses our client beside its
own Kafka clients is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import aiokafka.consumer.fetcher
import aiokafka.errors
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords

from infra.platform.settings import Kafka
from streams.kafka.unpacking import TIMES, are_intact, readable, unpacked


def most_bytes(kafka: Kafka) -> int:
    """What a batch may unpack to."""
    return TIMES * kafka.max_message_bytes


def unpack_for(consumer: Any, kafka: Kafka) -> Any:
    """The same kafka-python consumer, reading what was unpacked."""
    consumer._fetcher.PartitionRecords = partial(_KafkaPython, most=most_bytes(kafka))
    return consumer


def unpack_for_faust(kafka: Kafka) -> None:
    """Every aiokafka consumer of this process reads what was unpacked."""
    fetcher = aiokafka.consumer.fetcher
    if not isinstance(fetcher.MemoryRecords, partial):
        fetcher.MemoryRecords = partial(_Fetched, fetcher.MemoryRecords, most_bytes(kafka))
        fetcher.PartitionRecords = _aiokafka_records(fetcher.PartitionRecords)


class _KafkaPython(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What a kafka-python consumer has fetched of a partition."""

    def __init__(self, fetch_offset: int, tp: Any, records: Any, *, most: int, **options: Any) -> None:
        self._data = unpacked(records._buffer, most)
        self._is_intact = are_intact(self._data)
        options["check_crcs"] = False
        super().__init__(fetch_offset, tp, MemoryRecords(self._data), **options)

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        if not self._is_intact:
            raise CorruptRecordError(f"a record batch of {tp} at {self.fetch_offset} or later failed its checksum")
        try:
            yield from super()._unpack_records(tp, records, *deserializers)
        except (CorruptRecordError, ValueError):
            again = readable(self._data)
            if again == self._data:
                raise
            first = self.next_fetch_offset
            rest = super()._unpack_records(tp, MemoryRecords(again), *deserializers)
            yield from (record for record in rest if record.offset >= first)


class _Fetched:
    """aiokafka's MemoryRecords of what was unpacked."""

    def __init__(self, make: Any, most: int, data: bytes) -> None:
        self.data, self.make = unpacked(data, most), make
        records = make(self.data)
        self.has_next, self.next_batch, self.size_in_bytes = records.has_next, records.next_batch, records.size_in_bytes


def _aiokafka_records(partition_records: Any) -> Any:
    class Records(partition_records):  # type: ignore[misc]
        _records: Any

        def _unpack_records(self) -> Iterator[Any]:
            try:
                yield from super()._unpack_records()
            except (aiokafka.errors.CorruptRecordException, ValueError):
                again = readable(self._records.data)
                if again == self._records.data:
                    raise
                self._records, first = self._records.make(again), self.next_fetch_offset
                yield from (record for record in super()._unpack_records() if record.offset >= first)

    return Records

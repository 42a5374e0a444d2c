"""What kafka-python does by itself: where a test fails, its patch is no longer needed (or kafka-python has changed)."""

from math import inf
from threading import RLock
from types import SimpleNamespace

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.heartbeat import Heartbeat
from kafka.errors import CorruptRecordError, InvalidMetadataError, KafkaTimeoutError, NotLeaderForPartitionError
from kafka.record import MemoryRecords

from infra.platform.kafka_clients import close_producer
from infra.platform.third_parties.kafka_python.patches import (
    ask_for_metadata_once,
    hear_heartbeats,
    look_for_moved_leaders,
)
from infra.platform.third_parties.patching import original
from tests.harness.raw_batches import GZIP, NAMED, batch, with_bad_name
from tests.unit.streams.kafka.test_unpacking import PLACE


def wake_ups_of(ask) -> int:
    """How often a client is woken up that has asked for metadata twice, and has not got it."""
    woken: list[bool] = []
    cluster = SimpleNamespace(
        _lock=RLock(),
        _need_update=False,
        _future=None,
        _manager=True,
        _wakeup=SimpleNamespace(notify=lambda: woken.append(True)),
        start_refresh_loop=lambda: None,
    )
    assert ask(cluster) is ask(cluster)
    return len(woken)


def test_a_client_that_waits_for_metadata_is_woken_up_for_each_question():
    ask_for_metadata_once()
    assert wake_ups_of(original(ClusterMetadata, "request_update")) == 2
    assert wake_ups_of(ClusterMetadata.request_update) == 1


def test_a_consumer_that_asks_for_offsets_does_not_look_where_the_leader_is_now():
    partition = SimpleNamespace(partition_index=0, error_code=NotLeaderForPartitionError.errno)
    response = SimpleNamespace(topics=[SimpleNamespace(name="mine", partitions=[partition])])
    look_for_moved_leaders()
    theirs = original(Fetcher, "_handle_list_offsets_response")
    assert theirs(None, response) == ({}, {TopicPartition("mine", 0)}), "which is asked again at once, of the same"
    assert issubclass(NotLeaderForPartitionError, InvalidMetadataError), "for which it waits for new metadata"
    with pytest.raises(NotLeaderForPartitionError):
        Fetcher._handle_list_offsets_response(None, response)


def test_no_consumer_tells_when_the_heartbeat_was_sent_that_its_group_has_answered():
    heartbeat, heard = Heartbeat(), []
    hear_heartbeats(
        SimpleNamespace(_coordinator=SimpleNamespace(heartbeat=heartbeat)),
        sent=lambda: heard.append("sent"),
        received=lambda: heard.append("received"),
    )
    heartbeat.sent_heartbeat()
    heartbeat.received_heartbeat()
    assert heard == ["sent", "received"] and heartbeat.last_send <= heartbeat.last_receive < inf
    assert {name for name in vars(heartbeat) if name.startswith("last_")} == {
        "last_send",
        "last_receive",
        "last_poll",
        "last_reset",
    }
    assert not [name for name in dir(KafkaConsumer) if "heartbeat" in name]


@pytest.fixture
def producer(monkeypatch):
    def time_out(timeout=None):
        raise KafkaTimeoutError

    producer = KafkaProducer(bootstrap_servers="127.0.0.1:1", api_version=(2, 8), max_block_ms=10)
    monkeypatch.setattr(producer, "flush", time_out)
    yield producer
    producer._sender.force_close()
    producer._sender.join(5)


def test_a_producer_that_cannot_flush_goes_on_for_ever_when_it_is_closed(producer):
    with pytest.raises(KafkaTimeoutError):
        producer.close(timeout=0.1)
    assert producer._sender.is_alive()
    with pytest.raises(KafkaTimeoutError):
        close_producer(producer, 5)
    assert not producer._sender.is_alive()


def test_nothing_bounds_what_a_batch_is_unpacked_to():
    assert not [name for name in KafkaConsumer.DEFAULT_CONFIG if "compress" in name or "unpack" in name]
    records = MemoryRecords(batch([b"\0" * 20_000_000], GZIP))
    assert len(Fetcher.PartitionRecords(0, PLACE, records).take(1)[0].value) == 20_000_000


def test_a_header_whose_name_is_no_text_ends_the_reading():
    records = MemoryRecords(with_bad_name(batch([b"a"], headers=NAMED)))
    with pytest.raises(CorruptRecordError, match="UnicodeDecodeError"):
        Fetcher.PartitionRecords(0, PLACE, records).take(1)

"""Fetched batches: each codec is unpacked, a bomb is one record that says so, and what clients insist on is mended."""

import gzip
import struct
import time
import tracemalloc
from typing import Any

import aiokafka.consumer.fetcher
import cramjam
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError

from infra.platform.settings import Kafka
from streams.kafka.unpacking import readable, unpack_for, unpack_for_faust, unpacked
from streams.messages import UNREADABLE, Refused, WatchEvent, decode
from tests.harness.raw_batches import (
    AT_MS,
    CODECS,
    GZIP,
    HEADERS,
    LZ4,
    NAMED,
    SNAPPY,
    ZSTD,
    batch,
    with_bad_name,
    with_body,
    with_checksum,
)

MOST = 1_000_000
PLACE = TopicPartition("t", 0)
LIMIT = Kafka(max_message_bytes=MOST // 32)


def read(data: bytes) -> list[Any]:
    records, found = MemoryRecords(data), []
    while records.has_next():
        each = records.next_batch()
        assert each.validate_crc(), "clients check it"
        found += [(record.offset, record.timestamp, record.key, record.value, record.headers) for record in each]
    return found


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_batch_of_each_codec_is_what_was_sent(codec):
    values = [b"first", None, b"x" * 5000]
    sent = [(40 + at, AT_MS + at, b"key", value, HEADERS) for at, value in enumerate(values)]
    data = unpacked(batch(values, codec, first=40) + batch([b"behind"], first=43), MOST)
    assert read(data) == [*sent, (43, AT_MS, b"key", b"behind", HEADERS)]


def test_what_is_not_compressed_is_not_even_copied():
    data = batch([b"a"]) + batch([b"b"], first=1)
    assert unpacked(data, MOST) is data


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD], ids=["gzip", "snappy", "lz4", "zstd"])
def test_a_bomb_takes_little_memory_and_becomes_one_record_that_is_refused(codec):
    bomb = batch([b"\0" * 100_000_000], codec, first=7)
    tracemalloc.start()
    began_s = time.process_time()
    data = unpacked(bomb + batch([b"good"], first=8), MOST)
    taken, _ = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert taken < 8 * MOST + 4 * len(bomb) and time.process_time() - began_s < 2
    [(offset, _, key, value, _), good] = read(data)
    assert (offset, key) == (7, None) and value.startswith(UNREADABLE) and b"more than 1000000" in value
    assert good[0] == 8 and good[3] == b"good"
    with pytest.raises(Refused) as refused:
        decode(WatchEvent, value)
    assert refused.value.code == "unreadable" and "more than 1000000" in str(refused.value)


def test_many_small_records_that_are_too_much_together_are_one_record_and_none_is_read_twice():
    data = unpacked(batch([b"\0" * 20_000] * 100, GZIP), MOST) + batch([b"good"], first=100)
    assert [record[0] for record in read(data)] == [0, 100]
    records = MemoryRecords(data)
    assert records.next_batch().next_offset == 100, "the next fetch begins behind the batch"


def test_a_batch_that_cannot_be_unpacked_is_one_record_that_says_why():
    packed = bytearray(batch([b"value" * 100], GZIP))
    for codec in (GZIP, SNAPPY, LZ4, ZSTD, 5, 7):
        packed[22] = packed[22] & ~7 | codec
        packed[61:] = b"\x01 this is no stream of anything"
        struct.pack_into(">i", packed, 8, len(packed) - 12)
        [record] = read(unpacked(with_checksum(packed), MOST))
        assert record[3].startswith(UNREADABLE) and b"cannot be unpacked" in record[3]


def test_gzip_streams_of_several_members_and_cut_off_ones_are_told_apart():
    plain = bytearray(batch([b"value"]))
    body, plain[22] = bytes(plain[61:]), GZIP
    members = gzip.compress(body[:4]) + gzip.compress(body[4:])
    assert read(unpacked(with_checksum(with_body(plain, members)), MOST)) == read(batch([b"value"]))
    [record] = read(unpacked(with_checksum(with_body(plain, members[:-9])), MOST))
    assert b"cannot be unpacked" in record[3]
    members, began_s = gzip.compress(body) + 150_000 * gzip.compress(b""), time.process_time()
    assert read(unpacked(with_checksum(with_body(plain, members)), MOST)) == read(batch([b"value"]))
    assert time.process_time() - began_s < 5, "not in proportion to the square of their number"


def test_java_frames_its_snappy_blocks():
    plain = bytearray(batch([b"value" * 1000]))
    body, plain[22] = bytes(plain[61:]), SNAPPY
    blocks = [bytes(cramjam.snappy.compress_raw(part)) for part in (body[:3000], body[3000:])]
    framed = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1) + b"".join(struct.pack(">i", len(b)) + b for b in blocks)
    assert read(unpacked(with_checksum(with_body(plain, framed)), MOST)) == read(batch([b"value" * 1000]))


def test_a_batch_with_a_wrong_checksum_is_left_for_the_client_to_fetch_again():
    packed = bytearray(batch([b"value" * 100], GZIP))
    packed[-1] ^= 1
    assert unpacked(bytes(packed), MOST) == bytes(packed)


def test_names_of_headers_that_are_not_text_are_read_as_far_as_they_can_be():
    mended = readable(with_bad_name(batch([b"a", None], headers=NAMED)))
    assert [record[4] for record in read(mended)] == 2 * [[("caf??", b"1"), ("plain", None)]]
    assert [record[:4] for record in read(mended)] == [record[:4] for record in read(batch([b"a", None]))]
    assert readable(batch([b"a"], headers=NAMED)) == batch([b"a"], headers=NAMED)


def taken_by_kafka_python(data: bytes, first: int = 0) -> list[Any]:
    class Consumer:
        _fetcher = type("Own", (), {"PartitionRecords": Fetcher.PartitionRecords})()

    class Records:
        _buffer = data

    parts = unpack_for(Consumer(), LIMIT)._fetcher.PartitionRecords(first, PLACE, Records)
    taken = []
    while parts:
        taken += parts.take(2)
    return [(record.offset, record.value, record.headers) for record in taken]


def taken_by_faust(data: bytes, first: int = 0) -> list[Any]:
    unpack_for_faust(LIMIT)
    fetcher = aiokafka.consumer.fetcher
    parts = fetcher.PartitionRecords(PLACE, fetcher.MemoryRecords(data), [], first, None, None, True, 0)
    return [(record.offset, record.value, list(record.headers)) for record in parts]


@pytest.fixture(autouse=True)
def aiokafka_as_it_was(monkeypatch):
    for name in ("MemoryRecords", "PartitionRecords"):
        monkeypatch.setattr(aiokafka.consumer.fetcher, name, getattr(aiokafka.consumer.fetcher, name))


@pytest.mark.parametrize("take", [taken_by_kafka_python, taken_by_faust])
def test_a_client_reads_good_messages_between_all_of_these(take):
    named = with_bad_name(batch([b"4", b"5"], headers=NAMED, first=4)) + batch([b"6"], first=6)
    bomb = batch([b"\0" * 50_000_000], ZSTD, first=3)
    found = take(batch([b"0"]) + batch([b"1", b"2"], LZ4, first=1) + bomb + named)
    assert [offset for offset, *_ in found] == list(range(7))
    assert [value for _, value, _ in found if len(value) == 1] == [b"0", b"1", b"2", b"4", b"5", b"6"]
    assert found[4][2][0] == ("caf??", b"1")
    assert [offset for offset, *_ in take(named, first=5)] == [5, 6], "what was read before is not read again"


def test_a_corrupt_batch_is_an_error_and_not_a_message():
    data = bytearray(batch([b"a"]))
    data[-2] ^= 1
    with pytest.raises(CorruptRecordError):
        taken_by_kafka_python(bytes(data))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.sampled_from([GZIP, SNAPPY, LZ4, ZSTD]), st.data())
def test_whatever_a_batch_holds_it_is_read_or_said_to_be_unreadable(values, codec, data):
    packed = bytearray(batch(values, codec))
    if len(packed) == len(batch(values)) or not packed[22] & 7:
        return  # too small to be worth packing
    for _ in range(data.draw(st.integers(0, 3))):
        packed[data.draw(st.integers(61, len(packed) - 1))] = data.draw(st.integers(0, 255))
    found = MemoryRecords(unpacked(with_checksum(packed), MOST)).next_batch()
    assert isinstance(found, DefaultRecordBatch) and found.next_offset == len(values)

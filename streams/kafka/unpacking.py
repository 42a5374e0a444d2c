"""Compressed record batches, unpacked within bounds before a client reads them.

A batch of a few kilobytes can unpack to gigabytes, and the clients unpack whatever comes: one such batch would end
every process that reads its partition, again after each restart. And they unpack gzip only, unless they find other
libraries, while producers use lz4, snappy and zstd as well. So compressed batches are unpacked here, within a limit,
and handed on as plain ones. One that is larger, or cannot be unpacked, becomes a single record that says so
(`UNREADABLE`): every reader refuses it as it refuses any other junk, and the stream goes on.

The names of headers are text, and clients insist; brokers do not check. Such a name must cost neither its message nor
the others of its batch, so what is no text in it is written over.

Only batches of format 2 are looked at: brokers from version 3 on store no others.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import cramjam
import numpy as np
from aiokafka.record.util import calc_crc32c, decode_varint, encode_varint

from infra.platform.settings import Kafka
from infra.platform.third_parties.kafka_python import patches as kafka_python
from streams.kafka.aiokafka import patches as aiokafka
from streams.messages import UNREADABLE

TIMES = 32  # as large as the largest message may a batch become

_HEADER = struct.Struct(">qiibIhiqqqhii")  # from the base offset to the number of records
_LENGTH = struct.Struct(">i")
_CRC = struct.Struct(">I")
_LENGTH_AT, _MAGIC_AT, _CRC_AT, _ATTRIBUTES_AT = 8, 16, 17, 21
_OVERHEAD = 12  # base offset and length, which are not part of the length
_CODEC = 0x07
_XERIAL = b"\x82SNAPPY\x00"


class TooLarge(ValueError):
    """A batch unpacks to more than the limit."""


class _BoundedBatches(NamedTuple):
    """Fetched batches, none of which unpacks to more than `most_bytes`."""

    most_bytes: int

    def unpacked(self, records: Any) -> Any:
        return unpacked(records, self.most_bytes)

    def readable(self, records: Any) -> bytes:
        return readable(records)


def unpack_for(consumer: Any, kafka: Kafka) -> Any:
    """Return the same kafka-python consumer, reading what was unpacked. Others of the process are left alone: our
    client may be used beside somebody's own Kafka clients."""
    return kafka_python.read_batches(consumer, _BoundedBatches(TIMES * kafka.max_message_bytes))


def unpack_for_faust(kafka: Kafka) -> None:
    """Let every aiokafka consumer of this process read what was unpacked."""
    aiokafka.read_batches(_BoundedBatches(TIMES * kafka.max_message_bytes))


def unpacked(records: Any, most_bytes: int) -> Any:
    """Return batches as they were fetched, with none of them compressed; the same object when none was. A batch that
    is not intact stays as it is."""
    places = list(_batches(records))
    if not any(_is_packed(records, start) for start, _ in places):
        return records
    view = memoryview(records)
    parts = [
        _unpack(view[start:end], most_bytes) if _is_packed(records, start) else view[start:end] for start, end in places
    ]
    return b"".join([*parts, view[places[-1][1] :]])  # the rest: a batch that the broker has cut off


def readable(records: Any) -> bytes:
    """Return batches (not compressed) with a `?` in the names of headers for each byte that is not UTF-8."""
    raw = bytearray(records)
    for start, end in list(_batches(raw)):
        if raw[start + _MAGIC_AT] == 2 and _is_intact(memoryview(raw)[start:end]):
            at = start + _HEADER.size
            for _ in range(_HEADER.unpack_from(raw, start)[-1]):
                length, at = decode_varint(raw, at)
                _mend_record(raw, at)
                at += length
            _CRC.pack_into(raw, start + _CRC_AT, calc_crc32c(raw[start + _ATTRIBUTES_AT : end]))
    return bytes(raw)


def _batches(records: Any) -> Iterator[tuple[int, int]]:
    """Yield where each whole batch begins and ends."""
    start = 0
    while start + _OVERHEAD <= len(records):
        end = start + _OVERHEAD + _LENGTH.unpack_from(records, start + _LENGTH_AT)[0]
        if end > len(records) or end <= start + _OVERHEAD:
            return
        yield start, end
        start = end


def _is_packed(records: Any, start: int) -> bool:
    return bool(records[start + _MAGIC_AT] == 2 and records[start + _ATTRIBUTES_AT + 1] & _CODEC)


def _is_intact(batch: memoryview) -> bool:
    return bool(_CRC.unpack_from(batch, _CRC_AT)[0] == calc_crc32c(batch[_ATTRIBUTES_AT:]))


def _unpack(batch: memoryview, most_bytes: int) -> memoryview | bytes:
    if not _is_intact(batch):
        return batch
    fields = _HEADER.unpack_from(batch)
    codec = fields[5] & _CODEC
    packed = batch[_HEADER.size :]
    try:
        return _batch(fields, UNPACK[codec](packed, most_bytes))
    except TooLarge:
        why = f"its {len(packed)} bytes become more than {most_bytes}"
    except (KeyError, ValueError, struct.error, cramjam.DecompressionError, IndexError) as error:
        why = f"it cannot be unpacked (codec {codec}): {error}"
    return _batch((*fields[:-1], 1), _record(UNREADABLE + why.encode(errors="replace")[:500]))


def _batch(fields: tuple[int, ...], body: bytes) -> bytes:
    """Return a plain batch with the header `fields` of a packed one."""
    base_offset, _, epoch, magic, _, attributes, *rest = fields
    length = _HEADER.size - _OVERHEAD + len(body)
    plain = bytearray(_HEADER.pack(base_offset, length, epoch, magic, 0, attributes & ~_CODEC, *rest) + body)
    _CRC.pack_into(plain, _CRC_AT, calc_crc32c(plain[_ATTRIBUTES_AT:]))
    return bytes(plain)


def _record(value: bytes) -> bytes:
    """Return the first record of a batch, with this value and nothing else."""
    body = bytearray(b"\x00")  # attributes
    for number in (0, 0, -1, len(value)):  # time, offset, no key, value
        encode_varint(number, body.append)
    body += value
    encode_varint(0, body.append)
    length = bytearray()
    encode_varint(len(body), length.append)
    return bytes(length + body)


# --- codecs ----------------------------------------------------------------------------------------------------------


def _into(unpack: Callable[[Any, Any], int], packed: memoryview | bytes, most_bytes: int) -> bytes:
    """Unpack into room for the limit and one byte more; memory is only touched as far as it is written."""
    room = np.empty(most_bytes + 1, np.uint8)
    try:
        size = unpack(bytes(packed), room)
    except cramjam.DecompressionError as error:
        if "whole buffer" in str(error):
            raise TooLarge from None
        raise
    if size > most_bytes:
        raise TooLarge
    return room[:size].tobytes()


def _unsnappy(packed: memoryview, most_bytes: int) -> bytes:
    """Unpack one raw block, or Java's frame around several."""
    raw = bytes(packed)
    if not raw.startswith(_XERIAL):
        return _unsnappy_block(raw, most_bytes)
    found, at = bytearray(), 16
    while at < len(raw):
        size = _LENGTH.unpack_from(raw, at)[0]
        if size < 0:
            raise ValueError("a block of its snappy frame has a negative length")
        found += _unsnappy_block(raw[at + 4 : at + 4 + size], most_bytes - len(found))
        at += 4 + size
    return bytes(found)


def _unsnappy_block(block: bytes, most_bytes: int) -> bytes:
    if cramjam.snappy.decompress_raw_len(block) > most_bytes:
        raise TooLarge
    return bytes(cramjam.snappy.decompress_raw(block))


UNPACK: dict[int, Callable[[memoryview, int], bytes]] = {
    1: partial(_into, cramjam.gzip.decompress_into),
    2: _unsnappy,
    3: partial(_into, cramjam.lz4.decompress_into),
    4: partial(_into, cramjam.zstd.decompress_into),
}

# --- names of headers ------------------------------------------------------------------------------------------------


def _mend_record(raw: bytearray, at: int) -> None:
    at += 1  # attributes
    for _ in range(2):  # time and offset
        _, at = decode_varint(raw, at)
    for _ in range(2):  # key and value
        at = _behind_bytes(raw, at)
    count, at = decode_varint(raw, at)
    for _ in range(count):
        size, first = decode_varint(raw, at)
        name = raw[first : first + size].decode(errors="surrogateescape")
        raw[first : first + size] = name.encode(errors="replace")  # as long as before
        at = _behind_bytes(raw, first + size)


def _behind_bytes(raw: bytearray, at: int) -> int:
    """Return where the bytes end whose length stands at `at`; -1 is the length of none."""
    size, at = decode_varint(raw, at)
    return int(at + max(0, size))

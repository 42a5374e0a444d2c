"""Record batches as they lie on a broker, byte by byte: what no client would send, and brokers take."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

PLAIN, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODECS = {"plain": PLAIN, "gzip": GZIP, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}
AT_MS = 1_700_000_000_000
HEADERS = [("trace", b"1"), ("empty", None)]
NAMED = [("caf\N{LATIN SMALL LETTER E WITH ACUTE}", b"1"), ("plain", None)]  # for `with_bad_name`
_HEADER_BYTES, _CRC_AT, _ATTRIBUTES_AT = 61, 17, 21


def batch(
    values: Sequence[bytes | None], codec: int = PLAIN, first: int = 0, headers: Any = HEADERS, at_ms: int = AT_MS
) -> bytes:
    """What one producer sent at once, at the offsets from `first` on."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 28)
    for offset, value in enumerate(values):
        builder.append(offset, at_ms + offset, b"key", value, headers)
    made = bytearray(builder.build())
    struct.pack_into(">q", made, 0, first)
    return bytes(made)


def with_bad_name(data: bytes) -> bytes:
    """A batch with headers NAMED, one of whose names is no UTF-8 any more."""
    return with_checksum(bytearray(data.replace(b"caf\xc3\xa9", b"caf\xe9\xe9")))


def with_body(header: bytearray, body: bytes) -> bytearray:
    made = header[:_HEADER_BYTES] + body
    struct.pack_into(">i", made, 8, len(made) - 12)
    return made


def with_checksum(data: bytearray) -> bytes:
    struct.pack_into(">I", data, _CRC_AT, calc_crc32c(bytes(data[_ATTRIBUTES_AT:])))
    return bytes(data)


class Ready(BatchBuilder):
    """A batch that an aiokafka producer (not an idempotent one) sends as it is."""

    def __init__(self, data: bytes, records: int = 1) -> None:
        super().__init__(len(data), 0)
        self._data, self._records = data, records
        self.close()

    def _build(self) -> bytes:
        return self._data

    def record_count(self) -> int:
        return self._records

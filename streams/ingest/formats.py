"""Bytes to plain data, in the formats that topics are written in.

JSON is read as it stands. Avro, Protobuf and JSON Schema come in Confluent's wire format: a zero byte, the schema's id,
then the data. Avro and Protobuf cannot be read without their schema, which the registry has (registry.py); JSON can,
and is not held against its schema: what we need of it the mapping checks.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from infra.platform.settings import SettingsError
from streams.ingest.registry import Registry, Waiting
from streams.messages import Refused

Decode = Callable[[bytes], Any]
HEAD = 5  # bytes before the data: zero, and four of the schema's id
EXTRA = "pip install 'nextwatch[schemas]'"
READERS = {"avro": ("fastavro", "streams.ingest.avro"), "protobuf": ("google.protobuf", "streams.ingest.protobuf")}


def decoder_of(name: str, registry: Registry | None) -> Decode:
    """What reads a format. Raises SettingsError when it needs a registry or a package that is not there."""
    match name:
        case "text":
            return text
        case "json":
            return json
        case "json-schema":
            return lambda raw: json(split(raw)[1])
    if registry is None:
        raise SettingsError(f"format {name} needs ingest.registry_url: its schemas are there")
    package, module = READERS[name]
    try:
        importlib.import_module(package)
    except ImportError:
        raise SettingsError(f"format {name} needs the package {package.partition('.')[0]}: {EXTRA}") from None
    read: Decode = importlib.import_module(module).create_reader(registry)
    return read


def text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused("malformed", "not text in UTF-8") from None


def json(raw: bytes) -> Any:
    try:
        return _JSON.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("malformed", f"not JSON: {error}") from None


def split(raw: bytes) -> tuple[int, bytes]:
    """The schema's id and the data."""
    return schema_id(raw), raw[HEAD:]


def schema_id(raw: bytes) -> int:
    if len(raw) < HEAD or raw[0] != 0:
        raise Refused("malformed", "no schema id in front (Confluent's wire format: byte 0, then four of the id)")
    return int.from_bytes(raw[1:HEAD], "big")


def guessed(raws: Sequence[bytes], registry: Registry | None) -> tuple[str, list[Any]]:
    """The format that most of these can be read in, and what those say. Raises SettingsError where there is none."""
    with_id = sum(raw[:1] == b"\0" for raw in raws) > len(raws) / 2
    tried = ["json"] if not with_id else ["json-schema"] if registry is None else ["avro", "protobuf", "json-schema"]
    found = {name: list(_readable(decoder_of(name, registry), raws)) for name in tried}
    best = max(found, key=lambda name: len(found[name]))
    if raws and not found[best]:
        needs = "; if they have schemas, set ingest.registry_url" if with_id and registry is None else ""
        raise SettingsError(f"no record can be read as {' or '.join(tried)}{needs}")
    return best, found[best]


def _readable(decode: Decode, raws: Iterable[bytes]) -> Iterator[Any]:
    for raw in raws:
        with contextlib.suppress(Refused, Waiting):
            yield decode(raw)


_JSON = msgspec.json.Decoder()

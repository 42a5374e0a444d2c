"""Protobuf in Confluent's wire format: after the schema's id stands which message of the file it is.

The registry compiles the schema for us (`format=serialized`); what it imports comes from there too, but for Google's
own files, which the package protobuf has.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import UTC
from functools import cache
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from streams.ingest.formats import Decode, split
from streams.ingest.registry import Registry, Schema, Waiting
from streams.messages import Refused

SERIALIZED = "serialized"
MOST_INDEXES = 64

Convert = Callable[[Any], Any]

GOOGLES = {
    module.DESCRIPTOR.name: module.DESCRIPTOR
    for module in (
        any_pb2,
        descriptor_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        struct_pb2,
        timestamp_pb2,
        wrappers_pb2,
    )
}
_WRAPPERS = frozenset(f"google.protobuf.{name}" for name in wrappers_pb2.DESCRIPTOR.message_types_by_name)
_PLAIN: dict[str, Convert] = {
    "google.protobuf.Timestamp": lambda message: message.ToDatetime(tzinfo=UTC),
    "google.protobuf.Duration": lambda message: message.ToTimedelta(),
    "google.protobuf.Struct": MessageToDict,
} | dict.fromkeys(_WRAPPERS, lambda message: message.value)


def create_reader(registry: Registry) -> Decode:
    @cache
    def message_class(number: int, place: tuple[int, ...]) -> Any:
        found = compiled(registry.schema(number, SERIALIZED), number)
        messages = found.message_types_by_name.values()
        for depth, at in enumerate(place):
            if at >= len(messages):
                raise Refused("malformed", f"schema id {number} has no message {place}")
            descriptor = list(messages)[at]
            messages = descriptor.nested_types if depth + 1 < len(place) else ()
        return message_factory.GetMessageClass(descriptor)

    def read(raw: bytes) -> Any:
        number, data = split(raw)
        place, start = place_of(data)
        kind = message_class(number, place)
        try:
            return plain(kind.FromString(data[start:]))
        except (DecodeError, ValueError, OverflowError, RecursionError) as error:
            raise Refused("malformed", f"not Protobuf of schema id {number}: {type(error).__name__}") from None

    return read


def place_of(data: bytes) -> tuple[tuple[int, ...], int]:
    """Which message of the file, from the outermost inwards, and where the message begins. Raises Refused."""
    count, at = varint(data, 0)
    if count == 0:
        return (0,), at
    if count > MOST_INDEXES:
        raise Refused("malformed", "no message index after the schema id")
    place = []
    for _ in range(count):
        number, at = varint(data, at)
        place.append(number)
    return tuple(place), at


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag number of 32 bits, and where it ends. Raises Refused for a negative one too: it counts something."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if value & 1:
                break
            return value >> 1, at
    raise Refused("malformed", "no message index after the schema id")


def compiled(schema: Schema, number: int) -> Any:
    """The file of a schema, in a pool of its own. Raises Waiting: a registry that cannot compile may be replaced."""
    pool = descriptor_pool.DescriptorPool()
    name = f"schema-{number}.proto"
    try:
        _add(pool, name, schema, set())
        return pool.FindFileByName(name)
    except (DecodeError, binascii.Error, TypeError, KeyError, ValueError) as error:
        why = f"schema id {number} to be one that can be read ({type(error).__name__})"
        raise Waiting(f"{why}: does the registry know format={SERIALIZED}?") from None


def _add(pool: Any, name: str, schema: Schema, added: set[str]) -> None:
    """Add a file after those that it imports."""
    if name in added:
        return
    added.add(name)
    file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(schema.text, validate=True))
    file.name = name
    references = dict(schema.references)
    for each in file.dependency:
        if each in references:
            _add(pool, each, references[each], added)
        elif each in GOOGLES and each not in added:
            added.add(each)
            _add_googles(pool, GOOGLES[each])
    pool.Add(file)


def _add_googles(pool: Any, descriptor: Any) -> None:
    own = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(own)
    pool.Add(own)


def plain(message: Any) -> Any:
    """A message as JSON would have it, with whole numbers as such, enums by name, and times as times. A field without
    presence is there also when it is zero."""
    special, fields = reading_of(message.DESCRIPTOR)
    if special is not None:
        return special(message)
    return {
        name: convert(getattr(message, name))
        for name, has_presence, convert in fields
        if not has_presence or message.HasField(name)
    }


@cache
def reading_of(descriptor: Any) -> tuple[Convert | None, list[tuple[str, bool, Convert]]]:
    """What is special about messages of a kind, or their fields: name, presence, and what is made of the value."""
    special = _PLAIN.get(descriptor.full_name)
    return special, [(field.name, field.has_presence, _converter(field)) for field in descriptor.fields]


def _converter(field: Any) -> Convert:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = _single(field.message_type.fields_by_name["value"])
        return lambda entries: {str(key): inner(value) for key, value in entries.items()}
    single = _single(field)
    return (lambda values: [single(value) for value in values]) if field.is_repeated else single


def _single(field: Any) -> Convert:
    if field.message_type is not None:
        return plain
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value

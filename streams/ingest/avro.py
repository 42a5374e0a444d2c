"""Avro in Confluent's wire format, read with the schema that it was written with."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from streams.ingest.formats import Decode, split
from streams.ingest.registry import Registry, Schema, Waiting
from streams.messages import Refused


def create_reader(registry: Registry) -> Decode:
    @cache
    def parsed(number: int) -> Any:
        try:
            return parse(registry.schema(number), {})
        except (SchemaParseException, UnknownType, ValueError) as error:
            raise Waiting(f"schema id {number} to be one that can be read: {error}") from None

    def read(raw: bytes) -> Any:
        number, data = split(raw)
        schema = parsed(number)
        try:
            return fastavro.schemaless_reader(io.BytesIO(data), schema, None)
        except Exception as error:  # the reader tells of bytes that are no Avro in whatever way they trip it up
            raise Refused("malformed", f"not Avro of schema id {number}: {type(error).__name__}") from None

    return read


def parse(schema: Schema, named: dict[str, Any]) -> Any:
    """A schema after those that it refers to; `named` gathers what has a name."""
    for _, each in schema.references:
        parse(each, named)
    return fastavro.parse_schema(json.loads(schema.text), named_schemas=named)

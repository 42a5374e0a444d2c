"""Avro in Confluent's wire format, read with the schema that it was written with."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any

import fastavro

from streams.ingest.formats import HEAD, Decode, schema_id
from streams.ingest.registry import Registry, Schema
from streams.messages import Refused


def create_reader(registry: Registry) -> Decode:
    @cache
    def parsed(head: bytes) -> Any:
        number = schema_id(head)
        schema = registry.schema(number)
        try:
            return parse(schema, {})
        except Exception as error:  # the parser trips in whatever way over what is no schema, and an id keeps its own
            return Refused("malformed", f"schema id {number} is no Avro schema: {type(error).__name__}")

    def read(raw: bytes) -> Any:
        schema = parsed(raw[:HEAD])
        if isinstance(schema, Refused):
            raise Refused(schema.code, str(schema))
        data = io.BytesIO(raw)
        data.seek(HEAD)
        try:
            return fastavro.schemaless_reader(data, schema, None)
        except Exception as error:  # the reader tells of bytes that are no Avro in whatever way they trip it up
            raise Refused("malformed", f"not Avro of schema id {schema_id(raw)}: {type(error).__name__}") from None

    return read


def parse(schema: Schema, named: dict[str, Any]) -> Any:
    """A schema after those that it refers to; `named` gathers what has a name."""
    for _, each in schema.references:
        parse(each, named)
    return fastavro.parse_schema(json.loads(schema.text), named_schemas=named)

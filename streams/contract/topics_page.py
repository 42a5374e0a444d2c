"""The page of all topics and messages, `docs/topics.md`, made from their schemas.

    python -m streams.contract.topics_page > docs/topics.md

A test compares the page with what is made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from infra.platform.settings import Kafka
from streams.contract.asyncapi import FORMS, KEYS, REPLY_HEADERS, REQUEST_HEADERS, place_of
from streams.contract.schemas import kinds_of, schemas
from streams.messages import forms_of
from streams.topics import TOPICS, Topic

HEAD = """# Topics and schemas

All topics with their keys, partitions and forms, and all messages with their limits. This page is made by
`python -m streams.contract.topics_page` from `streams/topics.py` and `streams/messages.py`; a test fails when they
differ. The same for programs, as AsyncAPI 3 with JSON Schemas (draft 7): [asyncapi.json](asyncapi.json), made by
`python -m streams.contract.asyncapi`; the schema of a message is `#/components/schemas/NAME` of it. How the messages
are meant: [messages](messages.md).

`kafka.topic_prefix` stands before every topic. In a topic that keeps the newest of each key, a null value removes its
key. Partitions and hours are those of the settings' defaults (`kafka.partitions`, `kafka.retention_h`). A field without
a default must be there; unknown fields are passed over, so one may be added at any time, with a default. Beyond what is
said here a message is refused that is larger than `kafka.max_message_bytes`, or whose time lies in the future
(`history.future_s`). `_ms` is milliseconds since 1970, `_s` is seconds.

## The topics
"""
BOUNDS = (("minimum", ">="), ("maximum", "<="))
LENGTHS = {"string": ("minLength", "maxLength", "characters"), "array": ("minItems", "maxItems", "entries")}
KINDS = {"boolean": "true, false", "integer": "integer", "number": "number", "string": "text", "null": "null"}


def topics_page() -> str:
    """Return the page as Markdown: the topics, then each message and its parts."""
    parts = [HEAD, *_topics(), "", "## Keys and headers", "", *_keys(), "## The messages", ""]
    for name, schema in schemas().items():
        parts += _message(name, schema)
    return "\n".join(parts)


def _topics() -> Iterator[str]:
    yield "| topic | key | partitions | kept | form | messages | who |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for topic in TOPICS:
        kinds = kinds_of(topic)
        links = ", ".join(_link(kind.__name__) for kind in kinds)
        partitions = "1" if topic.single else str(Kafka().partitions)
        kept = f"{Kafka().retention_h:g} h" if topic.cleanup == "delete" else "the newest of each key"
        cells = (f"`{topic.name}`", topic.key, partitions, kept, _forms(topic), links, place_of(topic))
        yield f"| {' | '.join(cells)} |"


def _forms(topic: Topic) -> str:
    names = {"json": "JSON", "msgpack": "MessagePack", "compact": "01 and MessagePack"}
    return " or ".join(names[form] for form in forms_of(kinds_of(topic)[0]))


def _keys() -> Iterator[str]:
    for key, about in KEYS.items():
        yield f"- *{key}*: {about}"
    for _, about in FORMS.values():
        yield f"- {about}"
    yield ""
    yield "| header | of requests | of replies |\n| --- | --- | --- |"
    for name, about in REQUEST_HEADERS.items():
        yield f"| `{name}` | {about} | {REPLY_HEADERS.get(name, '')} |"
    yield ""


def _message(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield schema["description"] + "\n"
    if schema["type"] == "array":
        yield "An array: its fields in this order, later ones may be missing.\n"
        least, fields = schema["minItems"], [(each.get("title"), each) for each in schema["items"]]
        needed = {title for title, _ in fields[:least]}
    else:
        fields, needed = list(schema["properties"].items()), set(schema["required"])
    yield "| field | type | default |\n| --- | --- | --- |"
    for title, field in fields:
        default = "" if title in needed or "default" not in field else f"`{json.dumps(field['default'])}`"
        yield f"| `{title}` | {_type(field)} | {default} |"
    yield ""


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return _link(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return "; or ".join(_type(each) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in field["enum"])
    if "contentEncoding" in field:
        return "bytes, in JSON as base64"
    return _type_by_kind(field, field["type"]) if "type" in field else "any JSON"


def _type_by_kind(field: dict[str, Any], kind: str) -> str:
    if kind == "object":
        most = f", {field['maxProperties']} at most" if "maxProperties" in field else ""
        return f"by name: {_type(field['additionalProperties'])}{most}"
    if kind == "array" and isinstance(field["items"], list):
        return f"array of {', '.join(_type(each) for each in field['items'])}"
    words = [f"list of {_type(field['items'])}" if kind == "array" else KINDS[kind]]
    return ", ".join([*words, *_limits(field)])


def _limits(field: dict[str, Any]) -> Iterator[str]:
    if "pattern" in field:
        yield f"`{field['pattern']}`"
    for name, sign in BOUNDS:
        if name in field:
            yield f"{sign.replace('<', '&lt;')} {_number(field[name])}"
    least, most, of = LENGTHS.get(field["type"], ("", "", ""))
    if least in field and most in field:
        yield f"{field[least]} to {field[most]} {of}"
    elif most in field:
        yield f"{field[most]} {of} at most"


def _number(value: float) -> str:
    power = int(value) + 1
    if power > 1 << 40 and power & (power - 1) == 0:
        return f"2^{power.bit_length() - 1} - 1"
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


if __name__ == "__main__":
    sys.stdout.write(topics_page())

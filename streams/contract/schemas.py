"""JSON Schemas of all that travels, made from the types that read it.

msgspec speaks JSON Schema 2020-12, AsyncAPI's own dialect is draft 7: a tuple is said otherwise, and a discriminator is
OpenAPI's word. Patterns are ECMA's. A schema says what a message may hold; what depends on the moment (its size, a time
in the future) it cannot say.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from streams import messages
from streams.messages import forms_of, json_shape_of
from streams.topics import TOPICS, Topic

REFERENCE = "#/components/schemas/{name}"
_ONE_OF = {"SignalEvent": ("item_id", "channel")}  # exactly one is given: what a type of msgspec cannot say
_NOT_IN_DRAFT_7 = ("discriminator",)  # each alternative names its own `kind`


def kinds_of(topic: Topic) -> tuple[Any, ...]:
    """Return the types of the messages in a topic."""
    return get_args(topic.message) or (topic.message,)


def schemas() -> dict[str, Any]:
    """Return the schema of each message and of each of its parts, by name, in the order of the topics."""
    _, found = msgspec.json.schema_components(_shapes(), ref_template=REFERENCE)
    return {name: _with_choice(name, _with_names(name, in_draft_7(schema))) for name, schema in found.items()}


def in_draft_7(schema: Any) -> Any:
    """Return a schema of msgspec's in the words of draft 7."""
    if isinstance(schema, list):
        return [in_draft_7(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: in_draft_7(each) for name, each in schema.items() if name not in _NOT_IN_DRAFT_7}
    if "prefixItems" in found:
        if "items" in found:
            found["additionalItems"] = found["items"]
        found["items"] = found.pop("prefixItems")
    if isinstance(pattern := found.get("pattern"), str):
        found["pattern"] = pattern.replace(r"\Z", "$")
    if isinstance(text := found.get("description"), str):
        found["description"] = inspect.cleandoc(text)
    return found


def _with_names(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema; of an array that stands for an object, each place with the name of its field."""
    if schema.get("type") == "array":
        fields = msgspec.structs.fields(getattr(messages, name))
        places = zip(fields, schema["items"], strict=True)
        schema["items"] = [{"title": field.encode_name} | place for field, place in places]
    return schema


def _with_choice(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema; of a message in which one of some fields stands, with that said."""
    if fields := _ONE_OF.get(name):
        schema["oneOf"] = [{"required": [field], "properties": {field: {"type": "string"}}} for field in fields]
    return schema


def _shapes() -> Iterator[Any]:
    for topic in TOPICS:
        for kind in kinds_of(topic):
            yield kind
            if "json" in forms_of(kind):
                yield json_shape_of(kind)

"""The topics as an AsyncAPI 3 document, `docs/asyncapi.json`, from which other languages' types and clients are made.

    python -m streams.contract.asyncapi > docs/asyncapi.json

One that is written by hand is wrong after the second change. This one is compared with the messages by a test.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from infra.platform.settings import Kafka
from streams import topics
from streams.contract.schemas import REFERENCE, kinds_of, schemas
from streams.messages import Form, forms_of, json_shape_of
from streams.topics import TOPICS, Topic, config_of, partitions_of

VERSION = "1.0.0"  # it only grows: what is more than a further field with a default is a new topic
BINDING = "0.5.0"  # of Kafka, to AsyncAPI
FROM_OUTSIDE = (
    topics.WATCH_EVENTS,
    topics.SEARCH_EVENTS,
    topics.SIGNALS,
    topics.ITEMS,
    topics.IMPRESSIONS,
    topics.RECOMMEND_REQUESTS,
)
FOR_OTHERS = (topics.RECOMMEND_REPLIES, topics.IMPRESSIONS, topics.DEAD_LETTERS)
CLIENTS_TOPIC = "replies-of-a-client"
KEYS = {
    "user": "The user's id in UTF-8. Partitioned by murmur2, as Kafka's Java client does it.",
    "item": "The item's id in UTF-8. Partitioned by murmur2, as Kafka's Java client does it.",
    "kind": "What the message is about, as its description says.",
    "scope": "The scope, the partition that was counted, and what stands for a row of it.",
    "request": "The request's id in UTF-8; none where it could not be read.",
    "as source": "That of the record that could not be used.",
    "user's hash": "`user/` and the user's hash, or `done/`, a worker and its partition.",
}
FORMS: dict[Form, tuple[str, str]] = {
    "json": ("application/json", "JSON in UTF-8. Unknown fields are passed over."),
    "msgpack": ("application/x-msgpack", "MessagePack; what is base64 here is `bin` there."),
    "compact": (
        "application/x-msgpack",
        "MessagePack behind the byte 01, where JSON begins with `{`; what is base64 here is `bin` there.",
    ),
}
REQUEST_HEADERS = {
    "correlation_id": "Opaque; echoed. Also as `kafka_correlationId`.",
    "reply_topic": "Where the reply goes; without it `recommend-replies`. Also as `kafka_replyTopic`.",
    "reply_partition": "Its partition, in decimal digits or four big-endian bytes. Also as `kafka_replyPartition`.",
    "traceparent": "W3C Trace Context; echoed.",
}
REPLY_HEADERS = {name: f"As the request had it: {REQUEST_HEADERS[name]}" for name in ("correlation_id", "traceparent")}
ABOUT = (
    "What travels between nextwatch and those around it, over Kafka. `kafka.topic_prefix` stands before every topic. "
    "Partitions and times are the defaults of the settings `kafka.partitions`, `kafka.retention_h` and "
    "`kafka.tombstone_h`. What is nextwatch's own may be read, not written. In a compacted topic a null value removes "
    "its key. Beyond these schemas a message is refused that is larger than `kafka.max_message_bytes`, or of a time in "
    "the future (`history.future_s`)."
)


def document() -> dict[str, Any]:
    """Return the whole document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "nextwatch",
            "version": VERSION,
            "description": ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": FORMS["json"][0],
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "description": "The brokers that `kafka.bootstrap` names.",
                "variables": {"bootstrap": {"default": "localhost:9092"}},
            }
        },
        "channels": {topic.name: channel_of(topic) for topic in TOPICS} | {CLIENTS_TOPIC: _clients_topic()},
        "operations": dict(_operations()),
        "components": {"messages": _messages(), "schemas": schemas()},
    }


def place_of(topic: Topic) -> str:
    """Return who may write or read a topic, in words."""
    if topic.name in FROM_OUTSIDE and topic.name in FOR_OTHERS:
        return "written by nextwatch and by others, for others to read"
    if topic.name in FROM_OUTSIDE:
        return "written by others"
    return "written by nextwatch, for others to read" if topic.name in FOR_OTHERS else "nextwatch's own"


def channel_of(topic: Topic) -> dict[str, Any]:
    """Return the channel of a topic."""
    kafka = Kafka()
    names = [name for kind in kinds_of(topic) for name in _names_of(kind)]
    return {
        "address": topic.name,
        "description": f"{_sentence(place_of(topic))} Key: {KEYS[topic.key]}",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": partitions_of(topic, kafka),
                "topicConfiguration": {name: _typed(value) for name, value in config_of(topic, kafka).items()}
                | {"cleanup.policy": [topic.cleanup]},
                "bindingVersion": BINDING,
            }
        },
    }


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _typed(value: str) -> int | str:
    return int(value) if value.isdigit() else value


def _clients_topic() -> dict[str, Any]:
    reply = REFERENCE.format(name="RecommendReply").replace("schemas", "messages")
    return {
        "address": None,
        "description": "The topic that a request's header names; without one it is `recommend-replies`.",
        "messages": {"RecommendReply": {"$ref": reply}},
    }


def _operations() -> list[tuple[str, dict[str, Any]]]:
    """What nextwatch receives and sends, as a whole."""
    found = []
    for topic in TOPICS:
        if topic.name in FROM_OUTSIDE:
            found.append((f"receive-{topic.name}", _operation("receive", topic)))
        if topic.name not in FROM_OUTSIDE or topic.name in FOR_OTHERS:
            found.append((f"send-{topic.name}", _operation("send", topic)))
    return found


def _operation(action: str, topic: Topic) -> dict[str, Any]:
    operation: dict[str, Any] = {"action": action, "channel": {"$ref": f"#/channels/{topic.name}"}}
    if topic.name == topics.RECOMMEND_REQUESTS:
        operation["reply"] = {
            "address": {"location": "$message.header#/reply_topic"},
            "channel": {"$ref": f"#/channels/{CLIENTS_TOPIC}"},
        }
    return operation


def _names_of(kind: Any) -> dict[str, Form]:
    """The message's name in each of its forms."""
    forms = forms_of(kind)
    return {kind.__name__ + ("InJson" if form == "json" and len(forms) > 1 else ""): form for form in forms}


def _messages() -> dict[str, Any]:
    found = {}
    for topic in TOPICS:
        for kind in kinds_of(topic):
            for name, form in _names_of(kind).items():
                found[name] = _message(topic, kind, name, form)
    return found


def _message(topic: Topic, kind: Any, name: str, form: Form) -> dict[str, Any]:
    content_type, about = FORMS[form]
    shape = json_shape_of(kind) if form == "json" else kind
    message: dict[str, Any] = {
        "name": name,
        "summary": about,
        "contentType": content_type,
        "payload": {"$ref": REFERENCE.format(name=shape.__name__)},
        "bindings": {
            "kafka": {"key": {"type": "string", "description": KEYS[topic.key]}, "bindingVersion": BINDING},
        },
    }
    headers = {topics.RECOMMEND_REQUESTS: REQUEST_HEADERS, topics.RECOMMEND_REPLIES: REPLY_HEADERS}.get(topic.name)
    if headers:
        properties = {header: {"type": "string", "description": text} for header, text in headers.items()}
        message["headers"] = {"type": "object", "properties": properties}
        message["correlationId"] = {"location": "$message.header#/correlation_id"}
    return message


def as_text() -> str:
    """Return the document as it is committed."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_text())

"""What `nextwatch ingest` takes for an event that is mapped, beside one that is ours already.

All lanes are the same loop on the same watches, which lie in a topic before it starts. Native is our own JSON by the
identity mapping: what it costs to read a record, check it, write it and commit it, whatever is mapped. Mapped JSON is
nested, has a filter, other units and times in ISO 8601; Avro and Protobuf have the same fields behind a schema id. CPU
is that of the whole process, librdkafka's threads included, from before it joins its group.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import fastavro
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from kafka import KafkaAdminClient

from infra.local.broker import start_broker
from infra.platform.health import Health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in
from infra.platform.settings import Ingest, Settings
from infra.platform.topic_mappings import TopicMapping
from streams.ingest.batch import readers_of
from streams.ingest.worker import IngestLoop
from streams.kafka.follow import read_to_end
from streams.messages import WatchEvent, decode
from streams.topics import WATCH_EVENTS, create_topics
from tests.benchmarks.events.history import broker_name, make_messages
from tests.benchmarks.load import send_all
from tests.benchmarks.report import Report, say
from tests.harness.schema_registry import SchemaRegistry, framed, running_registry
from tests.harness.system import Cluster, stopping, temporary_settings, with_section

PARTITIONS = 4
BAR = 0.8
PATIENCE_S = 120.0
PLAYS = "acme.plays"
AVRO = {
    "type": "record",
    "name": "Play",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "type", "type": "string"},
        {"name": "viewer", "type": {"type": "record", "name": "Viewer", "fields": [{"name": "id", "type": "string"}]}},
        {
            "name": "video",
            "type": {
                "type": "record",
                "name": "Video",
                "fields": [{"name": "id", "type": "string"}, {"name": "length", "type": "long"}],
            },
        },
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "position", "type": "long"},
    ],
}
FIELDS = {
    "event_id": "id",
    "user_id": "viewer.id",
    "item_id": "video.id",
    "event_ms": "at",
    "watch_s": "position",
    "duration_s": "video.length",
}
UNITS = {"event_ms": "iso", "watch_s": "ms", "duration_s": "ms"}

Write = Callable[[WatchEvent, int], bytes]  # a watch, and the schema's id, as a record of theirs


class Lane(NamedTuple):
    name: str
    write: Write
    format: str
    fields: dict[str, str]
    units: dict[str, str]
    only: dict[str, str]


class Run(NamedTuple):
    """Seconds by the wall, from the first record on, and of CPU."""

    wall_s: float
    cpu_s: float


def nested(watch: WatchEvent) -> dict[str, Any]:
    """A watch as a team might tell of it."""
    return {
        "id": watch.event_id,
        "type": "play_end",
        "viewer": {"id": watch.user_id},
        "video": {"id": watch.item_id, "length": round(1000 * (watch.duration_s or 0))},
        "at": datetime.fromtimestamp(watch.event_ms / 1000, UTC),
        "position": round(1000 * watch.watch_s),
    }


def native(watch: WatchEvent, _: int) -> bytes:
    told = {name: getattr(watch, name) for name in ours()}
    return json.dumps(told, separators=(",", ":")).encode()


def mapped_json(watch: WatchEvent, _: int) -> bytes:
    told = nested(watch)
    return json.dumps(told | {"at": told["at"].isoformat()}, separators=(",", ":")).encode()


def avro(watch: WatchEvent, schema_id: int) -> bytes:
    written = io.BytesIO()
    fastavro.schemaless_writer(written, AVRO_SCHEMA, nested(watch))
    return framed(schema_id, written.getvalue())


def protobuf(watch: WatchEvent, schema_id: int) -> bytes:
    told = nested(watch)
    message = PROTOBUF(**(told | {"at": watch.event_ms}))
    return framed(schema_id, b"\0" + message.SerializeToString())


def ours() -> tuple[str, ...]:
    return ("event_id", "user_id", "item_id", "event_ms", "watch_s", "duration_s")


def protobuf_file() -> descriptor_pb2.FileDescriptorProto:
    """The same fields, compiled as `protoc` would."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="play.proto", package="acme", syntax="proto3")
    messages = {
        "Play": ("id", "type", "viewer:.acme.Viewer", "video:.acme.Video", "at#", "position#"),
        "Viewer": ("id",),
        "Video": ("id", "length#"),
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields, 1):
            called, _, of = field.partition(":")
            kind = kinds.TYPE_MESSAGE if of else kinds.TYPE_INT64 if called.endswith("#") else kinds.TYPE_STRING
            added = message.field.add(name=called.rstrip("#"), number=number, type=kind, label=kinds.LABEL_OPTIONAL)
            if of:
                added.type_name = of
    return file


def _protobuf_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(protobuf_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("acme.Play"))


AVRO_SCHEMA = fastavro.parse_schema(AVRO)
PROTOBUF = _protobuf_class()
NATIVE = Lane("native: our JSON, mapped to itself", native, "json", {name: name for name in ours()}, {}, {})
LANES = (
    NATIVE,
    Lane("mapped JSON", mapped_json, "json", FIELDS, UNITS, {"type": "play_end"}),
    Lane("mapped Avro", avro, "avro", FIELDS, UNITS, {"type": "play_end"}),
    Lane("mapped Protobuf", protobuf, "protobuf", FIELDS, UNITS | {"event_ms": "ms"}, {"type": "play_end"}),
)


def measure(report: Report, quick: bool) -> None:
    """Events/s and CPU of an event, by format, in turns."""
    events, rounds = (20_000, 3) if quick else (100_000, 5)
    report.title = f"ingest: {events:,} watches of a topic with {PARTITIONS} partitions, one process"
    watches = [
        (key, decode(WatchEvent, value)) for key, value in make_messages(events, 5000, round(time.time() * 1000))
    ]
    runs: dict[str, list[Run]] = {lane.name: [] for lane in LANES}
    with (
        temporary_settings(kafka={"partitions": PARTITIONS}) as settings,
        stopping(start_broker(settings)) as broker,
        running_registry() as registry,
    ):
        report.note(f"broker: {broker_name(broker)}; the best of {rounds} rounds, in turns")
        schema_ids = register(registry)
        for round_ in range(rounds):
            for number, lane in enumerate(LANES):
                say(f"round {round_ + 1}: {lane.name}")
                own = with_section(
                    fill_in(settings, broker.bootstrap, ""), "kafka", topic_prefix=f"r{round_}-{number}-"
                )
                records = [(key, lane.write(watch, schema_ids.get(lane.format, 0))) for key, watch in watches]
                runs[lane.name].append(measure_lane(lane, own, registry, records))
    add_rows(report, runs, events)


def add_rows(report: Report, runs: dict[str, list[Run]], events: int) -> None:
    """A row for each lane, and what each is of native. The bar is on CPU: other work on the machine slows that less."""
    cpu_us = {name: 1e6 * min(run.cpu_s for run in of_lane) / events for name, of_lane in runs.items()}
    for name, of_lane in runs.items():
        of_native = cpu_us[NATIVE.name] / cpu_us[name]
        rate = events / min(run.wall_s for run in of_lane)
        report.add(what=name, **{"events/s": rate, "CPU us an event": cpu_us[name], "of native": f"{of_native:.2f}"})
        if name in ("mapped JSON", "mapped Avro"):
            report.bar(f"{name} / native, events a second of CPU", of_native, at_least=BAR)


def register(registry: SchemaRegistry) -> dict[str, int]:
    """The ids of the schemas by format."""
    compiled = base64.b64encode(protobuf_file().SerializeToString()).decode()
    return {"avro": registry.register("avro", json.dumps(AVRO)), "protobuf": registry.register("protobuf", compiled)}


def mapping_of(lane: Lane, topic: str) -> TopicMapping:
    own = {"format": lane.format, "fields": lane.fields, "units": lane.units, "only": lane.only}
    return TopicMapping.model_validate({"topic": topic, "becomes": "watch-events"} | own)


def measure_lane(lane: Lane, settings: Settings, registry: SchemaRegistry, records: list[tuple[bytes, bytes]]) -> Run:
    """Put the records into a topic, then ingest all of them. Raises RuntimeError unless each has become a watch."""
    create_topics(settings.kafka)
    topic = settings.kafka.topic_prefix + PLAYS
    with closing(KafkaAdminClient(**kafka_python_options(settings.kafka))) as admin:
        admin.create_topics({topic: {"num_partitions": PARTITIONS}})
    send_all(settings.kafka, PLAYS, records)
    ingest = Ingest(topics=(mapping_of(lane, topic),), registry_url=registry.url)
    run = ingested(settings.model_copy(update={"ingest": ingest}), len(records))
    with Cluster(settings.kafka) as cluster:
        if (written := cluster.total(WATCH_EVENTS)) != len(records):
            raise RuntimeError(f"{lane.name}: {written} watches of {len(records)} records")
    first = decode(WatchEvent, next(iter(read_to_end(settings.kafka, WATCH_EVENTS))).value)
    if not 20 <= first.watch_s <= first.duration_s == 60:
        raise RuntimeError(f"{lane.name}: not what was sent: {first}")
    return run


def ingested(settings: Settings, records: int) -> Run:
    """Run the loop until it has handled so many records."""
    give_up_s, cpu_s, began_s = time.monotonic() + PATIENCE_S, time.process_time(), 0.0
    loop = IngestLoop(settings, Health("ingest"), readers_of(settings), threading.Event())
    try:
        while loop.handled < records:
            loop.turn()
            if loop.handled and not began_s:
                began_s = time.monotonic()  # after the first batch
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"{loop.handled} of {records} records after {PATIENCE_S:g} s")
        return Run(time.monotonic() - began_s, time.process_time() - cpu_s)
    finally:
        loop.close()

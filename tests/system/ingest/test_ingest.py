"""`nextwatch ingest` on a real broker: topics of a team become ours, and a killed process loses and doubles nothing."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from infra.local.broker import Broker
from infra.local.stack import INGEST
from infra.platform.fault_points import DIED, VARIABLE
from infra.platform.health import fetch_health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import read_run_files
from infra.platform.settings import Ingest, Settings
from infra.platform.topic_mappings import TopicMapping
from streams.messages import Context, DeadLetter, Item, WatchEvent, decode
from streams.topics import DEAD_LETTERS, ITEMS, WATCH_EVENTS, partition_of
from tests.harness.needs import FASTAVRO, needs, require_kafka
from tests.harness.schema_registry import SchemaRegistry, framed, running_registry
from tests.harness.system import cli, own_settings, process, read_metrics, try_cli, wait_for_health, wait_until
from tests.harness.traffic import Reader, now_ms

pytestmark = needs(FASTAVRO)

PARTITIONS = 2
AVRO = {
    "type": "record",
    "name": "Play",
    "fields": [
        {"name": "viewer", "type": {"type": "record", "name": "Viewer", "fields": [{"name": "id", "type": "long"}]}},
        {"name": "video", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "share", "type": "double"},
    ],
}
COMMAND = cli(*INGEST["ingest"])


class Theirs:
    """The topics of a team, under names of this test's own."""

    def __init__(self, settings: Settings) -> None:
        options = kafka_python_options(settings.kafka)
        names = [settings.kafka.topic_prefix + name for name in ("acme.plays", "acme.videos", "acme.avro")]
        self.plays, self.videos, self.avro = names
        with closing(KafkaAdminClient(**options)) as admin:
            admin.create_topics({name: {"num_partitions": PARTITIONS} for name in names})
        self._producer = KafkaProducer(**options)

    def send(self, topic: str, value: Any, key: str | None = None) -> Any:
        encoded = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        return self._producer.send(topic, encoded, key=None if key is None else key.encode()).get(timeout=30)

    def play(self, number: int, **change: Any) -> Any:
        """The place of one play that ended."""
        told = {"type": "end", "viewer": {"id": number % 7}, "video": f"v{number}", "ts": now_ms() / 1000, "ms": 31_500}
        return self.send(self.plays, told | change)

    def avro_play(self, schema_id: int, item_id: str) -> None:
        """A play in Avro, as Confluent's serializer writes it."""
        import fastavro

        data = io.BytesIO()
        told = {"viewer": {"id": 7}, "video": item_id, "at": datetime.now(UTC), "share": 0.5}
        fastavro.schemaless_writer(data, fastavro.parse_schema(AVRO), told)
        self.send(self.avro, framed(schema_id, data.getvalue()))

    def id_of(self, place: Any) -> str:
        """The id of the watch that the play at this place becomes."""
        return f"{self.plays}/{place.partition}/{place.offset}"

    def close(self) -> None:
        self._producer.close()


@pytest.fixture(scope="module")
def registry() -> Iterator[SchemaRegistry]:
    with running_registry() as running:
        yield running


@pytest.fixture(scope="module")
def ground(
    kafka: str, registry: SchemaRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, Theirs]]:
    settings = own_settings(kafka, tmp_path_factory.mktemp("ingest"))
    with closing(Theirs(settings)) as theirs:
        plays = TopicMapping(
            topic=theirs.plays,
            becomes="watch-events",
            fields={"user_id": "viewer.id", "item_id": "video", "event_ms": "ts", "watch_s": "ms"},
            values={"context.device": "tv"},
            units={"event_ms": "s", "watch_s": "ms"},
            only={"type": "end"},
        )
        videos = TopicMapping(topic=theirs.videos, becomes="items", fields={"item_id": "$key", "title": "name"})
        avro = TopicMapping(
            topic=theirs.avro,
            becomes="watch-events",
            format="avro",
            fields={"user_id": "viewer.id", "item_id": "video", "event_ms": "at", "watch_s": "share"},
            values={"duration_s": 60},
            units={"watch_s": "fraction"},
        )
        ingest = Ingest(topics=(plays, videos, avro), registry_url=registry.url)
        yield settings.model_copy(update={"ingest": ingest}), theirs


def watches(settings: Settings) -> Reader:
    return Reader(settings.kafka, WATCH_EVENTS)


def read(settings: Settings, topic: str, count: int) -> list[Any]:
    with closing(Reader(settings.kafka, topic)) as reader:
        return reader.until(lambda found: found if len(found) >= count else [], f"{count} records of {topic}")


def test_their_topics_become_ours_and_what_cannot_is_a_dead_letter(ground: tuple[Settings, Theirs]):
    settings, theirs = ground
    place = theirs.play(1)
    theirs.play(2, type="pause")
    refused = theirs.play(3, viewer={"id": None})
    garbled = theirs.send(theirs.plays, b"\xff{")
    for title in ("cats", "dogs"):
        theirs.send(theirs.videos, {"name": title}, key="v1")
    theirs.send(theirs.videos, None, key="v1")
    rows = json.loads(try_cli(settings, "topics", "--sample", "10", "--json").stdout)
    told = Counter((row["topic"].rpartition(".")[2], row["outcome"]) for row in rows)
    assert told == {
        ("plays", "sent"): 1,
        ("plays", "passed over"): 1,
        ("plays", "refused"): 2,
        ("videos", "sent"): 2,
        ("videos", "taken down"): 1,
    }
    with process(settings, "ingest", COMMAND) as ingest:
        wait_for_health(settings, ingest)
        watch, items = read(settings, WATCH_EVENTS, 1), read(settings, ITEMS, 3)
        letters = [decode(DeadLetter, each.value) for each in read(settings, DEAD_LETTERS, 2)]
        wait_until(lambda: sent_and_lag(settings) == (1, 0), "metrics of what was done", 15)
    found = watch_of(watch[0])
    assert found.event_id == theirs.id_of(place)
    assert (found.user_id, found.item_id, found.watch_s, found.context) == ("1", "v1", 31.5, Context(device="tv"))
    assert (watch[0].key, watch[0].partition) == (b"1", partition_of("1", settings.kafka.partitions))
    assert [each.value and decode(Item, each.value).title for each in items] == ["cats", "dogs", None]
    codes = {(each.partition, each.offset): each.code for each in letters}
    assert codes == {(refused.partition, refused.offset): "missing", (garbled.partition, garbled.offset): "malformed"}
    assert {each.topic for each in letters} == {f"ingest/{theirs.plays}"}
    assert next(each for each in letters if each.code == "malformed").value == b"\xff{", "nothing is lost"


def test_a_record_whose_schema_is_not_registered_yet_waits_and_nothing_else_does(
    ground: tuple[Settings, Theirs], registry: SchemaRegistry
):
    settings, theirs = ground
    with process(settings, "ingest", COMMAND) as ingest, closing(watches(settings)) as reader:
        wait_for_health(settings, ingest)
        theirs.avro_play(1, "in avro")

        def waits() -> bool:
            (record,) = read_run_files(settings.run_dir)
            health = fetch_health(record)
            return not health["ready"] and "schema id 1, which the schema registry does not know" in str(health)

        wait_until(waits, "health that says what it waits for", 15)
        theirs.play(5, video="meanwhile")
        reader.until(lambda found: "meanwhile" in items_of(found), "what can be read")
        assert "in avro" not in items_of(reader.to_the_end())
        assert registry.register("acme.avro-value", json.dumps(AVRO)) == 1
        reader.until(lambda found: "in avro" in items_of(found), "the play in Avro")
        wait_for_health(settings, ingest)
    found = next(each for each in map(watch_of, reader.records) if each.item_id == "in avro")
    assert (found.user_id, found.watch_s, found.duration_s) == ("7", 30.0, 60.0)


def watch_of(record: Any) -> WatchEvent:
    return decode(WatchEvent, record.value)


def items_of(records: list[Any]) -> set[str]:
    return {watch_of(record).item_id for record in records}


def sent_and_lag(settings: Settings) -> tuple[float, float]:
    page = read_metrics(settings, "ingest")
    lags = [value for sample, value in page.items() if sample.startswith("nextwatch_consumer_lag_messages{")]
    return page.get(f'nextwatch_messages_sent_total{{topic="{WATCH_EVENTS}"}}', 0), sum(lags)


def test_a_process_that_is_killed_before_it_commits_loses_nothing_and_repeats_only_ids_that_are_known(
    ground: tuple[Settings, Theirs], broker: Broker, tmp_path: Path
):
    require_kafka(broker.kind, "noida never lets a killed process's successor in")
    settings, theirs = ground
    ids = {theirs.id_of(theirs.play(number)) for number in range(40)}
    point = "ingest: events sent"
    (tmp_path / point).write_text("1")
    with process(settings, "ingest", COMMAND, {VARIABLE: str(tmp_path)}):
        wait_until((tmp_path / f"{point}{DIED}").exists, "its death", 30)
    with process(settings, "ingest", COMMAND, {VARIABLE: str(tmp_path)}), closing(watches(settings)) as reader:
        ids.add(theirs.id_of(theirs.play(99)))

        def of_every_play(found: list[Any]) -> Counter[str]:
            times = Counter(watch_of(each).event_id for each in found)
            return Counter({each: times[each] for each in ids}) if ids <= times.keys() else Counter()

        times = reader.until(of_every_play, "every play")
    assert max(times.values()) == 2, "it died after it had sent, so it sent again, under the same id"

"""What the topics hold, as training takes it."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from kafka import KafkaProducer

from infra.kafka_clients import kafka_python_options
from infra.settings import Settings
from models.catalogue import Catalogue
from models.log import LogError, items_from_frame, log_from_frame
from models.training import build_catalogue
from streams.archive import Archive, item_frame, read_archive
from streams.messages import Item, WatchEvent, encode
from streams.topics import FORWARDED, ITEMS, TRAINING_EXAMPLES, WATCH_EVENTS, create_topics


def test_the_catalogue_of_no_items_has_its_columns_all_the_same():
    frame = item_frame([])
    assert frame.height == 0 and frame.columns == ["item_id", "channel", "topics", "duration_s", "published_ms"]
    assert item_frame([Item("i", topics=("a", "b"))])["topics"].to_list() == [["a", "b"]]


def test_the_ids_of_items_are_id_columns_of_the_catalogue():
    frame = items_from_frame(item_frame([Item("i", ids={"music": ("1", "2")}), Item("j", ids={"cast": ("a",)})]))
    catalogue = Catalogue()
    for facts in frame.iter_rows(named=True):
        catalogue.upsert(**facts)
    assert [catalogue.ids_of(row) for row in (0, 1)] == [{"music": ("1", "2")}, {"cast": ("a",)}]


def watch(event_id: str, item_id: str, event_ms: int, duration_s: float | None = None) -> bytes:
    return encode(WatchEvent(event_id, "u", item_id, event_ms, 30.0, duration_s))


@pytest.fixture(scope="module")
def filled(with_topics: Settings) -> Settings:
    prefix = with_topics.kafka.topic_prefix
    producer = KafkaProducer(**kafka_python_options(with_topics.kafka))

    def send(topic: str, key: bytes, value: bytes | None, **how: Any) -> None:
        producer.send(prefix + topic, value, key=key, **how).get(timeout=30)

    send(WATCH_EVENTS, b"u", watch("e1", "a", 1000, 60.0), partition=0)
    send(WATCH_EVENTS, b"u", watch("e2", "b", 3000), partition=1)
    send(WATCH_EVENTS, b"u", watch("e2", "b", 3000), partition=0, headers=[(FORWARDED, b"watch-events/1/0")])
    send(WATCH_EVENTS, b"u", b"junk", partition=1)
    send(WATCH_EVENTS, b"u", None, partition=1)
    send(WATCH_EVENTS, b"u", watch("e3", "a", 2000), partition=1)
    send(ITEMS, b"a", encode(Item("a", "A", "old channel")), partition=0)
    send(ITEMS, b"a", encode(Item("a", "A", "channel", ("t",), 60.0, 500)), partition=0)
    send(ITEMS, b"b", encode(Item("b", "B")), partition=1)
    send(ITEMS, b"b", None, partition=1)
    for _ in range(3):
        send(TRAINING_EXAMPLES, b"u", b"{}", partition=0)
    producer.close()
    return with_topics


@pytest.fixture(scope="module")
def archive(filled: Settings) -> Archive:
    return read_archive(filled)


@pytest.mark.system
def test_every_watch_is_there_once_and_the_unusable_are_counted(archive):
    watches = archive.watches.sort("event_ms")
    assert watches["item_id"].to_list() == ["a", "a", "b"] and watches["event_ms"].to_list() == [1000, 2000, 3000]
    assert watches["duration_s"].to_list() == [60.0, None, None] and archive.refused == 2


@pytest.mark.system
def test_the_catalogue_is_the_newest_and_without_what_was_taken_down(archive):
    assert archive.items.to_dicts() == [
        {"item_id": "a", "channel": "channel", "topics": ["t"], "duration_s": 60.0, "published_ms": 500}
    ]


@pytest.mark.system
def test_the_offsets_say_where_the_trainer_goes_on(archive):
    assert archive.offsets == {f"{TRAINING_EXAMPLES}/0": 3}


@pytest.mark.system
def test_training_takes_it_as_it_is(archive):
    log = log_from_frame(archive.watches, 18.0, source="watch-events")
    assert log.frame.height == 3 and log.frame["completed"].all()
    assert list(build_catalogue(log, archive.items).item_ids) == ["a", "b"]


@pytest.mark.system
def test_progress_is_told_up_to_the_end(filled):
    told: list[tuple[str, int, int]] = []
    read_archive(filled, lambda *step: told.append(step))
    assert ("watch-events", 6, 6) in told and ("items", 4, 4) in told


@pytest.mark.system
def test_empty_topics_are_an_archive_of_nothing_and_training_says_so(kafka_settings):
    create_topics(kafka_settings.kafka)
    archive = read_archive(kafka_settings)
    assert archive.watches.height == 0 and archive.items.height == 0 and archive.refused == 0
    assert archive.watches.schema["user_id"] == pl.String
    with pytest.raises(LogError, match="watch-events: has no rows"):
        log_from_frame(archive.watches, 18.0, source="watch-events")

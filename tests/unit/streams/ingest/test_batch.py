"""A batch: order within a partition, nothing behind a record that waits, every record accounted for."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as patiently
from hypothesis import strategies as st

from infra.platform.settings import Ingest, Kafka, Settings, SettingsError
from infra.platform.topic_mappings import TopicMapping
from streams.ingest.batch import Reader, readers_of, take
from streams.ingest.formats import guessed
from streams.ingest.registry import Waiting
from streams.kafka.intake import Raw
from streams.messages import DeadLetter, WatchEvent, decode
from streams.topics import DEAD_LETTERS, WATCH_EVENTS

NOW_MS = 1_700_000_000_000
FIELDS = {name: name for name in ("user_id", "item_id", "event_ms", "watch_s")}
PLAYS = TopicMapping(topic="plays", becomes="watch-events", fields=FIELDS, only={"type": "end"})
SEARCHES = TopicMapping(
    topic="plays",
    becomes="search-events",
    fields={"user_id": "user_id", "query": "q", "event_ms": "event_ms"},
    only={"type": "search"},
)


def settings(*mappings: TopicMapping, **ingest: Any) -> Settings:
    return Settings(kafka=Kafka(max_message_bytes=1000, partitions=3), ingest=Ingest(topics=mappings, **ingest))


def raw(value: Any, offset: int = 0, partition: int = 0, **change: Any) -> Raw:
    encoded = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return Raw("plays", partition, offset, NOW_MS, None, encoded, ())._replace(**change)


def play(**change: Any) -> dict[str, Any]:
    return {"type": "end", "user_id": "u", "item_id": "i", "event_ms": NOW_MS, "watch_s": 3} | change


OURS = settings(PLAYS, SEARCHES)
READERS = readers_of(OURS)


def test_each_record_goes_through_every_mapping_of_its_topic():
    taken = take(
        [raw(play(), 5), raw(play(type="search", q="cats"), 6), raw(play(type="x"), 7)],
        readers_of(OURS),
        OURS,
        now_ms=NOW_MS,
    )
    assert [(each.topic, each.key) for each in taken.outgoing] == [("watch-events", b"u"), ("search-events", b"u")]
    assert decode(WatchEvent, taken.outgoing[0].value).event_id == "plays/0/5"
    assert (taken.ends, taken.received, taken.passed_over) == ({("plays", 0): 8}, {"plays": 3}, {"plays": 4})


def test_what_is_refused_is_a_dead_letter_of_their_topic_whole_and_the_rest_goes_on():
    batch = [
        raw(b"{", 1, 4),
        raw(play(user_id=None), 2, 4),
        raw(b" " * 1001, 3, 4),
        raw(play(event_ms=NOW_MS * 2), 4, 4),
    ]
    taken = take([*batch, raw(play(), 5, 4)], READERS, OURS, now_ms=NOW_MS)
    letters = [decode(DeadLetter, each.value) for each in taken.outgoing if each.topic == DEAD_LETTERS]
    assert [(each.topic, each.partition, each.offset, each.code) for each in letters] == [
        ("ingest/plays", 4, 1, "malformed"),
        ("ingest/plays", 4, 2, "missing"),
        ("ingest/plays", 4, 3, "too_large"),
        ("ingest/plays", 4, 4, "future"),
    ]
    assert letters[0].value == b"{" and {each.partition for each in taken.outgoing[:4]} == {4 % 3}
    assert taken.outgoing[-1].topic == WATCH_EVENTS and taken.ends == {("plays", 4): 6}
    assert taken.refused.total() == 4


class Unready(Reader):
    """A reader whose schema is not known for some records."""

    def read(self, raw: Raw) -> Any:
        if raw.value == b"later":
            raise Waiting("schema id 7")
        return super().read(raw)


def test_a_record_that_waits_stops_its_partition_and_no_other():
    readers = {"plays": Unready([PLAYS], None, 1000)}
    batch = [raw(play(), 1), raw(b"later", 2), raw(play(), 3), raw(play(), 8, 1), raw(b"later", 2, 2)]
    taken = take(batch, readers, OURS, now_ms=NOW_MS)
    assert taken.stuck == {("plays", 0): (2, "schema id 7"), ("plays", 2): (2, "schema id 7")}
    assert taken.ends == {("plays", 0): 2, ("plays", 1): 9}, "what waits is not committed, nor what is behind it"
    assert len(taken.outgoing) == 2 and taken.received == {"plays": 2}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"fields": FIELDS | {"user_id": "a..b"}}, "topic plays: path 'a..b'"),
        ({"values": {"duration_s": "long"}}, "topic plays: values: expected a number"),
        ({"format": "avro"}, "topic plays: format avro needs ingest.registry_url"),
        ({"key_format": "protobuf"}, "topic plays: format protobuf needs ingest.registry_url"),
    ],
)
def test_a_mapping_that_cannot_work_is_told_at_the_start(change: dict[str, Any], problem: str):
    with pytest.raises(SettingsError, match=problem):
        readers_of(settings(PLAYS.model_validate(PLAYS.model_dump() | change)))


def test_a_mapping_that_reads_one_of_our_topics_is_told_at_the_start():
    ours = settings(PLAYS.model_copy(update={"topic": "v1.items"}))
    assert readers_of(ours), "without our prefix it is theirs"
    ours = ours.model_copy(update={"kafka": Kafka(topic_prefix="v1.")})
    with pytest.raises(SettingsError, match=r"ingest\.topics, topic v1\.items: it is one of ours"):
        readers_of(ours)


def test_a_format_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("streams.ingest.formats.READERS", {"avro": ("no_such_package", "")})
    avro = PLAYS.model_validate(PLAYS.model_dump() | {"format": "avro"})
    with pytest.raises(SettingsError, match=r"no_such_package: pip install 'nextwatch\[schemas\]'"):
        readers_of(settings(avro, registry_url="http://127.0.0.1:1"))


def test_a_format_is_guessed_from_what_can_be_read():
    assert guessed([b'{"a":1}', b"[]"], None) == ("json", [{"a": 1}, []])
    assert guessed([b'\0\0\0\0\7{"a":1}'], None) == ("json-schema", [{"a": 1}])
    assert guessed([b"{}", b"junk", b"[]"], None) == ("json", [{}, []]), "what cannot be read is left out"
    with pytest.raises(SettingsError, match=r"no record can be read as json$"):
        guessed([b"\1"], None)
    with pytest.raises(SettingsError, match=r"as json-schema; if they have schemas, set ingest\.registry_url"):
        guessed([b"\0\0\0\0\7\6abc"], None)


@patiently(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40) | st.none(), st.integers(0, 2), st.binary(max_size=5)), max_size=20))
def test_whatever_arrives_every_record_is_dealt_with_once(records: list[tuple[bytes | None, int, bytes]]):
    batch = [raw(value, offset, partition, key=key) for offset, (value, partition, key) in enumerate(records)]
    taken = take(batch, READERS, OURS, now_ms=NOW_MS)
    assert taken.received.total() == len(batch)
    assert len(taken.outgoing) + taken.passed_over.total() >= len(batch)
    assert taken.ends == {("plays", each.partition): each.offset + 1 for each in batch}

"""A proposal names what the field's words and magnitudes tell, and can be used as it stands."""

import tomllib
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.platform.settings import Ingest
from infra.platform.topic_mappings import TopicMapping
from streams.ingest.mapping import Mapper
from streams.ingest.paths import Record
from streams.ingest.suggestion import suggest, words_of

AT_S = 1_700_000_000


def plays(count: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "eventType": "play_end" if number % 4 else "pause",
            "eventId": f"e-{number}",
            "viewer": {"id": number, "name": "Alice"},
            "videoId": f"v{number}",
            "occurredAt": datetime.fromtimestamp(AT_S + number, UTC).isoformat(),
            "progress": 1000 * number + 20_000,
            "durationMs": 60_000,
            "geo": {"country": "SE"},
        }
        for number in range(count)
    ]


def mapping_of(text: str) -> TopicMapping:
    (mapping,) = Ingest.model_validate(tomllib.loads(text)["ingest"]).topics
    return mapping


def test_a_topic_of_plays():
    text = suggest("acme.plays", plays())
    mapping = mapping_of(text)
    assert mapping.becomes == "watch-events" and mapping.topic == "acme.plays"
    assert mapping.fields == {
        "user_id": "viewer.id",
        "item_id": "videoId",
        "event_id": "eventId",
        "event_ms": "occurredAt",
        "watch_s": "progress",
        "duration_s": "durationMs",
        "context.region": "geo.country",
    }
    assert mapping.units == {"event_ms": "iso", "watch_s": "ms", "duration_s": "ms"}
    assert '# only = { "eventType" = "play_end" }  # seen: "play_end" 15, "pause" 5' in text
    assert "#   viewer.name: text" in text and "Alice" not in text, "no value of a record but a kind of event"
    watch = Mapper(mapping)(Record(plays()[3], lambda: None, 0, (), ("p", 0, 0)))
    assert watch is not None and watch.message.watch_s == 23.0 and watch.message.event_ms == 1000 * (AT_S + 3)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_the_unit_of_a_time_is_told_by_its_magnitude(unit: str, factor: int):
    rows = [{"user_id": 1, "item_id": 2, "ts": AT_S * factor + number, "watched": 3} for number in range(5)]
    assert mapping_of(suggest("t", rows)).units["event_ms"] == unit


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [("progress", 0.5, "fraction"), ("progress", 31.5, "s"), ("watched_ms", 500, "ms"), ("position", 31_500, "ms")],
)
def test_the_unit_of_what_was_watched_is_told_by_its_name_or_its_magnitude(name: str, value: float, unit: str):
    rows = [{"uid": 1, "content_id": 2, "time": AT_S, name: value, "length": 60}]
    assert mapping_of(suggest("t", rows)).units["watch_s"] == unit


def test_a_records_own_id_is_the_events_where_no_two_have_the_same():
    rows = [{"id": f"e{number}", "user_id": 1, "item_id": 2, "ts": AT_S, "watched": 3} for number in range(3)]
    assert mapping_of(suggest("t", rows)).fields["event_id"] == "id"
    same = [row | {"id": "e"} for row in rows]
    assert "event_id" not in mapping_of(suggest("t", same)).fields


def test_a_topic_of_searches():
    rows = [{"account": {"uuid": "a"}, "searchTerm": "cats", "ts": AT_S * 1000}]
    mapping = mapping_of(suggest("t", rows))
    assert (mapping.becomes, mapping.fields["query"]) == ("search-events", "searchTerm")


def test_a_table_behind_debezium():
    row = {"id": 7, "title": "cats", "channel": "c", "tags": ["a"], "created_at": AT_S * 10**6, "length": 60}
    changes = [
        {"op": "c", "before": None, "after": row, "source": {"ts_ms": 1}},
        {"op": "d", "before": row, "after": None},
    ]
    mapping = mapping_of(suggest("db.videos", changes))
    assert (mapping.becomes, mapping.envelope) == ("items", "debezium")
    assert mapping.fields["item_id"] == "id" and mapping.fields["published_ms"] == "created_at"
    assert {"title", "channel", "topics", "duration_s"} <= mapping.fields.keys()


def test_what_was_not_found_is_said_and_not_invented():
    text = suggest("t", [{"user_id": 1, "a": {"b": [1]}}])
    assert '# item_id = "?"  # must be there, and was not found' in text and "#   a.b: a list" in text
    assert suggest("t", []).startswith("# from 0 records") and suggest("t", ["text", 7, None])


def test_a_name_that_would_write_lines_of_its_own_is_left_out():
    lines = '\n[ingest]\nregistry_url = "http://elsewhere"\n'
    rows = [{lines + "userId": 1, 'user"Id': 1, "user\x7fId": 1, "käyttäjä😀 userId": 1, "item": {lines + "id": 2}}]
    text = suggest("t", rows)
    assert mapping_paths(text) == ["käyttäjä😀 userId"] and "elsewhere" not in text


def mapping_paths(text: str) -> list[str]:
    (mapping,) = tomllib.loads(text)["ingest"]["topics"]
    return [*mapping["fields"].values()]


def test_names_are_told_apart_into_words():
    assert words_of(["videoID", "user_name"]) == {"video", "id", "user", "name"}

"""Replay: every row arrives once, with the same id each time, when it is due; a failure is not called a success."""

from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from infra.operate import sending as module
from infra.operate.replay import due, item_messages, only_watches, replay, restamped, watch_messages
from infra.operate.sending import SendError
from infra.platform.settings import Kafka, Settings
from models.logs.log import LogError, items_from_frame, log_from_frame
from streams.messages import Context, Item, WatchEvent, decode, encode
from streams.topics import ITEMS, WATCH_EVENTS, create_topics, partition_of
from tests.harness.traffic import Reader

ROWS = {
    "user_id": ["ü1", "b", "b", "b"],
    "item_id": ["x", "y", "z", "z"],
    "event_ms": [3000, 1000, 2000, 2000],
    "watch_s": [4.0, None, 30.0, 30.0],
    "duration_s": [None, 12.0, 40.0, 40.0],
}


def test_rows_become_events_in_order_of_time_and_repeats_are_left_out() -> None:
    events = list(watch_messages(log_from_frame(pl.DataFrame(ROWS), 18.0)))
    assert [key for key, _ in events] == ["b", "b", "ü1"]
    assert [(e.item_id, e.event_ms, e.watch_s, e.duration_s) for _, e in events] == [
        ("y", 1000, 12.0, 12.0),  # not said for how long: a completed watch
        ("z", 2000, 30.0, 40.0),
        ("x", 3000, 4.0, None),
    ]
    assert all(decode(WatchEvent, encode(event)) == event for _, event in events)


def test_what_was_shown_and_left_alone_is_no_watch() -> None:
    watched = only_watches(log_from_frame(pl.DataFrame(ROWS | {"watch_s": [0.0, None, 0.1, 0.1]}), 18.0))
    assert watched.frame["item_id"].to_list() == ["y", "z"]


def test_an_event_id_depends_on_the_row_alone() -> None:
    whole = {e.event_id for _, e in watch_messages(log_from_frame(pl.DataFrame(ROWS), 18.0))}
    part = {e.event_id for _, e in watch_messages(log_from_frame(pl.DataFrame(ROWS)[1:], 18.0))}
    assert len(whole) == 3
    assert len(part) == 2
    assert part < whole


def test_pace_and_times_follow_the_speed() -> None:
    times = pl.Series([10_000, 12_000, 16_000])
    assert due(times, 4.0).to_list() == [0.0, 0.5, 1.5]
    assert restamped(times, 50_000, 4.0).to_list() == [50_000, 50_500, 51_500]
    assert restamped(times, 50_000, None).to_list() == [44_000, 46_000, 50_000]


def test_a_speed_of_nothing_is_refused() -> None:
    with pytest.raises(SendError, match="speed must be above 0"):
        replay(pl.DataFrame(ROWS), Settings(), speed=0)


def test_catalogue_rows_become_items() -> None:
    frame = pl.DataFrame({"item_id": ["x"], "channel": ["c"], "topics": ["one|two"], "duration_s": [3.0]})
    assert list(item_messages(items_from_frame(frame))) == [("x", Item("x", "", "c", ("one", "two"), 3.0))]


def test_the_further_ids_of_a_catalogue_travel_with_its_items() -> None:
    frame = pl.DataFrame({"item_id": ["x", "y"], "music": [77, None], "cast": [["a", "b"], []]})
    items = dict(item_messages(items_from_frame(frame)))
    assert items["x"].ids == {"music": ("77",), "cast": ("a", "b")}
    assert items["y"].ids == {} and b"ids" not in encode(items["y"])


def test_what_a_catalogue_says_of_its_items_travels_with_them() -> None:
    frame = pl.DataFrame({"item_id": ["x", "y"], "description": ["what", None], "vector": [[0.1, 1 / 3], None]})
    items = dict(item_messages(items_from_frame(frame)))
    assert items["x"] == Item("x", description="what", vector=(0.1, 0.333333))
    assert encode(items["y"]) == encode(Item("y"))


def test_the_context_of_a_row_travels_with_its_watch() -> None:
    context = {"region": ["de", None], "signed_in": [True, None], "age": [0.25, None]}
    frame = pl.DataFrame({"user_id": ["u", "v"], "item_id": ["i", "i"], "event_ms": [1, 2]} | context)
    first, second = [event for _, event in watch_messages(log_from_frame(frame, 18.0))]
    assert first.context == Context(region="de", signed_in=True, age=0.25)
    assert second.context is None


def test_a_bad_row_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("uid,item_id,event_ms\nu,x,1\nu,,2\n")
    with pytest.raises(LogError, match=r"row 2, column item_id"):
        replay(path, Settings(), mapping={"user_id": "uid"})


def test_a_broker_that_is_not_there_is_an_error_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    settings = Settings(kafka=Kafka(bootstrap="127.0.0.1:1"))
    with pytest.raises(SendError, match=r"kafka\.bootstrap = '127\.0\.0\.1:1'"):
        replay(pl.DataFrame(ROWS), settings)


def read_all(settings: Settings, topic: str) -> list[tuple[int, bytes, bytes]]:
    with closing(Reader(settings.kafka, topic)) as reader:
        return [(record.partition, record.key, record.value) for record in reader.to_the_end()]


def test_a_replay_is_acknowledged_keyed_by_user_and_the_same_each_time(kafka_settings: Settings) -> None:
    create_topics(kafka_settings.kafka)
    rows = pl.DataFrame(
        {
            "user_id": [f"u{n % 7}" for n in range(500)],
            "item_id": [f"i{n % 11}" for n in range(500)],
            "event_ms": range(1000, 1500),
            "watch_s": [20.0] * 500,
        }
    )
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(11)], "channel": ["c"] * 11})
    seen: list[tuple[str, int, int]] = []
    first = replay(rows, kafka_settings, items=items, progress=lambda *call: seen.append(call))
    again = replay(rows, kafka_settings, speed=1.0, restamp=True)
    assert (first.items, first.watches, again.items, again.watches) == (11, 500, 0, 500)
    assert again.wall_s > 0.4
    assert seen[-1] == ("watches", 500, 500)
    records = read_all(kafka_settings, WATCH_EVENTS)
    events = [decode(WatchEvent, value) for _, _, value in records]
    assert len(events) == 1000
    assert len({event.event_id for event in events}) == 500
    assert sum(event.event_ms > 1_600_000_000_000 for event in events) == 500
    for (partition, key, _), event in zip(records, events, strict=True):
        assert key == event.user_id.encode()
        assert partition == partition_of(event.user_id, kafka_settings.kafka.partitions)
    assert {decode(Item, value).item_id for _, _, value in read_all(kafka_settings, ITEMS)} == set(items["item_id"])


def test_a_replay_to_topics_that_are_not_there_fails_and_says_what_to_do(kafka_settings: Settings) -> None:
    with pytest.raises(SendError, match=r"-watch-events: missing \(nextwatch topics --create\)"):
        replay(pl.DataFrame(ROWS), kafka_settings)

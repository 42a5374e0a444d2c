"""What a record of theirs becomes, or why nothing: by hand, and with whatever hypothesis thinks of."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, get_type_hints
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.platform.topic_mappings import OPTIONAL, REQUIRED, TopicMapping
from streams.ingest.mapping import KINDS, Mapper
from streams.ingest.paths import PathError, Record, finder, steps_of
from streams.ingest.values import Unfit, seconds_in, text_of, time_ms_in, truth_of
from streams.messages import Context, Item, Refused, SearchEvent, SignalEvent, WatchEvent

AT_MS = 1_700_000_000_000
PLAY = {
    "type": "play_end",
    "viewer": {"id": 42, "guest": False},
    "video": {"id": "v1", "length": 60_000},
    "at": "2023-11-14T22:13:20Z",
    "position": 31_500,
    "geo": {"country": "SE"},
}
WATCH = {
    "topic": "player.events",
    "becomes": "watch-events",
    "fields": {
        "user_id": "viewer.id",
        "item_id": "video.id",
        "event_ms": "at",
        "watch_s": "position",
        "duration_s": "video.length",
        "context": {"region": "geo.country"},
    },
    "values": {"context.device": "tv", "context.signed_in": True},
    "units": {"event_ms": "iso", "watch_s": "ms", "duration_s": "ms"},
    "only": {"type": ["play_end", "play_stop"]},
    "without": {"viewer.guest": True},
}
PLAIN = {name: name for name in REQUIRED["watch-events"]}


def mapper(**change: Any) -> Mapper:
    return Mapper(TopicMapping(**(WATCH | change)))


def watches(fields: dict[str, str] = PLAIN, **change: Any) -> Mapper:
    """A mapping of fields that are called as ours, but for what is changed."""
    return Mapper(TopicMapping(topic="plays", becomes="watch-events", fields=PLAIN | fields, **change))


def items(fields: dict[str, Any], **change: Any) -> Mapper:
    return Mapper(TopicMapping(topic="videos", becomes="items", fields=fields, **change))


def record(value: Any, key: Any = None, **change: Any) -> Record:
    return Record(value, lambda: key, AT_MS, (), ("plays", 3, 17))._replace(**change)


def message(mapping: Mapper, value: Any, key: Any = None, **change: Any) -> Any:
    mapped = mapping(record(value, key, **change))
    assert mapped is not None
    return mapped.message


def plain(**change: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": "i", "event_ms": AT_MS, "watch_s": 3} | change


def refusal(mapping: Mapper, value: Any, key: Any = None, latest_ms: int | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        mapping(record(value, key), latest_ms=latest_ms)
    return caught.value


def test_a_nested_record_becomes_a_watch_under_its_users_key():
    mapped = mapper()(record(PLAY))
    context = Context(region="SE", device="tv", signed_in=True)
    assert mapped is not None
    assert (mapped.topic, mapped.key) == ("watch-events", "42")
    assert mapped.message == WatchEvent("plays/3/17", "42", "v1", AT_MS, 31.5, 60.0, context=context)


def test_an_event_has_the_same_id_whenever_it_is_read_and_its_own_where_it_has_one():
    assert message(watches(), plain()).event_id == message(watches(), plain()).event_id == "plays/3/17"
    assert message(watches({"event_id": "uuid"}), plain(uuid=UUID(int=7))).event_id == str(UUID(int=7))
    assert message(watches({"event_id": "uuid"}), plain()).event_id == "plays/3/17", "theirs is not there"
    long = message(watches(), plain(), place=("p" * 249, 1, 10**6)).event_id
    assert len(long) == 64 and long != message(watches(), plain(), place=("p" * 249, 1, 10**6 + 1)).event_id


def test_a_record_that_the_mapping_is_not_about_is_passed_over():
    assert mapper()(record(PLAY | {"type": "pause"})) is None
    assert mapper()(record(PLAY | {"viewer": {"id": 42, "guest": True}})) is None
    assert mapper()(record({name: value for name, value in PLAY.items() if name != "type"})) is None
    assert mapper()(record(PLAY | {"type": "play_stop"})) is not None


@pytest.mark.parametrize(("wanted", "value"), [(True, 1), (1, True), ("1", 1), (1, "1"), ("a", ["a"]), ("a", None)])
def test_a_filter_takes_no_value_for_another(wanted: Any, value: Any):
    assert watches(only={"x": wanted})(record(plain(x=value))) is None
    assert watches(without={"x": wanted})(record(plain(x=value))) is not None


def test_a_refusal_names_the_field_the_path_and_the_type_and_nothing_that_the_record_says():
    refused = refusal(mapper(), PLAY | {"viewer": {"id": {"secret": "alice"}}})
    assert refused.code == "invalid"
    assert str(refused) == "user_id from viewer.id: expected text or a whole number, found an object"
    missing = refusal(mapper(), PLAY | {"viewer": {}})
    assert (missing.code, str(missing)) == ("missing", "user_id: nothing at viewer.id")
    overlong = refusal(mapper(), PLAY | {"viewer": {"id": "alice" * 100}})
    assert "from viewer.id" in str(overlong) and "alice" not in str(overlong)


def test_an_event_from_the_future_is_refused():
    assert refusal(watches(), plain(), latest_ms=AT_MS - 1).code == "future"
    assert watches()(record(plain()), latest_ms=AT_MS) is not None


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("ms", AT_MS, AT_MS),
        ("ms", str(AT_MS), AT_MS),
        ("s", 1_700_000_000, AT_MS),
        ("s", 1_700_000_000.25, AT_MS + 250),
        ("s", Decimal("1700000000.5"), AT_MS + 500),
        ("us", AT_MS * 1000 + 999, AT_MS),
        ("ns", AT_MS * 10**6 + 1, AT_MS),
        ("iso", "2023-11-14T22:13:20Z", AT_MS),
        ("iso", "2023-11-14T23:13:20.001+01:00", AT_MS + 1),
        ("iso", "2023-11-14T22:13:20", AT_MS),
        ("s", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), AT_MS),
        ("ms", datetime(2023, 11, 14, 22, 13, 20), AT_MS),
        ("ms", date(2023, 11, 14), AT_MS - AT_MS % 86_400_000),
    ],
)
def test_a_time_in_any_unit_becomes_milliseconds(unit: str, value: Any, expected: int):
    assert time_ms_in(unit)(value) == expected


@pytest.mark.parametrize(("unit", "value"), [("iso", AT_MS), ("iso", "yesterday"), ("ms", "soon"), ("ms", True)])
@pytest.mark.parametrize("also", [float("nan"), float("inf"), [], {}, "9" * 41])
def test_what_is_no_time_is_refused(unit: str, value: Any, also: Any):
    for each in (value, also):
        with pytest.raises(Unfit):
            time_ms_in(unit)(each)


def test_what_was_watched_may_be_a_share_of_the_duration():
    fields = {"duration_s": "length", "watch_s": "share"}
    fraction = watches(fields, units={"watch_s": "fraction"})
    assert message(fraction, plain(length=80, share=0.25)).watch_s == 20
    percent = watches(fields, units={"watch_s": "percent", "duration_s": "ms"})
    assert message(percent, plain(length=80_000, share=50)).watch_s == 40
    assert str(refusal(fraction, plain(share=0.25))) == "watch_s: nothing at share or duration_s"
    assert message(watches(), plain(watch_s=0)).watch_s == 0, "not watched at all is a fact"


def test_durations_and_truths_and_texts():
    assert seconds_in("ms")("1500") == 1.5 and seconds_in("s")(timedelta(minutes=1)) == 60
    assert truth_of("True") and not truth_of(0) and text_of(b"\xc3\xa5") == "å"
    for value in (2, "yes", None, 1.0):
        with pytest.raises(Unfit):
            truth_of(value)
    for value in (True, 1.0, b"\xff", []):
        with pytest.raises(Unfit):
            text_of(value)


def test_paths_reach_into_lists_names_with_dots_keys_headers_and_the_records_time():
    value = {"a.b": {"c": [{"d": 1}, {"d": 2}]}}
    given_ = record(value, {"id": 7}, headers=(("trace", b"t-1"), ("none", None)))
    there = {'"a.b".c.1.d': 2, "$key": {"id": 7}, "$key.id": 7, "$headers.trace": "t-1", "$timestamp": AT_MS}
    assert {path: finder(path)(given_) for path in there} == there
    for path in ("x.y", '"a.b".c.9.d', '"a.b".c.-1.d', '"a.b".c.d', "$headers.none", "$key.x"):
        assert finder(path)(given_) is None


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", 'a."b', '"a"b', "$offset", "$headers", "$timestamp.x"])
def test_a_path_that_cannot_be_read_is_refused(path: str):
    with pytest.raises(PathError, match="path"):
        finder(path)


def test_a_search():
    fields = {"user_id": "$key", "query": "q", "event_ms": "$timestamp"}
    search = Mapper(TopicMapping(topic="s", becomes="search-events", fields=fields))
    assert message(search, {"q": "cats"}, "u") == SearchEvent("plays/3/17", "u", "cats", AT_MS)
    assert refusal(search, {"q": "cats"}).code == "missing"


def test_a_signal_of_an_item_or_of_a_channel():
    fields = {"user_id": "$key", "kind": "action", "event_ms": "$timestamp", "item_id": "video", "channel": "creator"}
    signals = Mapper(TopicMapping(topic="s", becomes="signals", fields=fields))
    assert message(signals, {"action": "like", "video": 7}, "u") == SignalEvent("plays/3/17", "u", "like", AT_MS, "7")
    channel = SignalEvent("plays/3/17", "u", "dislike", AT_MS, channel="cats")
    assert message(signals, {"action": "dislike", "creator": "cats"}, "u") == channel
    assert refusal(signals, {"action": "dislike"}, "u").code == "invalid"
    assert refusal(signals, {"action": "thumbs_up", "video": 7}, "u").code == "invalid"
    hidden = {"values": {"kind": "not_interested"}, "only": {"action": "hide"}}
    fields = {"user_id": "$key", "event_ms": "$timestamp", "item_id": "video"}
    signals = Mapper(TopicMapping(topic="s", becomes="signals", fields=fields, **hidden))
    assert message(signals, {"action": "hide", "video": 7}, "u").kind == "not_interested"
    with pytest.raises(ValidationError, match="item_id is missing: signals must have it, or channel"):
        TopicMapping(topic="s", becomes="signals", fields={"user_id": "a", "event_ms": "b", "kind": "c"})


def test_an_item_with_its_groups_and_whether_it_may_be_shown():
    fields = {"item_id": "id", "title": "t", "topics": "tags", "ids": {"music": "song"}, "published_ms": "at"}
    video = items(fields, units={"published_ms": "s"}, available_when={"status": "live", "rating": ["G", "PG"]})
    value = {"id": 9, "t": "cats", "tags": ["a", 7], "song": 77, "at": 5, "status": "live", "rating": "G"}
    expected = Item("9", "cats", topics=("a", "7"), published_ms=5000, ids={"music": ("77",)})
    assert video(record(value)) == ("items", "9", expected)
    assert not message(video, value | {"status": "draft"}).available
    assert message(items({"item_id": "id", "topics": "tags"}), {"id": 9, "tags": "one"}).topics == ("one",)


def test_a_tombstone_takes_the_item_of_its_key_down():
    assert items({"item_id": "id"})(record(None, "9")) == ("items", "9", None)
    assert items({"item_id": "id"}, deleted="$key.id")(record(None, {"id": 9})) == ("items", "9", None)
    assert items({"item_id": "$key.id"})(record(None, {"id": 9})) == ("items", "9", None), "where the id is anyway"
    assert refusal(items({"item_id": "id"}), None).code == "missing"
    assert refusal(items({"item_id": "id"}), None, "").code == "invalid"
    assert refusal(watches(), None, "u").code == "empty", "an event is not taken back"


def test_a_description_is_cut_and_a_vector_is_a_list_of_finite_numbers():
    video = items({"item_id": "id", "description": "about", "vector": "clip.numbers"})
    value = {"id": 9, "about": "d" * 20_000, "clip": {"numbers": [1, 0.5, "2", Decimal("0.25")]}}
    expected = Item("9", description="d" * 10_000, vector=(1.0, 0.5, 2.0, 0.25))
    assert video(record(value)) == ("items", "9", expected)
    assert video(record({"id": 9, "clip": None})) == ("items", "9", Item("9"))
    for numbers, why in (
        ([1.0, float("nan")], "vector from clip.numbers: expected a list of finite numbers, found a list"),
        ([1.0, [2.0]], "expected a list of finite numbers, found a list"),
        ("1,2", "expected a list of numbers, found text"),
        ([1.0] * 2049, "length <= 2048 - at `\\$.vector`, from clip.numbers"),
        ([1e31], "from clip.numbers"),
    ):
        with pytest.raises(Refused, match=why) as refused:
            video(record({"id": 9, "clip": {"numbers": numbers}}))
        assert refused.value.code == "invalid"


ROW = {"id": 9, "title": "cats"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_debeziums_changes_of_rows_are_items_and_what_takes_them_down(wrapped: bool):
    video = items({"item_id": "id", "title": "title"}, envelope="debezium", deleted="$key.id")

    def sent(value: Any) -> Any:
        return {"schema": {"type": "struct"}, "payload": value} if wrapped else value

    for operation in "cur":
        change = sent({"op": operation, "before": None, "after": ROW, "ts_ms": 1})
        assert video(record(change)) == ("items", "9", Item("9", "cats"))
    gone = ("items", "9", None)
    assert video(record(sent({"op": "d", "before": ROW, "after": None}))) == gone
    assert video(record(sent({"op": "d", "before": None, "after": None}), sent({"id": 9}))) == gone
    assert video(record(None, sent({"id": 9}))) == gone
    assert video(record(sent({"op": "t"}))) is None


def test_a_row_that_is_gone_takes_down_only_what_the_mapping_is_about():
    about = {"only": {"kind": ["video"], "state": "live"}, "without": {"draft": True}}
    video = items({"item_id": "id"}, envelope="debezium", **about)

    def gone(**before: Any) -> Any:
        return video(record({"op": "d", "before": {"id": 9} | before, "after": None}))

    assert gone(kind="image") is None and gone(kind="video", state="old") is None and gone(draft=True) is None
    for before in ({"kind": "video", "state": "live", "draft": False}, {"kind": None}, {}):
        assert gone(**before) == ("items", "9", None), "what is not told speaks for nobody"


@pytest.mark.parametrize(("key_format", "key"), [("text", '{"id":9}'), ("json", {"id": 9})])
def test_debeziums_bare_tombstone_is_passed_over_where_nobody_said_what_its_key_holds(key_format: str, key: Any):
    unsaid = TopicMapping(
        topic="t", becomes="items", fields={"item_id": "id"}, envelope="debezium", key_format=key_format
    )
    for mapping in (unsaid, TopicMapping.model_validate_json(unsaid.model_dump_json())):
        assert Mapper(mapping)(record(None, key)) is None
    assert refusal(Mapper(unsaid), {"op": "d", "before": None, "after": None}, key).code == "missing"
    assert items({"item_id": "$key.id"}, envelope="debezium")(record(None, {"id": 9})) == ("items", "9", None)
    assert items({"item_id": "id"}, envelope="debezium", deleted="$key")(record(None, "9")) == ("items", "9", None)


def test_debeziums_new_rows_are_events_and_deleted_ones_are_none():
    watch = watches(envelope="debezium")
    assert message(watch, {"op": "c", "after": plain()}) == message(watches(), plain())
    assert watch(record({"op": "d", "before": plain()})) is None and watch(record(None, {"id": 1})) is None
    assert str(refusal(watch, plain())) == "no Debezium envelope: found nothing at op"
    assert str(refusal(watch, {"op": "c"})) == "no Debezium envelope: found nothing at after"
    assert refusal(watch, ["c"]).code == "invalid"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"fields": {"user_id": "a", "item_id": "b", "event_ms": "c"}}, "fields.watch_s is missing"),
        ({"fields": PLAIN | {"query": "q"}}, "fields.query: watch-events have no such field; they have user_id"),
        ({"fields": PLAIN | {"context": {"place": "q"}}}, r"fields.context.place: watch-events have no such"),
        ({"values": {"ids.x": "1"}}, "values.ids.x: watch-events have no"),
        ({"values": {"user_id": "1"}}, "user_id is in fields and in values"),
        ({"units": {"event_ms": "h"}}, "units.event_ms is 'h'; there are ms, s, us, ns, iso"),
        ({"units": {"user_id": "s"}}, "units.user_id is 's'; there are none: it is neither a time nor a duration"),
        ({"units": {"watch_s": "fraction"}}, "units.watch_s is 'fraction', of a duration_s that is not mapped"),
        ({"available_when": {"a": 1}}, "available_when is for items"),
        ({"topic": "a b"}, "topic"),
        ({"becomes": "impressions"}, "becomes"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused_when_it_is_read(change: dict[str, Any], problem: str):
    with pytest.raises(ValidationError, match=problem):
        TopicMapping(**({"topic": "plays", "becomes": "watch-events", "fields": PLAIN} | change))


@pytest.mark.parametrize("becomes", KINDS)
def test_every_field_of_our_messages_can_be_mapped_and_no_other(becomes: Any):
    hints = get_type_hints(KINDS[becomes])
    named = {name.partition(".")[0] for name in (*REQUIRED[becomes], *OPTIONAL[becomes])}
    assert named | ({"ids"} if becomes == "items" else set()) == set(hints)
    inner = {name.partition(".")[2] for name in OPTIONAL[becomes] if name.startswith("context.")}
    assert not inner or inner == set(get_type_hints(Context))


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=8)
leaves |= st.datetimes() | st.dates() | st.decimals() | st.timedeltas() | st.uuids()
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner), max_leaves=8
)
FIELDS = ("user_id", "item_id", "event_ms", "watch_s", "duration_s", "context.signed_in", "context.age")


@settings(deadline=None)
@given(
    value=st.dictionaries(st.sampled_from("abcdefg"), trees) | trees,
    key=trees,
    time_unit=st.sampled_from(["s", "ms", "us", "ns", "iso"]),
    unit=st.sampled_from(["s", "ms", "fraction", "percent"]),
    envelope=st.sampled_from(["none", "debezium"]),
)
def test_whatever_a_record_holds_it_is_a_message_passed_over_or_refused(value, key, time_unit, unit, envelope):
    fields = dict(zip(FIELDS, "abcdefg", strict=True))
    units = {"event_ms": time_unit, "watch_s": unit}
    watch = Mapper(
        TopicMapping(topic="t", becomes="watch-events", fields=fields, units=units, only={}, envelope=envelope)
    )
    video = items({"item_id": "a", "published_ms": "b", "topics": "c", "available": "d"}, units={"published_ms": "iso"})
    for mapping in (watch, video):
        try:
            mapped = mapping(record(value, key), latest_ms=AT_MS)
        except Refused:
            continue
        assert mapped is None or 0 < len(mapped.key) <= 256


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters='".$'), min_size=1), min_size=1, max_size=4))
def test_any_name_can_be_written_as_a_path(names: list[str]):
    assert steps_of(".".join(names)) == steps_of(".".join(f'"{name}"' for name in names)) == tuple(names)

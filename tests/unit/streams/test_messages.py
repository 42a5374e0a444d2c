"""What is refused, and that the reason says what is wrong."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.messages import (
    COMPACT,
    BundlePublished,
    Context,
    GroupIds,
    Impression,
    ImpressionOutline,
    IndexReady,
    Item,
    ItemVector,
    JoinedWatch,
    JoinState,
    OpenImpression,
    Outcome,
    RecommendRequest,
    Refused,
    Release,
    Search,
    Shown,
    ShownList,
    TrainingExample,
    UserHistory,
    Watch,
    WatchEvent,
    decode,
    encode,
)
from streams.topics import TOPICS, partition_of

GOOD = {"event_id": "e", "user_id": "u", "item_id": "i", "event_ms": 1_000, "watch_s": 2.5}


def refused(**change: object) -> Refused:
    body = {name: value for name, value in (GOOD | change).items() if value is not ...}
    with pytest.raises(Refused) as caught:
        decode(WatchEvent, json.dumps(body).encode(), latest_ms=10_000)
    return caught.value


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"watch_s": "2"}, "invalid", "$.watch_s"),
        ({"item_id": 7}, "invalid", "$.item_id"),
        ({"event_ms": 1.5}, "invalid", "$.event_ms"),
        ({"item_id": ...}, "invalid", "item_id"),
        ({"watch_s": -1}, "invalid", "$.watch_s"),
        ({"watch_s": float("nan")}, "malformed", "JSON"),
        ({"watch_s": float("inf")}, "malformed", "JSON"),
        ({"user_id": ""}, "invalid", "$.user_id"),
        ({"user_id": "x" * 257}, "invalid", "$.user_id"),
        ({"event_ms": -5}, "invalid", "$.event_ms"),
        ({"event_ms": 10_001}, "future", "event_ms 10001"),
        ({"context": {"age": 44}}, "invalid", "$.context.age"),
    ],
)
def test_what_cannot_be_true_is_refused_with_its_reason(change, code, says):
    error = refused(**change)
    assert error.code == code and says in str(error)


def test_an_impression_from_the_far_future_is_refused_too():
    shown = b'{"request_id":"r","user_id":"u","at_ms":10001,"served_by":"","version":"","items":[]}'
    assert decode(Impression, shown, latest_ms=10_001).at_ms == 10_001
    with pytest.raises(Refused, match="at_ms 10001") as caught:
        decode(Impression, shown, latest_ms=10_000)
    assert caught.value.code == "future"


WATCH = Watch("i \N{SNOWMAN}", 2**53 - 1, 0.1, None, True, "e", 2**63 - 1)
HISTORY = UserHistory(
    "u",
    (WATCH,),
    (Search("q", 1, "s", -1),),
    Context("de", age=0.5),
    9,
    8,
    7,
    (ShownList("r", 1, ("a",)),),
    6,
    b"\xff\0",
    5,
)
EXAMPLE = TrainingExample("u", "i", 2, 3.5, 60.0, (WATCH,), HISTORY.searches, HISTORY.context, 3, 9, 1)


@pytest.mark.parametrize("message", [HISTORY, EXAMPLE, UserHistory("u")])
def test_histories_and_examples_are_read_in_both_forms_and_smaller_in_the_compact_one(message):
    compact, text = encode(message), encode(message, compact=False)
    assert text.startswith(b"{") and compact.startswith(COMPACT) and len(compact) < len(text)
    assert decode(type(message), compact) == decode(type(message), text) == message


def test_a_history_that_was_written_before_there_was_a_compact_form_is_read():
    before = (
        b'{"user_id":"u","watches":[["i",5,2.5,null,true,"e",3]],"searches":[["q",4,"s",0]],"watch_offset":3,'
        b'"search_offset":0,"produced_ms":6,"impressions":[["r",1,["a"]]],"impression_offset":2,"seen":"AQID"}'
    )
    read = decode(UserHistory, before)
    assert read.watches == (Watch("i", 5, 2.5, None, True, "e", 3),) and read.seen == b"\x01\x02\x03"
    assert decode(UserHistory, encode(read)) == read


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"user_id": ""}, "invalid", r"\$.user_id"),
        ({"user_id": "u", "watches": [["i", 1, float("nan"), None, True, "e", 0]]}, "invalid", "watches"),
        ({"user_id": "u", "watch_offset": -2}, "invalid", "watch_offset"),
        ([], "invalid", "object"),
    ],
)
def test_what_cannot_be_true_is_refused_in_the_compact_form_too(body, code, says):
    with pytest.raises(Refused, match=says) as caught:
        decode(UserHistory, COMPACT + msgspec.msgpack.encode(body))
    assert caught.value.code == code


def test_the_compact_form_is_for_histories_and_examples_only():
    event = WatchEvent("e", "u", "i", 1, 2.0)
    assert encode(event) == encode(event, compact=False)
    with pytest.raises(Refused, match="not JSON"):
        decode(WatchEvent, COMPACT + msgspec.msgpack.encode(event))
    with pytest.raises(Refused, match="not MessagePack"):
        decode(UserHistory, COMPACT + b"\xc1")
    assert decode(UserHistory, COMPACT + msgspec.msgpack.encode({"user_id": "u", "later": [1]})) == UserHistory("u")


def test_an_overflowing_number_is_refused():
    raw = json.dumps(GOOD).replace("2.5", "1e999").encode()
    with pytest.raises(Refused):
        decode(WatchEvent, raw)


def test_a_message_over_the_limit_and_an_empty_one_are_refused():
    raw = json.dumps(GOOD | {"padding": "x" * 2000}).encode()
    with pytest.raises(Refused, match="over the limit of 1000 bytes"):
        decode(WatchEvent, raw, max_bytes=1000)
    with pytest.raises(Refused) as caught:
        decode(WatchEvent, None)
    assert caught.value.code == "empty"


def test_unknown_fields_are_read_over_so_that_messages_can_grow():
    assert decode(WatchEvent, json.dumps(GOOD | {"new_field": [1]}).encode()).item_id == "i"


def test_the_ids_of_an_item_are_bounded_and_left_out_when_there_are_none():
    item = Item("i", ids={"music": ("77",)})
    assert decode(Item, encode(item)) == item and decode(Item, b'{"item_id":"i"}').ids == {}
    assert encode(Item("i")) == b'{"item_id":"i"}'
    for ids in ({f"n{n}": ["1"] for n in range(17)}, {"music": [""]}, {"music": ["x" * 257]}, {"music": [7]}):
        with pytest.raises(Refused, match=r"\$.ids"):
            decode(Item, json.dumps({"item_id": "i", "ids": ids}).encode())


def test_deep_nesting_is_refused_not_a_crash():
    with pytest.raises(Refused):
        decode(WatchEvent, b'{"context":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_for_every_topic(raw):
    """Not one of the drawn strings is a message by chance: the shortest has ten bytes that must be right."""
    for topic in TOPICS:
        with pytest.raises(Refused):
            decode(topic.message, raw)


def test_releases_are_told_apart_by_kind():
    for message in (BundlePublished("v1", 5, 65, 10, "h"), IndexReady("v1", "items_v1", 10, 5)):
        assert decode(Release, encode(message)) == message


def test_vectors_travel_as_binary():
    row = ItemVector("v1", 3, b"\x00\x00\x80?", b"", 12, b"s")
    assert decode(ItemVector, encode(row)) == row and len(encode(row)) < 30


def test_a_request_says_how_many_and_by_when():
    assert decode(RecommendRequest, b'{"request_id":"r","user_id":"u"}').k is None
    with pytest.raises(Refused, match="k"):
        decode(RecommendRequest, b'{"request_id":"r","user_id":"u","k":0}')


def test_a_request_may_pin_items_and_they_have_names():
    pinned = decode(RecommendRequest, b'{"request_id":"r","user_id":"u","pinned":["b","a"]}').pinned
    assert pinned == ("b", "a")
    with pytest.raises(Refused, match="pinned"):
        decode(RecommendRequest, b'{"request_id":"r","user_id":"u","pinned":[""]}')


def test_with_which_probability_an_item_was_drawn_stays_on_record():
    drawn, plain = Shown("a", 1, "s", probability=0.125), Shown("b", 2, "s")
    shown = Impression("r", "u", 1, "x", "v", (drawn, plain))
    assert decode(Impression, encode(shown)) == shown
    assert encode(shown).count(b"probability") == 1, "what was not drawn says nothing"


def test_partitions_are_those_of_the_java_client():
    # Values of org.apache.kafka.common.utils.Utils.murmur2 for these keys, as Kafka's own UtilsTest lists them.
    known = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    for key, hashed in known.items():
        assert partition_of(key, 1000) == (hashed & 0x7FFFFFFF) % 1000


@pytest.mark.parametrize(
    "change",
    [
        {"factor": 1e-308},
        {"factor": 5},
        {"items": [{"expected_watch_s": 1e12}]},
        {"items": [{"position": 2**40}]},
        {"items": [{"probability": 1.5}]},
    ],
    ids=["no factor", "too large a factor", "seconds beyond the cap", "position", "probability"],
)
def test_an_impression_with_numbers_that_cannot_be_true_is_refused(change: dict[str, object]):
    item = {"item_id": "i", "position": 1, "source": "s"}
    items = [item | each for each in change.pop("items", [{}])]  # type: ignore[attr-defined]
    plain = {"request_id": "r", "user_id": "u", "at_ms": 1, "served_by": "x", "version": "v", "items": [item]}
    assert decode(Impression, msgspec.json.encode(plain)).items[0].position == 1
    with pytest.raises(Refused) as refused:
        decode(Impression, msgspec.json.encode(plain | {"items": items} | change))
    assert refused.value.code == "invalid"


ITEM = {"item_id": "i", "position": 1, "source": "s"}
SHOWN = {"request_id": "r", "user_id": "u", "at_ms": 1, "served_by": "x", "version": "v", "items": [ITEM]}


def test_who_needs_no_features_reads_what_a_server_has_written():
    shown = Shown("a", 1, "s", 2.5, 20.0, 3, {"s": 1.0}, {"channel": ("c",), "topics": ("t", "u")}, b"1234", 0.5)
    whole = Impression("r", "u", 5, "x", "v", (shown,), Context("de"), "hash", {"q": ("1",)}, b"12", 1.5, 3.0)
    outline = decode(ImpressionOutline, encode(whole))
    (item,) = outline.items
    for read, written in ((outline, whole), (item, shown)):
        for name in set(read.__struct_fields__) - {"items", "ids"}:
            assert getattr(read, name) == getattr(written, name)
    assert item.ids == GroupIds(channel=("c",), topics=("t", "u"))


@pytest.mark.parametrize("change", [{"values": 7}, {"context": []}, {"items": [ITEM | {"sources": [], "values": "?"}]}])
def test_features_that_are_none_are_left_to_who_reads_them(change):
    raw = msgspec.json.encode(SHOWN | change)
    assert decode(ImpressionOutline, raw).items[0].item_id == "i"
    with pytest.raises(Refused):
        decode(Impression, raw)


@pytest.mark.parametrize("name", [*SHOWN, *(f"items/{name}" for name in ITEM)])
def test_an_impression_without_what_a_reporter_must_tell_is_refused(name):
    *within, name = name.split("/")
    item = {key: value for key, value in ITEM.items() if not within or key != name}
    raw = {key: value for key, value in SHOWN.items() if within or key != name}
    with pytest.raises(Refused) as refused:
        decode(ImpressionOutline, msgspec.json.encode(raw | ({"items": [item]} if within else {})))
    assert refused.value.code == "invalid"


@pytest.mark.parametrize("unread", [b'"\xff"', b'{"\xed\xa0\x80":1}', b"01", b"[1,]", b"nul"])
def test_what_is_passed_on_unread_is_json_in_utf_8(unread):
    raw = msgspec.json.encode(SHOWN)[:-1] + b',"values":' + unread + b"}"
    with pytest.raises(Refused) as refused:
        decode(ImpressionOutline, raw)
    assert refused.value.code == "malformed"


JOINED = JoinedWatch("a", 7, 20.0, True, "e", None, 3)


def test_a_state_of_the_join_that_was_written_in_json_is_read_as_it_was():
    whole = Impression("r", "u", 5, "x", "v", (Shown("a", 1, "s", values=b"1234"), Shown("b", 2, "s")))
    opened = {"impression": whole, "offset": 4, "closes_ms": 9, "watches": [JOINED], "revision": 8}
    old = {"user_id": "u", "impressions": [opened | {"counted": [["a", 20.0, True]]}], "early": [JOINED]}
    state = decode(JoinState, msgspec.json.encode(old | {"watch_offset": 3, "impression_offset": 4, "since_ms": 2}))
    counted = (Outcome("a", 20.0, True),)
    kept = OpenImpression("r", 5, ("a", "b"), encode(whole), 4, 9, (JOINED,), 8, counted)
    assert state == JoinState("u", (kept,), (JOINED,), 3, 4, 2)
    written = encode(state)
    assert written[:1] == COMPACT and decode(JoinState, written) == state
    again = msgspec.json.decode(encode(state, compact=False))
    assert again["impressions"][0] == msgspec.json.decode(msgspec.json.encode(opened | {"counted": counted}))
    assert decode(JoinState, encode(state, compact=False)) == state, "for a reader that knows no other form"


def test_a_state_of_the_join_in_a_form_that_is_not_known_is_refused():
    written = encode(JoinState("u"))
    for raw in (b"\x02" + written[1:], written[1:], b"", b"{"):
        with pytest.raises(Refused) as refused:
            decode(JoinState, raw)
        assert refused.value.code == "malformed"


def test_an_item_brings_a_description_and_a_vector_and_one_that_is_none_is_refused():
    item = Item("i", description="what it is about", vector=(0.5, -1e30, 3.0))
    assert decode(Item, encode(item)) == item
    assert decode(Item, b'{"item_id":"i","vector":[1,2]}').vector == (1.0, 2.0)
    none = decode(Item, b'{"item_id":"i","vector":null,"description":null}')
    assert not none.vector and not none.description
    assert decode(Item, encode(Item("i", description="d" * 100_000))).description
    for numbers in ("NaN", "1e999", "1e31", '"1"', "null"):
        with pytest.raises(Refused):
            decode(Item, b'{"item_id":"i","vector":[1,%s]}' % numbers.encode())

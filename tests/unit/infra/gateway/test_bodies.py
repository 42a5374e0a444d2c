"""What is read from bodies and paths, and what a body's events come to."""

import json

import msgspec
import pytest

from infra.gateway.bodies import BadRequest, Outcome, Problem, read_events, read_id, read_item, status_of
from streams.messages import SearchEvent, WatchEvent, encode

NOW_MS = 1_000_000
WATCH = {"event_id": "e", "user_id": "ann", "item_id": "v", "event_ms": NOW_MS, "watch_s": 3}
LATE = Problem(0, "unacknowledged", "not acknowledged within 5 s")
WRONG = Problem(0, "invalid", "watch_s is missing")


def read(body: object, kind: type = WatchEvent, max_bytes: int = 1000):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_events(kind, raw, max_bytes=max_bytes, latest_ms=NOW_MS)


def test_one_event_or_a_list_of_them():
    assert read(WATCH).good == [WatchEvent("e", "ann", "v", NOW_MS, 3.0)]
    assert read([WATCH, WATCH | {"event_id": "f"}]).places == [0, 1]
    search = {"event_id": "s", "user_id": "ann", "query": "cats", "event_ms": NOW_MS}
    assert read(search, SearchEvent).good == [SearchEvent("s", "ann", "cats", NOW_MS)]


def test_each_event_is_judged_alone_by_the_rules_of_the_streams():
    events = read(
        [
            WATCH,
            {"event_id": "no-user"},
            WATCH | {"event_id": "early", "event_ms": NOW_MS + 1},
            WATCH | {"event_id": "back", "watch_s": -1},
            WATCH | {"event_id": "big", "request_id": "x" * 256, "context": {"region": "y" * 2000}},
            "no event",
            WATCH | {"event_id": "last", "unknown": {"a": 1}},
        ]
    )
    assert events.places == [0, 6]
    told = [(each.index, each.event_id, each.code) for each in events.problems]
    assert told == [
        (1, "no-user", "invalid"),
        (2, "early", "future"),
        (3, "back", "invalid"),
        (4, "big", "too_large"),
        (5, "", "invalid"),
    ]
    assert b"unknown" not in encode(events.good[1]), "nothing travels that was not looked at"


@pytest.mark.parametrize(
    "body", [b"", b"[", b'{"event_id": "e"', b"[]", b"\xff", b"no", b"[" * 100_000, json.dumps(WATCH).encode()[:-7]]
)
def test_a_body_that_holds_no_events_is_refused(body: bytes):
    with pytest.raises(BadRequest):
        read(body)


def test_a_number_that_nothing_can_hold_is_refused():
    for raw in (b"NaN", b"1e999", b'"3"'):
        body = json.dumps(WATCH | {"watch_s": 0}).encode().replace(b'"watch_s": 0', b'"watch_s": ' + raw)
        try:
            problems = read(body).problems
        except BadRequest:
            continue
        assert [each.code for each in problems] in (["invalid"], ["malformed"])


@pytest.mark.parametrize(
    ("accepted", "problems", "status"),
    [(2, [], 202), (1, [WRONG], 207), (0, [WRONG], 400), (1, [LATE], 503), (0, [LATE, WRONG], 503)],
)
def test_202_says_that_all_of_a_body_is_acknowledged_and_nothing_else_does(accepted, problems, status):
    assert status_of(Outcome(accepted, problems)) == status


def test_an_item_has_the_id_of_its_path():
    assert read_item("a/b", b'{"title": "T"}', max_bytes=100).item_id == "a/b"
    with pytest.raises(BadRequest, match="in the path 'a'"):
        read_item("a", b'{"item_id": "b"}', max_bytes=100)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"title": 3}', b'{"item_id": 3}', b'{"title": "\xff"}'])
def test_an_item_that_is_none_is_refused(body: bytes):
    with pytest.raises(BadRequest):
        read_item("a", body, max_bytes=100)


def test_a_title_of_ten_kilobytes_is_refused_with_the_reason():
    body = msgspec.json.encode({"title": "T" * 10_240})
    with pytest.raises(BadRequest, match=r"length <= 2000 - at `\$\.title`"):
        read_item("a", body, max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("encoded", "found"),
    [("a%2Fb", "a/b"), ("a%20b", "a b"), ("a+b", "a+b"), ("%22%27", "\"'"), ("%F0%9F%98%80", "😀"), ("%2E%2E", "..")],
)
def test_an_id_in_a_path_may_hold_anything(encoded: str, found: str):
    assert read_id(encoded) == found


@pytest.mark.parametrize("encoded", ["", "%FF", "x" * 257])
def test_an_id_that_is_none_is_refused(encoded: str):
    with pytest.raises(BadRequest):
        read_id(encoded)

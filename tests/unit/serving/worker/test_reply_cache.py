from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.worker.reply_cache import Key, ReplyCache

ANN = Key("ann", "r1")


def test_a_repeated_request_gets_the_same_reply_until_the_window_is_over() -> None:
    repeats: ReplyCache[str] = ReplyCache(1000, 10)
    assert repeats.reply_to(ANN, 0) is None
    repeats.begin(ANN)
    assert repeats.end(ANN, b"list", 0) == []
    assert repeats.reply_to(ANN, 999) == b"list"
    assert repeats.reply_to(ANN, 1000) is None
    assert repeats.reply_to(Key("bob", "r1"), 1) is None, "another user's request of the same id is another request"


def test_who_repeats_a_request_under_way_waits_for_the_same_reply() -> None:
    repeats: ReplyCache[str] = ReplyCache(1000, 10)
    assert not repeats.join(ANN, "early")
    repeats.begin(ANN)
    assert repeats.join(ANN, "second")
    assert repeats.join(ANN, "third")
    assert repeats.end(ANN, b"list", 5) == ["second", "third"]
    assert not repeats.join(ANN, "late")


def test_an_answer_that_failed_is_not_repeated() -> None:
    repeats: ReplyCache[str] = ReplyCache(1000, 10)
    repeats.begin(ANN)
    repeats.join(ANN, "second")
    assert repeats.end(ANN, None, 5) == ["second"]
    assert repeats.reply_to(ANN, 6) is None


def test_without_a_window_nothing_is_kept() -> None:
    repeats: ReplyCache[str] = ReplyCache(0, 10)
    repeats.remember(ANN, b"list", 0)
    assert len(repeats) == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 400)), max_size=80))
def test_no_more_is_kept_than_the_window_and_the_bound_allow(sent: list[tuple[int, int]]) -> None:
    repeats: ReplyCache[str] = ReplyCache(1000, 5)
    now_ms = 0
    newest: dict[Key, tuple[int, bytes]] = {}
    for number, later_ms in sent:
        now_ms += later_ms
        key, reply = Key("u", str(number)), f"{number}/{now_ms}".encode()
        repeats.remember(key, reply, now_ms)
        newest.pop(key, None)
        newest[key] = now_ms, reply
        for known, (at_ms, told) in list(newest.items())[-5:]:
            assert repeats.reply_to(known, now_ms) == (told if now_ms - at_ms < 1000 else None)
        assert len(repeats) <= 5

from hypothesis import given
from hypothesis import strategies as st

from serving.worker.reply_cache import Key, ReplyCache

ANN = Key("ann", "r1")


def test_a_repeated_request_gets_the_same_reply_until_the_window_is_over() -> None:
    reply_cache: ReplyCache[str] = ReplyCache(1000, 10)
    assert reply_cache.reply_to(ANN) is None
    reply_cache.begin(ANN)
    assert reply_cache.end(ANN, b"list") == []
    assert reply_cache.reply_to(Key("bob", "r1")) is None, "another user's request of the same id is another request"
    reply_cache.look(999)
    assert reply_cache.reply_to(ANN) == b"list"
    reply_cache.look(1000)
    assert reply_cache.reply_to(ANN) is None


def test_a_reply_of_another_worker_is_as_old_as_it_is() -> None:
    reply_cache: ReplyCache[str] = ReplyCache(1000, 10)
    reply_cache.look(5000)
    reply_cache.remember(ANN, b"list", age_ms=400)
    reply_cache.look(5599)
    assert reply_cache.reply_to(ANN) == b"list"
    reply_cache.look(5600)
    assert reply_cache.reply_to(ANN) is None


def test_who_repeats_a_request_that_is_being_answered_waits_for_the_same_reply() -> None:
    reply_cache: ReplyCache[str] = ReplyCache(1000, 10)
    assert not reply_cache.join(ANN, "early")
    reply_cache.begin(ANN)
    assert reply_cache.join(ANN, "second")
    assert reply_cache.join(ANN, "third")
    assert reply_cache.end(ANN, b"list") == ["second", "third"]
    assert not reply_cache.join(ANN, "late")


def test_an_answer_that_failed_is_not_repeated() -> None:
    reply_cache: ReplyCache[str] = ReplyCache(1000, 10)
    reply_cache.begin(ANN)
    reply_cache.join(ANN, "second")
    assert reply_cache.end(ANN, None) == ["second"]
    assert reply_cache.reply_to(ANN) is None


def test_without_a_window_nothing_is_kept() -> None:
    reply_cache: ReplyCache[str] = ReplyCache(0, 10)
    reply_cache.remember(ANN, b"list")
    assert len(reply_cache) == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 400)), max_size=80))
def test_no_more_is_kept_than_the_window_and_the_bound_allow(sent: list[tuple[int, int]]) -> None:
    reply_cache: ReplyCache[str] = ReplyCache(1000, 5)
    now_ms = 0
    newest: dict[Key, tuple[int, bytes]] = {}
    for number, later_ms in sent:
        now_ms += later_ms
        key, reply = Key("u", str(number)), f"{number}/{now_ms}".encode()
        reply_cache.look(now_ms)
        reply_cache.remember(key, reply)
        newest.pop(key, None)
        newest[key] = now_ms, reply
        for known, (at_ms, told) in list(newest.items())[-5:]:
            assert reply_cache.reply_to(known) == (told if now_ms - at_ms < 1000 else None)
        assert len(reply_cache) <= 5

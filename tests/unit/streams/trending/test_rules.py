"""Decayed counts: by hand, against a naive sum, and over a restart."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.platform.settings import Settings
from streams.kafka.intake import Raw
from streams.messages import Trending, WatchEvent, decode, encode
from streams.topics import WATCH_EVENTS, partition_of
from streams.trending.app import count, start
from streams.trending.rules import DecayedCounts

HALF_LIFE_S = 10.0
START_MS = 1_700_000_000_000


def counted(*watches: tuple[str, float], room: int = 100) -> DecayedCounts:
    """Counts of watches (item, seconds after the start) at offsets 0, 1, 2, ..."""
    counts = DecayedCounts((HALF_LIFE_S,), room)
    for offset, (item_id, at_s) in enumerate(watches):
        assert counts.add(item_id, START_MS + round(1000 * at_s), offset)
    return counts


def test_a_watch_weighs_half_after_each_half_life():
    counts = counted(("a", 0), ("a", 10), ("b", 20))
    assert dict(counts.top(5)) == {"b": 1.0, "a": 0.5 + 0.25}


def test_a_late_watch_weighs_what_its_own_time_says():
    counts = counted(("a", 20), ("b", 0))
    assert counts.top(5) == [("a", 1.0), ("b", 0.25)]
    assert counts.as_of_ms == START_MS + 20_000, "a late watch does not turn the time back"


def test_counts_stay_right_when_the_scale_is_moved():
    far = 501 * HALF_LIFE_S  # beyond what the scale goes without being moved
    counts = counted(("a", 0), ("b", far), ("a", far + 10), ("b", far + 10), ("c", far - 10))
    assert dict(counts.top(5)) == {"b": 1.5, "a": pytest.approx(1.0), "c": pytest.approx(0.25)}


def test_a_pause_of_years_is_no_overflow():
    counts = counted(("a", 0), ("b", 20_000 * HALF_LIFE_S))
    assert counts.top(5) == [("b", 1.0), ("a", 0.0)], "what was watched before is not forgotten"


def test_a_replayed_offset_counts_once():
    counts = counted(("a", 0), ("a", 0))
    assert not counts.add("a", START_MS, 1) and not counts.add("a", START_MS, 0)
    assert counts.top(5) == [("a", 2.0)]


def test_counts_go_on_from_what_was_published():
    watches = [("a", 0.0), ("b", 5.0), ("a", 9.0), ("c", 30.0), ("b", 31.0)]
    restored = DecayedCounts((HALF_LIFE_S,), 100)
    restored.restore(counted(*watches[:3]).message("global", 2, limit=10))
    for offset, (item_id, at_s) in enumerate(watches):  # read again from the beginning, as after a crash
        restored.add(item_id, START_MS + round(1000 * at_s), offset)
    whole = counted(*watches)
    assert restored.top(5) == [(item, pytest.approx(value)) for item, value in whole.top(5)]
    found, expected = restored.message("global", 2, limit=10), whole.message("global", 2, limit=10)
    assert found.slower == tuple(pytest.approx(counts) for counts in expected.slower)
    assert found.totals == pytest.approx(expected.totals)


def test_the_message_says_of_when_and_of_what_it_is():
    counts = DecayedCounts((HALF_LIFE_S, 20.0), room=10)
    for offset, (item_id, at_s) in enumerate([("a", 0), ("b", 20), ("c", 20)]):
        counts.add(item_id, START_MS + 1000 * at_s, offset)
    assert counts.message("global", 3, limit=2) == Trending(
        "global",
        3,
        START_MS + 20_000,
        HALF_LIFE_S,
        (("c", 1.0), ("b", 1.0)),
        2,
        slower_s=(20.0,),
        slower=((1.0, 1.0), (1.0, 1.0)),
        totals=(2.25, 2.5, 3.0),
    )


def test_a_log_that_ended_long_ago_has_the_order_of_its_end():
    """Years without a watch, then one: what was watched then is told apart, by its counts and not by its name."""
    half_lives_s = (HALF_LIFE_S, 1000.0, 100_000.0)
    counts = DecayedCounts(half_lives_s, room=100)
    watches = [("z", 0), ("y", 1), ("y", 2), ("a", 3), ("b", 90_000), ("b", 90_001)]
    for offset, (item_id, at_s) in enumerate([*watches, ("late", 300_000)]):
        counts.add(item_id, START_MS + 1000 * at_s, offset)
    assert [item_id for item_id, _ in counts.top(10)] == ["b", "y", "late", "a", "z"]
    restored = DecayedCounts(half_lives_s, room=100)
    restored.restore(decode(Trending, encode(counts.message("global", 0, 10)), max_bytes=10_000))
    assert restored.top(10) == counts.top(10)


def test_counts_of_before_there_were_several_half_lives_are_taken_up():
    counts = DecayedCounts((HALF_LIFE_S, 20.0), room=10)
    counts.restore(Trending("global", 0, START_MS, HALF_LIFE_S, (("a", 3.0), ("b", 1.0)), 7))
    counts.add("b", START_MS + 20_000, 8)
    message = counts.message("global", 0, 10)
    assert dict(message.items) == {"a": 0.75, "b": 1.25}
    assert message.slower == ((1.5, 3.0), (1.5, 2.0)) and message.totals == (2.0, 3.0, 5.0)


def test_other_half_lives_than_those_that_were_published_go_on_from_the_next_slower_ones():
    counts = DecayedCounts((5.0, 30.0), room=10)
    slower = ((2.0, 3.0, 4.0),)
    counts.restore(Trending("global", 0, START_MS, 10.0, (("a", 1.0),), 7, (20.0, 40.0), slower, (1.0, 2.0, 3.0, 9.0)))
    message = counts.message("global", 0, 10)
    assert message.items == (("a", 1.0),) and message.slower == ((3.0, 4.0),)
    assert message.totals == (1.0, 3.0, 9.0)


def level(*watches: tuple[str, float], room: int = 100) -> float:
    """Beside that of one watch at the start."""
    return counted(*watches, room=room).level - counted(("a", 0)).level


def test_levels_compare_counts_of_different_times():
    four = [("a", 0.0), ("a", 0.0), ("b", 0.0), ("c", 0.0)]
    assert level(*four) == pytest.approx(2, abs=1e-6)
    assert level(("a", 2 * HALF_LIFE_S)) == pytest.approx(2, abs=1e-6)
    assert level(("a", 2 * HALF_LIFE_S), ("b", -501 * HALF_LIFE_S)) == pytest.approx(2, abs=1e-6)
    assert DecayedCounts((HALF_LIFE_S,), 10).level == -math.inf


def test_a_level_counts_items_that_have_made_way_and_stays_when_the_scale_is_moved():
    eight = [(f"i{n}", 0.0) for n in range(8)]
    assert level(*eight, room=2) == pytest.approx(3, abs=1e-6)
    assert level(*eight, ("a", 501 * HALF_LIFE_S)) == pytest.approx(501, abs=1e-6)


def test_the_least_watched_make_way_when_there_is_no_room():
    watches = [("a", 0.0), ("a", 0.0), ("b", 0.0), ("b", 0.0), ("c", 0.0), ("d", 0.0), ("e", 0.0)]
    assert dict(counted(*watches, room=2).top(5)) == {"a": 2.0, "b": 2.0}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 20_000_000)), min_size=1, max_size=40))
def test_counts_are_the_naive_sum(watches):
    """Whatever the order of arrival and however long the pauses: the sum of 2^-(age / half-life)."""
    counts = DecayedCounts((HALF_LIFE_S,), room=100)
    for offset, (item_id, after_ms) in enumerate(watches):
        counts.add(item_id, START_MS + after_ms, offset)
    now = max(after_ms for _, after_ms in watches)
    naive = dict.fromkeys((item_id for item_id, _ in watches), 0.0)
    for item_id, after_ms in watches:
        naive[item_id] += 2.0 ** ((after_ms - now) / (1000 * HALF_LIFE_S))
    message = counts.message("global", 0, 10)
    assert dict(message.items) == {
        item_id: pytest.approx(value, rel=1e-9, abs=1e-100) for item_id, value in naive.items()
    }
    of_all_time = {item_id: slower[-1] for (item_id, _), slower in zip(message.items, message.slower, strict=True)}
    assert of_all_time == Counter(item_id for item_id, _ in watches)


def test_only_completed_watches_on_their_own_partition_are_counted():
    partitions = Settings().kafka.partitions
    home = partition_of("u", partitions)
    watches = [("long", 20.0), ("short", 17.0), ("whole", 5.0), ("nothing", 0.0)]
    batch = [
        Raw(WATCH_EVENTS, home, offset, 0, b"u", encode(WatchEvent(f"e{offset}", "u", item, 1000, watched, 60.0)), ())
        for offset, (item, watched) in enumerate(watches)
    ]
    batch[2] = batch[2]._replace(value=encode(WatchEvent("e2", "u", "whole", 1000, 5.0, 5.0)))
    astray = batch[0]._replace(partition=(home + 1) % partitions)
    unreadable = batch[0]._replace(value=b"{", offset=9)
    counts = {number: start(number, [], Settings()) for number in range(partitions)}
    assert count([*batch, astray, unreadable], counts, None, Settings(), now_ms=START_MS) is None  # type: ignore[arg-type]
    published = counts[home].changes(home)["global"]
    assert published is not None and dict(published.items) == {"long": 1.0, "whole": 1.0}
    assert counts[astray.partition].changes(astray.partition) == {}


def test_half_lives_that_are_set_are_kept_in_order_and_none_that_is_faster_than_the_fastest():
    trending = {"half_life_s": 100_000.0, "slower_s": (864_000.0, 50_000.0, 200_000.0, 200_000.0)}
    counts = start(0, [], Settings.model_validate({"trending": trending}))
    counts.add("a", None, START_MS, 0)
    message = counts.changes(0)["global"]
    assert message is not None
    assert (message.half_life_s, message.slower_s) == (100_000.0, (200_000.0, 864_000.0))
    assert message.slower == ((1.0, 1.0, 1.0),) and message.totals == (1.0,) * 4

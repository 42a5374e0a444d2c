"""What was watched beyond the history: found while it is young and among the newest, and nothing else is."""

from zlib import crc32

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.history.watched_filter import DAY_MS, codes_of, remember, watched_mask
from streams.messages import UserHistory, WatchEvent, decode, encode

TODAY = 20_000
NOW_MS = TODAY * DAY_MS + 5


def watched(item_id: str, day: int) -> WatchEvent:
    return WatchEvent("e", "u", item_id, day * DAY_MS + 1000, 30.0)


def seen_of(*watches: tuple[str, int], keep: int = 10, days: int = 90, newest: int = TODAY) -> bytes:
    """The items of watches (id, day) that leave the history one after the other."""
    seen = b""
    for item_id, day in watches:
        seen = remember(seen, [watched(item_id, day)], newest_ms=newest * DAY_MS, keep=keep, days=days)
    return seen


def found(seen: bytes, *item_ids: str, days: int = 90, today: int = TODAY) -> set[str]:
    mask = watched_mask(seen, codes_of(item_ids), now_ms=today * DAY_MS + 5, days=days)
    return {item_id for item_id, is_seen in zip(item_ids, mask, strict=True) if is_seen}


def test_items_that_left_the_history_are_found_and_others_are_not():
    seen = seen_of(("a", TODAY), ("b", TODAY - 3), ("c", TODAY - 1))
    assert found(seen, "a", "b", "x", "c", "y") == {"a", "b", "c"}
    assert found(b"", "a") == set()
    assert watched_mask(seen, codes_of([]), now_ms=NOW_MS, days=90).shape == (0,)


def test_the_newest_items_stay_and_each_takes_six_bytes():
    seen = seen_of(("a", TODAY - 2), ("b", TODAY - 1), ("c", TODAY - 3), ("d", TODAY - 1), keep=2)
    assert found(seen, *"abcd") == {"b", "d"} and len(seen) == 12
    assert seen_of(("a", TODAY), keep=0) == b""


def test_of_one_day_the_first_to_be_remembered_makes_way():
    assert found(seen_of(*((item, TODAY) for item in "abcd"), keep=2), *"abcd") == {"c", "d"}


def test_a_watch_as_old_as_the_set_may_be_is_counted_and_an_older_one_is_not():
    seen = seen_of(("a", TODAY - 90), ("b", TODAY - 89))
    assert found(seen, "a", "b") == {"a", "b"}
    assert found(seen, "a", "b", today=TODAY + 1) == {"b"}, "time goes on for a user who watches nothing"
    assert found(seen, "a", "b", days=10) == set()


def test_what_is_too_old_is_dropped_when_something_is_remembered():
    seen = seen_of(("a", TODAY - 90), ("b", TODAY - 89))
    newer = remember(seen, [watched("c", TODAY)], newest_ms=(TODAY + 1) * DAY_MS, keep=10, days=90)
    assert len(newer) == 12 and found(newer, *"abc", days=10_000) == {"b", "c"}


def test_an_item_that_is_watched_again_is_there_once_with_its_newest_day():
    seen = seen_of(("a", TODAY - 50), ("b", TODAY - 40), ("a", TODAY - 1), ("a", TODAY - 70))
    assert len(seen) == 12
    assert found(seen, "a", "b", days=10) == {"a"}


def test_the_bytes_of_a_hash_astride_two_entries_are_not_an_entry():
    code = crc32(b"a").to_bytes(4, "little")
    day = int.from_bytes(code[1:3], "little")
    others = b"xyz" + code + b"uvw" + day.to_bytes(2, "little")  # two entries of that day
    seen = remember(others, [watched("a", day)], newest_ms=day * DAY_MS, keep=10, days=1)
    assert len(others) == 12 and len(seen) == 18
    assert found(others, "a", today=day) == set() and found(seen, "a", today=day) == {"a"}


def test_ids_that_look_alike_share_a_hash_no_more_often_than_chance():
    codes = codes_of([f"video-{number:07}" for number in range(200_000)])
    assert len(codes) - len(np.unique(codes)) <= 20, "4.7 pairs are to be expected of 200,000 random numbers"


def test_a_hash_is_the_same_in_every_process():
    assert codes_of(["a", "ü"]).tolist() == [0xE8B7BE43, crc32("ü".encode())]


def test_a_history_without_the_field_reads_as_ever_and_with_it_goes_through_json():
    assert decode(UserHistory, b'{"user_id":"u"}').seen == b""
    assert encode(UserHistory("u"), compact=False) == b'{"user_id":"u"}'
    seen = seen_of(("a", TODAY), ("b", TODAY))
    assert decode(UserHistory, encode(UserHistory("u", seen=seen))).seen == seen


watches = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(TODAY - 12, TODAY)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(watches, st.integers(0, 9), st.integers(1, 15))
def test_what_is_found_is_what_a_list_of_all_watches_says(drawn, keep, days):
    """The newest `keep` items by the day of their newest watch, of one day the last ones to come, none too old."""
    newest: list[tuple[int, str]] = []  # oldest day first
    for item_id, day in drawn:
        known = {name: of for of, name in newest}
        if known.get(item_id, -1) < day:
            newest = sorted([entry for entry in newest if entry[1] != item_id] + [(day, item_id)], key=lambda e: e[0])
        newest = [entry for entry in newest if entry[0] >= TODAY - days][-keep:] if keep else []
    seen = seen_of(*drawn, keep=keep, days=days)
    assert found(seen, *"abcdefgh", days=days) == {item_id for _, item_id in newest}
    assert len(seen) == 6 * len(newest)
    again = remember(seen, [watched(*entry) for entry in drawn[-1:]], newest_ms=NOW_MS, keep=keep, days=days)
    assert again == seen, "to remember the last one again changes nothing"

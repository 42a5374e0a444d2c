"""A log taken into histories: as if its rows had come one by one, however often and in whatever order."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from streams.history.loaded import apply_loaded
from streams.history.log_rows import is_row, row_id
from streams.history.rules import Applied, Outcome, apply_watch
from streams.history.watched_filter import DAY_MS, codes_of, pack, remember, watched_mask
from streams.messages import Context, LoadedHistory, Search, Source, UserHistory, Watch, WatchEvent

KEEP, SEEN, DAYS = 4, 6, 90
ITEMS = [f"i{number}" for number in range(6)]


@dataclass(frozen=True)
class Row:
    day: int
    item: int
    seconds: float

    @property
    def at(self) -> int:
        return self.day * DAY_MS

    def event(self, event_id: str = "") -> WatchEvent:
        item = ITEMS[self.item]
        return WatchEvent(event_id or row_id("u", item, self.at), "u", item, self.at, self.seconds, 60.0)

    def watch(self) -> Watch:
        event = self.event()
        return Watch(event.item_id, self.at, self.seconds, 60.0, self.seconds >= 18, event.event_id, -1)


def rows_of(*days: int) -> list[Row]:
    return [Row(day, day % len(ITEMS), 30.0) for day in days]


def send(history: UserHistory, event: WatchEvent, offset: int) -> Applied:
    return apply_watch(history, event, Source(0, offset, 0), keep=KEEP, completed_s=18, watched=SEEN, watched_days=DAYS)


def sent(rows: list[Row], history: UserHistory = UserHistory("u"), name: str = "") -> tuple[UserHistory, int]:
    """The history after these rows came one by one, and how many examples they made."""
    examples = 0
    for row in rows:
        applied = send(history, row.event(f"{name}{row.at}" if name else ""), history.watch_offset + 1)
        history, examples = applied.history, examples + (applied.example is not None)
    return history, examples


def loaded(rows: list[Row]) -> LoadedHistory:
    """What `nextwatch load` tells of a user with these rows."""
    history, _ = sent(sorted(rows, key=lambda row: row.at))
    watches = tuple(replace(watch, offset=-1) for watch in history.watches)
    return LoadedHistory("u", max(row.at for row in rows), watches, seen=history.seen)


def load(history: UserHistory, message: LoadedHistory) -> Applied:
    return apply_loaded(history, message, keep=KEEP, watched=SEEN, watched_days=DAYS, searches=2)


def content(history: UserHistory) -> tuple[object, set[str]]:
    """What matters of a history: its watches, and the items that are remembered beyond."""
    mask = watched_mask(history.seen, codes_of(ITEMS), now_ms=0, days=DAYS)
    return [(watch.item_id, watch.event_ms) for watch in history.watches], {ITEMS[at] for at in np.flatnonzero(mask)}


def test_a_log_fills_an_empty_history_and_leaves_the_place_in_the_stream():
    applied = load(UserHistory("u"), loaded(rows_of(1, 2, 3, 4, 5, 6)))
    assert applied.outcome is Outcome.KEPT and applied.example is None
    assert [watch.event_ms // DAY_MS for watch in applied.history.watches] == [3, 4, 5, 6]
    assert content(applied.history)[1] == {"i1", "i2"} and applied.history.watch_offset == -1


def test_the_same_rows_that_come_as_watches_after_it_make_no_example():
    rows = rows_of(1, 2, 3, 4, 5, 6)
    history = load(UserHistory("u"), loaded(rows)).history
    again, examples = sent(rows, history)
    assert examples == 0 and content(again) == content(history)
    live, examples = sent(rows, history, name="player-")
    assert examples == 0 and content(live) == content(history), "under whichever event id they come"


def test_a_live_watch_that_the_log_holds_too_is_there_once():
    live, _ = sent(rows_of(5, 6), name="player-")
    applied = load(live, loaded(rows_of(3, 4, 5, 6)))
    assert [watch.event_ms // DAY_MS for watch in applied.history.watches] == [3, 4, 5, 6]
    assert [is_row(watch.event_id) for watch in applied.history.watches] == [True, True, False, False]
    assert applied.history.watch_offset == 1, "what the stream has shown is not forgotten"


def test_two_live_watches_of_one_item_and_time_are_two_unless_their_event_id_is_one():
    event = rows_of(1)[0].event("one")
    history = send(UserHistory("u"), event, 0).history
    assert send(history, event, 1).outcome is Outcome.DUPLICATE
    assert send(history, replace(event, event_id="other"), 1).outcome is Outcome.KEPT
    assert send(history, replace(event, event_id=row_id("u", event.item_id, event.event_ms)), 1).example is None


def test_a_late_watch_that_was_not_in_the_log_makes_its_example():
    history = load(UserHistory("u"), loaded(rows_of(1, 3))).history
    applied = send(history, Row(2, 5, 30.0).event("late"), 0)
    assert applied.example is not None and not applied.example.is_row
    assert [watch.event_ms // DAY_MS for watch in applied.example.watches] == [1]


def test_a_row_that_is_sent_as_a_watch_says_so_in_its_example():
    example = send(UserHistory("u"), rows_of(1)[0].event(), 0).example
    assert example is not None and example.is_row


def test_nothing_from_before_an_erasure_comes_back():
    erased = UserHistory("u", since_ms=4 * DAY_MS)
    message = replace(
        loaded(rows_of(1, 2, 3, 4, 5, 6, 7, 8, 9)),
        searches=(Search("old", DAY_MS, "a", -1), Search("new", 9 * DAY_MS, "b", -1)),
    )
    history = load(erased, message).history
    assert content(history) == ([(f"i{day % 6}", day * DAY_MS) for day in (6, 7, 8, 9)], {"i5"})
    assert [search.query for search in history.searches] == ["new"] and history.since_ms == 4 * DAY_MS
    later = load(UserHistory("u", since_ms=7 * DAY_MS), message).history
    assert content(later) == ([("i2", 8 * DAY_MS), ("i3", 9 * DAY_MS)], set())


def test_searches_and_context_come_too_and_the_newest_stay():
    searches = tuple(Search(f"q{at}", at, f"s{at}", -1) for at in (1, 2))
    message = replace(loaded(rows_of(1)), searches=searches, context=Context(region="de"))
    known = UserHistory("u", searches=(Search("live", 3, "x", 7),), context=Context(region="fr"))
    history = load(known, message).history
    assert [search.query for search in history.searches] == ["q2", "live"] and history.context == Context(region="fr")
    assert load(UserHistory("u"), message).history.context == Context(region="de")


any_row = st.builds(
    lambda day, item: Row(day, item, 30.0 if (day + item) % 3 else 2.0), st.integers(1, 12), st.integers(0, 5)
)
any_rows = st.lists(any_row, min_size=1, max_size=25, unique=True)


@settings(max_examples=300, deadline=None)
@given(any_rows, st.lists(st.booleans(), min_size=25, max_size=25))
def test_loaded_in_the_midst_of_its_own_rows_a_history_is_as_if_they_had_come_alone(rows, first):
    """Some of the rows come before it, the rest behind: whichever, the newest stay, each once."""
    rows = sorted(rows, key=lambda row: row.at)
    before = [row for row, is_first in zip(rows, first, strict=False) if is_first]
    alone, _ = sent(rows)
    history = load(sent(before)[0], loaded(rows)).history
    assert sorted(content(history)[0]) == sorted(content(alone)[0]) or _is_tied(rows)
    after, examples = sent([row for row in rows if row not in before], history)
    assert examples == 0 and content(after)[0] == content(history)[0]


def _is_tied(rows: list[Row]) -> bool:
    return len({row.day for row in rows}) < len(rows)


@settings(max_examples=300, deadline=None)
@given(any_rows, any_rows)
def test_the_same_log_again_changes_nothing(rows, live):
    history, _ = sent(sorted(live, key=lambda row: row.at), name="player-")
    once = load(history, loaded(rows)).history
    twice = load(once, loaded(rows))
    assert twice.history == once and twice.outcome is Outcome.DUPLICATE


@pytest.mark.parametrize("keep", [0, 3, 99])
@pytest.mark.parametrize("days", [2, 99])
def test_what_is_packed_is_what_would_be_remembered(keep: int, days: int):
    watches = [row.watch() for row in rows_of(1, 1, 2, 3, 5, 7, 8, 8)]
    codes = codes_of([watch.item_id for watch in watches])
    packed = pack(codes, np.array([w.event_ms for w in watches]), newest_ms=9 * DAY_MS, keep=keep, days=days)
    assert packed == remember(b"", watches, newest_ms=9 * DAY_MS, keep=keep, days=days)

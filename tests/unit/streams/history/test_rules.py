"""The pure core of histories: order, duplicates, replays, and what an example may know."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.history.rules import Outcome, apply_impression, apply_search, apply_watch, is_completed
from streams.history.watched_filter import DAY_MS, codes_of, watched_mask
from streams.messages import Context, Impression, SearchEvent, Shown, ShownList, Source, UserHistory, WatchEvent, encode

KEEP = 5


def watch(event_ms: int, event_id: str | None = None, item: str = "i", watch_s: float = 30.0) -> WatchEvent:
    return WatchEvent(event_id or f"e{event_ms}", "u", item, event_ms, watch_s, 60.0)


def fold(events: list[WatchEvent], start: UserHistory | None = None, keep: int = KEEP, seen: int = 3):
    """Histories and examples of events at offsets 0, 1, 2, ..."""
    history, examples = start or UserHistory("u"), []
    for offset, event in enumerate(events):
        applied = apply_watch(
            history, event, Source(0, offset, 0), keep=keep, completed_s=18, watched=seen, watched_days=90
        )
        history = applied.history
        if applied.example:
            examples.append(applied.example)
    return history, examples


def times(history: UserHistory) -> list[int]:
    return [entry.event_ms for entry in history.watches]


def test_completed_means_watched_to_the_end_or_long_enough():
    assert is_completed(18, 600, 18) and not is_completed(17.9, 600, 18)
    assert is_completed(7, 7, 18) and not is_completed(6.9, 7, 18)
    assert is_completed(18, None, 18) and not is_completed(17, None, 18)
    assert not is_completed(5, 0, 18) and is_completed(20, 0, 18), "a duration of 0 is an unknown one"


def test_a_late_watch_is_sorted_in():
    history, _ = fold([watch(10), watch(30), watch(20)])
    assert times(history) == [10, 20, 30]


def test_the_newest_watches_by_event_time_are_kept():
    history, _ = fold([watch(t) for t in (10, 20, 70, 30, 40, 60, 50)])
    assert times(history) == [30, 40, 50, 60, 70]


def test_an_example_knows_only_what_was_before_its_watch_even_when_it_comes_late():
    _, examples = fold([watch(10, item="a"), watch(30, item="c"), watch(20, item="b"), watch(20, "again", item="d")])
    assert [(x.item_id, [w.item_id for w in x.watches]) for x in examples] == [
        ("a", []),
        ("c", ["a"]),
        ("b", ["a"]),
        ("d", ["a"]),  # not b: it was watched at the same time
    ]


def test_only_a_completed_watch_makes_an_example():
    history, examples = fold([watch(10, watch_s=3), watch(20)])
    assert [x.event_ms for x in examples] == [20]
    assert [entry.completed for entry in history.watches] == [False, True]


def test_a_duplicate_event_id_counts_once():
    history, examples = fold([watch(10, "x"), watch(20, "y"), watch(10, "x")])
    assert times(history) == [10, 20] and len(examples) == 2
    assert history.watch_offset == 2, "the offset of a passed-over event is remembered, so a replay knows it"


def test_a_replayed_offset_changes_nothing():
    history, _ = fold([watch(10), watch(20)])
    applied = apply_watch(history, watch(99), Source(0, 1, 0), keep=KEEP, completed_s=18)
    assert applied.outcome is Outcome.REPLAYED and applied.history is history and applied.example is None


def test_a_watch_older_than_a_full_history_is_passed_over_and_said_so():
    history, _ = fold([watch(t) for t in (10, 20, 30, 40, 50)])
    applied = apply_watch(history, watch(5), Source(0, 9, 0), keep=KEEP, completed_s=18)
    assert applied.outcome is Outcome.TOO_OLD and times(applied.history) == times(history)


def seen_of(history: UserHistory, *item_ids: str, today: int = 0) -> list[str]:
    mask = watched_mask(history.seen, codes_of(item_ids), now_ms=today * DAY_MS, days=90)
    return [item_ids[at] for at in np.flatnonzero(mask)]


def test_the_items_of_watches_that_are_let_go_or_too_old_are_remembered():
    history, _ = fold([watch(t, item=f"i{t}") for t in (10, 20, 30, 40, 50, 60, 70, 5)], keep=5)
    assert times(history) == [30, 40, 50, 60, 70]
    assert seen_of(history, *(f"i{t}" for t in (5, 10, 20, 30, 70))) == ["i5", "i10", "i20"]
    again, _ = fold([watch(10, item="i10")], UserHistory("u", history.watches, seen=history.seen))
    assert again.seen == history.seen, "a duplicate of a watch that was let go changes nothing"


def test_a_skipped_watch_that_makes_way_for_completed_ones_is_remembered():
    history, _ = fold([watch(t, item=f"i{t}", watch_s=1 if t < 20 else 30) for t in range(10, 60, 10)], keep=2)
    assert times(history) == [40, 50] and seen_of(history, "i10", "i20", "i30") == ["i10", "i20", "i30"]


def test_what_is_remembered_is_as_old_as_the_newest_watch_lets_it_be():
    history, _ = fold([watch(t * DAY_MS, item=f"i{t}") for t in (1, 2, 91, 92, 93)], keep=2, seen=9)
    assert seen_of(history, "i1", "i2", "i91", today=91) == ["i91"], "day 3 is 90 days before the newest watch"


def test_searches_are_kept_beside_watches_and_reach_the_example():
    history, _ = fold([watch(10)])
    history = apply_search(history, SearchEvent("s1", "u", "red cars", 15), Source(0, 0, 0), keep=2).history
    history = apply_search(history, SearchEvent("s0", "u", "cats", 12), Source(0, 1, 0), keep=2).history
    assert [search.query for search in history.searches] == ["cats", "red cars"]
    again = apply_search(history, SearchEvent("s1", "u", "red cars", 15), Source(0, 2, 0), keep=2)
    assert again.outcome is Outcome.DUPLICATE and len(again.history.searches) == 2
    example = apply_watch(again.history, watch(14), Source(0, 5, 0), keep=KEEP, completed_s=18).example
    assert example is not None and [search.query for search in example.searches] == ["cats"]


def test_a_skipper_keeps_the_newest_completed_watches_too():
    history, _ = fold([watch(t, watch_s=30 if t % 4 == 0 else 1) for t in range(40)])
    assert times(history) == [20, 24, 28, 32, 35, 36, 37, 38, 39]
    assert [entry.event_ms for entry in history.watches if entry.completed] == [20, 24, 28, 32, 36]


def test_a_late_completed_watch_is_kept_where_a_skipped_one_is_too_old():
    history, _ = fold([watch(t, watch_s=1) for t in (10, 20, 30, 40, 50)])
    for watch_s, outcome in ((1, Outcome.TOO_OLD), (30, Outcome.KEPT)):
        applied = apply_watch(history, watch(5, watch_s=watch_s), Source(0, 9, 0), keep=KEEP, completed_s=18)
        assert applied.outcome is outcome and (applied.example is not None) == (outcome is Outcome.KEPT)
    assert times(applied.history) == [5, 10, 20, 30, 40, 50]


def test_a_duplicate_at_the_time_of_the_oldest_watch_does_not_come_back():
    """The window begins at the time of a watch that was let go: its duplicate would fit in behind the first."""
    history, examples = fold([watch(10, "a"), watch(10, "b"), *(watch(t) for t in (20, 30, 40, 50)), watch(10, "a")])
    assert [entry.event_id for entry in history.watches] == ["b", "e20", "e30", "e40", "e50"]
    assert len(examples) == 6


def test_a_search_at_the_time_of_the_oldest_in_a_full_history_is_too_old():
    history = apply_search(UserHistory("u"), SearchEvent("s1", "u", "q", 7), Source(0, 0, 0), keep=1).history
    applied = apply_search(history, SearchEvent("s2", "u", "q", 7), Source(0, 1, 0), keep=1)
    assert applied.outcome is Outcome.TOO_OLD and applied.history.searches == history.searches
    assert applied.history.search_offset == 1


def impression(at_ms: int, items: int, request_id: str | None = None) -> Impression:
    shown = tuple(Shown(f"i{number}", number, "retrieval") for number in range(1, items + 1))
    return Impression(request_id or f"r{at_ms}", "u", at_ms, "server", "v1", shown, context=Context(region="de"))


def fold_shown(impressions: list[Impression], keep: int) -> tuple[UserHistory, list[Outcome]]:
    history, outcomes = UserHistory("u"), []
    for offset, each in enumerate(impressions):
        applied = apply_impression(history, each, Source(0, offset, 0), keep=keep)
        history = applied.history
        outcomes.append(applied.outcome)
    return history, outcomes


def shown_lists(history: UserHistory) -> list[tuple[int, int]]:
    return [(shown.at_ms, len(shown.item_ids)) for shown in history.impressions]


def test_the_newest_lists_are_kept_oldest_first_and_the_oldest_is_cut_to_what_fits():
    history, _ = fold_shown([impression(10, 4), impression(30, 3), impression(20, 4)], keep=9)
    assert shown_lists(history) == [(10, 2), (20, 4), (30, 3)]
    assert history.impressions[0] == ShownList("r10", 10, ("i1", "i2")), "the top of the list is what stays"
    assert shown_lists(fold_shown([impression(10, 4), impression(20, 99)], keep=9)[0]) == [(20, 9)]


def test_a_list_that_was_shown_twice_counts_once_and_an_older_one_than_all_kept_is_too_old():
    kept, duplicate, too_old = Outcome.KEPT, Outcome.DUPLICATE, Outcome.TOO_OLD
    lists = [impression(10, 2, "a"), impression(10, 2, "a"), impression(20, 5, "b"), impression(10, 2, "a")]
    history, outcomes = fold_shown(lists, keep=5)
    assert outcomes == [kept, duplicate, kept, too_old] and shown_lists(history) == [(20, 5)]
    assert history.impression_offset == 3, "the offset of a passed-over impression is remembered"
    replayed = apply_impression(history, impression(99, 1), Source(0, 3, 0), keep=5)
    assert replayed.outcome is Outcome.REPLAYED and replayed.history is history


def test_an_impression_without_items_leaves_nothing_in_the_history():
    assert shown_lists(fold_shown([impression(t, 0) for t in range(9)], keep=5)[0]) == []


def test_lists_stay_when_watches_and_searches_come_and_their_context_is_not_the_viewers():
    history, _ = fold_shown([impression(10, 2)], keep=5)
    history = apply_watch(history, watch(20, "w"), Source(0, 0, 0), keep=KEEP, completed_s=18).history
    history = apply_watch(history, watch(20, "w"), Source(0, 1, 0), keep=KEEP, completed_s=18).history
    history = apply_search(history, SearchEvent("s", "u", "q", 30), Source(0, 0, 0), keep=2).history
    history = apply_impression(history, impression(40, 1), Source(0, 1, 0), keep=5).history
    assert shown_lists(history) == [(10, 2), (40, 1)] and history.context is None
    assert (history.watch_offset, history.search_offset, history.impression_offset) == (1, 0, 1)
    assert times(history) == [20] and len(history.searches) == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=30), st.integers(1, 8))
def test_shown_items_are_the_newest_of_all_lists_and_no_list_counts_twice(drawn, keep):
    """Late lists, equal times, duplicates at any distance: the model remembers all of them, the history does not."""
    lists = [impression(at_ms, 1 + at_ms % 4, f"{at_ms}/{name}") for at_ms, name in drawn]
    history, _ = fold_shown(lists, keep)
    first = {each.request_id: each for each in reversed(lists)}
    ordered = sorted(first.values(), key=lambda each: (each.at_ms, lists.index(each)))
    expected: list[str] = []
    for each in reversed(ordered):
        expected += [f"{each.request_id} {item.item_id}" for item in each.items][: keep - len(expected)]
    kept = [f"{shown.request_id} {item}" for shown in reversed(history.impressions) for item in shown.item_ids]
    assert len(kept) == min(keep, sum(len(each.items) for each in ordered))
    assert len({shown.request_id for shown in history.impressions}) == len(history.impressions)
    if len({each.at_ms for each in ordered}) == len(ordered):
        assert kept == expected, "without equal times it does not matter in which order they came"


arrivals = st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 2)), max_size=40)


def simple_history(events: list[WatchEvent], keep: int) -> tuple[list[str], list[str]]:
    """The event ids that stay, and those that make an example, from everything that ever came."""
    seen: set[str] = set()
    kept: list[WatchEvent] = []  # all that were ever kept
    examples = []
    for event in events:
        long = event.watch_s >= 18
        later = [other for other in kept if other.event_ms >= event.event_ms]
        many = sum(other.watch_s >= 18 for other in later)
        if event.event_id in seen or (len(later) >= keep and not (long and many < keep)):
            continue
        seen.add(event.event_id)
        kept.append(event)
        examples += [event.event_id] if long else []
    ordered = sorted(kept, key=lambda event: event.event_ms)  # stable
    stay = {event.event_id for event in ordered[-keep:]}
    stay |= {event.event_id for event in [event for event in ordered if event.watch_s >= 18][-keep:]}
    return [event.event_id for event in ordered if event.event_id in stay], examples


@settings(max_examples=400, deadline=None)
@given(arrivals, st.integers(1, 6))
def test_what_stays_is_the_newest_of_all_and_the_newest_completed_and_each_counts_once(drawn, keep):
    """Late watches, equal times, duplicates at any distance: the model remembers all of them, the history does not."""
    events = [watch(t, f"{t}-{long}-{n}", watch_s=30 if long else 1) for t, long, n in drawn]
    history, examples = fold(events, keep=keep)
    stay, made = simple_history(events, keep)
    assert [entry.event_id for entry in history.watches] == stay
    assert [example.offset for example in examples] == sorted({example.offset for example in examples})
    assert [events[example.offset].event_id for example in examples] == made
    assert len(made) == len(set(made)), "no watch makes two examples"


@settings(max_examples=200, deadline=None)
@given(arrivals, st.integers(1, 6))
def test_whatever_was_watched_is_in_the_history_or_remembered(drawn, keep):
    events = [watch(t, f"{t}-{long}-{n}", f"i{number}", 30 if long else 1) for number, (t, long, n) in enumerate(drawn)]
    history, _ = fold(events, keep=keep, seen=100)
    kept = {entry.event_id for entry in history.watches}
    first_of = {event.event_id: event.item_id for event in reversed(events)}
    gone = [item_id for event_id, item_id in first_of.items() if event_id not in kept]
    assert sorted(seen_of(history, *gone)) == sorted(gone)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=25), st.randoms())
def test_arrival_order_does_not_change_the_history(event_times, random):
    """Whatever the order of arrival, the newest distinct events are there, sorted by time."""
    events = [watch(t) for t in event_times]  # equal times are duplicates: the event id is the time
    shuffled = list(events)
    random.shuffle(shuffled)
    history, _ = fold(shuffled)
    assert times(history) == sorted(set(event_times))[-KEEP:]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=25), st.data())
def test_a_crash_anywhere_replays_to_the_same_bytes(drawn, data):
    """State up to a crash survives (the changelog), then events are read again from any earlier offset."""
    events = [watch(t, f"e{n}", watch_s=30 if long else 1) for n, (t, long) in enumerate(drawn)]
    crash = data.draw(st.integers(0, len(events)))
    back_to = data.draw(st.integers(0, crash))
    history, examples = fold(events[:crash])
    for offset, event in enumerate(events[back_to:], start=back_to):
        applied = apply_watch(
            history, event, Source(0, offset, 0), keep=KEEP, completed_s=18, watched=3, watched_days=90
        )
        history = applied.history
        examples += [applied.example] if applied.example else []
    smooth, smooth_examples = fold(events)
    assert encode(history) == encode(smooth)
    assert [encode(x) for x in examples] == [encode(x) for x in smooth_examples]

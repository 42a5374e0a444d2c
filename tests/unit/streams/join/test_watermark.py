"""How far event time is said to have come; and who is due by it."""

from hypothesis import given
from hypothesis import strategies as st

from streams.join.due_queue import DueQueue
from streams.join.watermark import IDLE_MS, STUCK_MS, Watermark

NOW_MS = 1_000_000


def seen(shown_ms: int, watched_ms: int) -> Watermark:
    watermark = Watermark(("shown", "watched"), NOW_MS)
    watermark.observe("shown", shown_ms, NOW_MS)
    watermark.observe("watched", watched_ms, NOW_MS)
    return watermark


def test_the_topic_that_is_less_far_holds_it_back():
    watermark = seen(5000, 3000)
    assert watermark.advance((), NOW_MS) == 3000
    watermark.observe("watched", 2000, NOW_MS)  # a late one does not turn it back
    assert watermark.advance(("watched",), NOW_MS) == 3000
    watermark.observe("watched", 9000, NOW_MS)
    assert watermark.advance((), NOW_MS) == 5000


def test_a_topic_that_was_not_read_yet_holds_it_at_the_beginning():
    watermark = Watermark(("shown", "watched"), NOW_MS)
    watermark.observe("shown", 5000, NOW_MS)
    assert watermark.advance(("watched",), NOW_MS + IDLE_MS) == 0


def test_a_silent_topic_holds_nobody_back_once_it_is_read_to_its_end():
    watermark = seen(5000, 3000)
    later_ms = NOW_MS + IDLE_MS
    watermark.observe("shown", 6000, later_ms)
    assert watermark.advance(("watched",), later_ms) == 3000, "there is more of it to come"
    assert watermark.advance((), later_ms) == 6000


def test_a_topic_that_gives_nothing_for_long_holds_nobody_back_whatever_its_lag():
    watermark = seen(5000, 3000)
    later_ms = NOW_MS + STUCK_MS
    watermark.observe("shown", 6000, later_ms - 1)
    assert watermark.advance(("watched",), later_ms - 1) == 3000
    assert watermark.advance(("watched",), later_ms) == 6000


def test_when_all_is_silent_time_goes_on_as_the_clock_does():
    watermark = seen(5000, 3000)
    assert watermark.advance((), NOW_MS + IDLE_MS - 1) == 3000
    assert watermark.advance((), NOW_MS + IDLE_MS) == 5000 + IDLE_MS
    assert watermark.advance((), NOW_MS + 9000) == 14_000


def test_an_old_event_does_not_take_back_the_time_that_went_on_in_silence():
    watermark = seen(5000, 3000)
    silent_ms = NOW_MS + 60_000
    assert watermark.advance((), silent_ms) == 65_000
    watermark.observe("watched", 4000, silent_ms)
    assert watermark.advance((), silent_ms + 10_000) == 75_000


def test_it_is_never_ahead_of_the_clock():
    watermark = seen(NOW_MS + 200, NOW_MS + 300)
    assert watermark.advance((), NOW_MS) == NOW_MS
    assert watermark.advance((), NOW_MS + IDLE_MS) == NOW_MS + IDLE_MS


def test_after_a_restart_it_goes_on_from_what_is_known():
    watermark = Watermark(("shown", "watched"), NOW_MS, floor_ms=700)
    watermark.know(5000)
    assert watermark.advance((), NOW_MS) == 700
    assert watermark.advance((), NOW_MS + IDLE_MS) == 5000 + IDLE_MS


def test_who_is_due_is_taken_once_and_at_the_time_that_was_set_last():
    due_queue = DueQueue()
    for name, due_ms in (("a", 10), ("b", 20), ("a", 30), ("c", 5), ("c", None), ("b", 15)):
        due_queue.put(name, due_ms)
    assert len(due_queue) == 2
    assert due_queue.take(14, 9) == ([], 14) and due_queue.take(20, 9) == (["b"], 20)
    assert due_queue.take(30, 9) == (["a"], 30) and due_queue.take(99, 9) == ([], 99)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 20)), st.integers(1, 5))
def test_of_many_some_are_taken_at_a_time_and_all_up_to_the_time_that_is_told(due, most):
    due_queue = DueQueue()
    for name, due_ms in due.items():
        due_queue.put(name, due_ms)
    reached_ms, left = -1, dict(due)
    while reached_ms < 15:
        taken, reached_ms = due_queue.take(15, most)
        assert sorted(taken) == sorted(name for name, due_ms in left.items() if due_ms <= reached_ms)
        left = {name: due_ms for name, due_ms in left.items() if name not in taken}
    assert left == {name: due_ms for name, due_ms in due.items() if due_ms > 15} and reached_ms == 15

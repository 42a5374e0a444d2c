"""What a log tells of the watches that were not completed: the same as the history on the stream."""

from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.platform.settings import History
from models.logs.skips import SkipTimeline
from models.logs.timeline import HISTORY, newest_of
from models.logs.training_set import prepare
from models.retrieval.candidates import skip_rows
from streams.history.rules import apply_watch
from streams.messages import Source, UserHistory, WatchEvent
from tests.unit.models.samples import START_MS, stored

MOST = 6
LONG_S, SHORT_S = 30.0, 3.0
ROW_OF = {f"i{n}": n for n in range(5)}
KEPT = History().watches


class Row(NamedTuple):
    user: int
    item: int
    watch_s: float | None


def frame_of(rows: list[Row]) -> pl.DataFrame:
    """Rows a second apart, of one who watches the newest item last of all."""
    return pl.DataFrame(
        {
            "user_id": [f"u{row.user}" for row in rows],
            "item_id": [f"i{row.item}" for row in rows],
            "event_ms": [START_MS + 1000 * place for place in range(len(rows))],
            "watch_s": [row.watch_s for row in rows],
        },
        schema_overrides={"watch_s": pl.Float64},
    )


def timeline_of(rows: list[Row], most: int = MOST) -> tuple[SkipTimeline, dict[str, int]]:
    """And the numbers of the users."""
    log = stored(frame_of(rows))
    numbers = np.array([ROW_OF[item_id] for item_id in log.item_ids])
    return SkipTimeline(log, numbers, most), {user: place for place, user in enumerate(log.user_ids)}


def history_of(rows: list[Row], user: int, keep: int) -> UserHistory:
    """As the stream makes it of the same watches; a row of unknown length is sent as a completed watch."""
    history = UserHistory(f"u{user}")
    for place, row in enumerate(rows):
        if row.user == user and row.watch_s != 0:
            watch_s = LONG_S if row.watch_s is None else row.watch_s
            event = WatchEvent(f"e{place}", f"u{user}", f"i{row.item}", START_MS + 1000 * place, watch_s)
            history = apply_watch(history, event, Source(0, place, 0), keep=keep, completed_s=18).history
    return history


@pytest.mark.parametrize("keep", [KEPT, 2 * KEPT], ids=["usual", "long"])
@pytest.mark.parametrize("chance", [0.05, 0.9], ids=["who watches", "who skips"])
def test_a_log_tells_the_skips_that_serving_reads_from_the_history(chance: float, keep: int):
    """At any moment, of users with more watches than a history keeps."""
    rng = np.random.default_rng(5)
    seconds = np.where(rng.random(400) < chance, SHORT_S, LONG_S)
    rows = [Row(*pair) for pair in zip(rng.integers(0, 3, 400), rng.integers(0, 5, 400), seconds, strict=True)]
    for place in range(0, 400, 40):
        rows[place] = rows[place]._replace(watch_s=0.0)  # shown and left alone
        rows[place + 1] = rows[place + 1]._replace(watch_s=None)
    timeline, users = timeline_of(rows)
    for cut in (0, 1, 30, 200, 400):
        for user in range(3):
            [told] = timeline.before(np.array([users[f"u{user}"]]), np.array([START_MS + 1000 * cut]))
            [served] = skip_rows([history_of(rows[:cut], user, keep)], ROW_OF, MOST)
            assert told.tolist() == served.tolist(), (cut, user)


def test_the_newest_are_told_oldest_first_and_nothing_of_that_moment_or_later():
    timeline, users = timeline_of([Row(0, item, SHORT_S) for item in (0, 1, 2, 3, 4)], most=2)
    moments = START_MS + np.array([0, 1000, 3000, 3001])
    assert timeline.before(np.full(4, users["u0"]), moments).tolist() == [[-1, -1], [-1, 0], [1, 2], [2, 3]]


def test_a_skip_before_the_newest_watches_is_no_longer_told():
    rows = [Row(0, 4, SHORT_S)] + [Row(0, 0, LONG_S)] * HISTORY
    timeline, users = timeline_of(rows)
    moments = START_MS + 1000 * np.array([HISTORY, HISTORY + 1])
    told = timeline.before(np.full(2, users["u0"]), moments)
    assert [row[row >= 0].tolist() for row in told] == [[4], []]


def test_which_items_were_left_is_told_as_of_any_moment():
    timeline, _ = timeline_of([Row(0, 3, SHORT_S), Row(0, 1, LONG_S), Row(1, 2, 0.0), Row(1, 0, SHORT_S)])
    left = [np.flatnonzero(timeline.items(5, START_MS + ms)).tolist() for ms in (0, 1, 3000, 3001)]
    assert left == [[], [3], [3], [0, 3]]


def test_a_log_in_which_all_is_completed_has_none_and_one_is_not_asked_for_is_not_read():
    skipped = [Row(0, 0, SHORT_S), Row(0, 1, LONG_S)]
    assert prepare(stored(frame_of(skipped)), None, skips=MOST).dataset.skips is not None
    assert prepare(stored(frame_of(skipped)), None).dataset.skips is None
    for left in (None, LONG_S, 0.0):  # of unknown length, long, or no watch at all
        log = stored(frame_of([Row(0, 0, left), Row(0, 1, LONG_S)]))
        assert prepare(log, None, skips=MOST).dataset.skips is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(0, 6))
def test_the_newest_of_a_row_stand_at_its_end_in_their_order(rows: list[list[int]], most: int):
    found = newest_of(np.array(rows), most)
    width = min(4, most)
    for row, newest in zip(rows, found.tolist(), strict=True):
        there = [item for item in row if item >= 0][max(0, sum(item >= 0 for item in row) - width) :]
        assert newest == [-1] * (width - len(there)) + there

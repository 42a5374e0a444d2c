"""What a log tells of its users: as if its rows had come one by one."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from infra.platform.settings import History, Settings, Trending
from models.logs.log import LogError, log_from_frame
from models.logs.stored_log import store_frame
from streams.history.log_rows import row_id
from streams.history.rules import apply_watch
from streams.history.watched_filter import DAY_MS, remember
from streams.loading.histories import histories_of
from streams.loading.searches import newest_searches, read_searches
from streams.loading.trending import trending_of
from streams.messages import Context, LoadedHistory, Source, UserHistory, WatchEvent, decode, encode

SMALL = History(watches=3, seen=4, seen_days=30)
ODD = ["a/b", "two words", 'it\'s "quoted"', "\N{GRINNING FACE}", "ü" * 256]
COLUMNS = ("user_id", "item_id", "event_ms", "watch_s", "duration_s", "region")
KINDS = (pl.String, pl.String, pl.Int64, pl.Float64, pl.Float64, pl.String)


def table(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict(zip(COLUMNS, KINDS, strict=True)), orient="row")


def told(frame: pl.DataFrame, small: History = SMALL) -> dict[str, LoadedHistory]:
    with TemporaryDirectory() as scratch:
        log = store_frame(frame, Path(scratch), completed_s=small.completed_s)
        return {each.user_id: decode(LoadedHistory, encode(each)) for each in histories_of(log, small)}


def one_by_one(frame: pl.DataFrame, small: History = SMALL) -> dict[str, UserHistory]:
    """The histories of who reads the rows in order of time, each as `nextwatch replay` sends it."""
    histories: dict[str, UserHistory] = {}
    take = partial(
        apply_watch, keep=small.watches, completed_s=small.completed_s, watched=small.seen, watched_days=small.seen_days
    )
    rows = log_from_frame(frame, small.completed_s).frame
    for offset, row in enumerate(rows.iter_rows(named=True)):
        user_id, item_id, event_ms = row["user_id"], row["item_id"], row["event_ms"]
        duration_s = row["duration_s"]
        least_s = small.completed_s if duration_s is None else min(duration_s, small.completed_s)
        watch_s = least_s if row["watch_s"] is None else row["watch_s"]
        context = None if row["region"] is None else Context(region=row["region"])
        event = WatchEvent(row_id(user_id, item_id, event_ms), user_id, item_id, event_ms, watch_s, duration_s)
        event = replace(event, context=context)
        before = histories.get(user_id) or UserHistory(user_id)
        histories[user_id] = take(before, event, Source(0, offset, 0)).history
    return histories


rows = st.lists(
    st.tuples(
        st.sampled_from(ODD[:3]),
        st.sampled_from("vwxyz"),
        st.integers(0, 60).map(lambda day: day * DAY_MS),
        st.none() | st.sampled_from([2.0, 30.0]),
        st.none() | st.sampled_from([10.0, 60.0]),
        st.sampled_from([None, "de", "fr"]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[2],
)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_histories_are_those_of_who_reads_the_rows_one_by_one(drawn):
    frame = table(drawn)
    found, expected = told(frame), one_by_one(frame)
    assert found.keys() == expected.keys()
    for user_id, history in expected.items():
        each = found[user_id]
        assert each.watches == tuple(replace(watch, offset=-1) for watch in history.watches)
        assert (each.context, each.event_ms) == (history.context, history.watches[-1].event_ms)
        limits = {"newest_ms": each.event_ms, "keep": SMALL.seen, "days": SMALL.seen_days}
        assert each.seen == remember(history.seen, (), **limits), "what has become too old meanwhile is left out"


@pytest.mark.parametrize("user_id", ODD)
def test_users_of_any_name_have_theirs(user_id: str):
    found = told(table([(user_id, "x", 5, None, None, None), ("other", "x", 5, None, None, None)]))
    assert [watch.item_id for watch in found[user_id].watches] == ["x"] and len(found) == 2


def test_flags_of_a_context_are_flags():
    frame = table([("u", "x", 5, None, None, None)]).with_columns(signed_in=pl.lit("true"), age=pl.lit(0.25))
    assert told(frame)["u"].context == Context(signed_in=True, age=0.25)


def test_the_newest_searches_of_each_user_wherever_they_stand(tmp_path: Path):
    frame = pl.DataFrame(
        {"user_id": ["u", "v", "u", "u", "u"], "query": ["c", "x", "a", "b", "b"], "event_ms": [3, 1, 1, 2, 2]}
    )
    found = newest_searches(frame.iter_slices(2), keep=2)
    assert [(search.query, search.event_ms) for search in found["u"]] == [("b", 2), ("c", 3)]
    assert [search.query for search in found["v"]] == ["x"] and newest_searches([], keep=2) == {}
    frame.write_csv(tmp_path / "searches.csv")
    assert read_searches(tmp_path / "searches.csv", 2) == found
    (tmp_path / "bad.csv").write_text("user_id,query,event_ms\nu,q,soon\n")
    with pytest.raises(LogError, match="row 1, column event_ms"):
        read_searches(tmp_path / "bad.csv", 2)


def test_trending_is_counted_at_the_rows_own_times_and_under_keys_of_its_own(tmp_path: Path):
    hour_ms = 3_600_000
    frame = table(
        [
            ("u", "old", 0, 30.0, 60.0, None),
            ("v", "old", 0, 30.0, 60.0, None),
            ("u", "new", 2 * hour_ms, 30.0, 60.0, "de"),
            ("u", "skipped", 2 * hour_ms, 1.0, 60.0, None),
        ]
    )
    log = store_frame(frame, tmp_path, completed_s=18.0)
    lists = dict(trending_of(log, Settings(trending=Trending(half_life_s=3600.0))))
    assert lists.keys() == {"global/loaded", "region/de/loaded"}
    everybody = lists["global/loaded"]
    assert dict(everybody.items) == {"new": 1.0, "old": 0.5} and everybody.as_of_ms == 2 * hour_ms
    assert everybody.partition == -1, "no worker goes on from it"
    assert dict(trending_of(log, Settings(trending=Trending(half_life_s=3600.0)))) == lists

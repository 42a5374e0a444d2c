from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.logs.log import LogError
from models.logs.searches import MOST_TOKENS, history_tokens, tokens_of
from models.logs.stored_log import StoredLog, store_frame
from models.logs.stored_searches import SearchTimeline, StoredSearches, store_search_batches, store_searches

BUCKETS = 1 << 16


def test_a_query_is_its_words_and_its_pairs_of_neighbours() -> None:
    red, cars, both = tokens_of("red", BUCKETS)[0], tokens_of("cars", BUCKETS)[0], tokens_of("red cars", BUCKETS)
    assert len(both) == 3 and both[:2] == [red, cars]
    assert tokens_of("red red", BUCKETS)[0] == red and len(tokens_of("red red red", BUCKETS)) == 2
    assert set(tokens_of("cars red", BUCKETS)) & set(both) == {red, cars}, "a pair has an order"


def test_case_and_form_of_the_characters_do_not_matter() -> None:
    assert tokens_of("STRASSE, Caf\u00e9!", BUCKETS) == tokens_of("stra\u00dfe cafe\u0301", BUCKETS)
    assert tokens_of("\uff52\uff45\uff44", BUCKETS) == tokens_of("red", BUCKETS)


def test_the_numbers_are_part_of_what_is_learnt_and_never_change() -> None:
    assert tokens_of("red cars", 1000) == [346, 662, 107]


@given(st.text(max_size=200), st.integers(2, 50))
def test_tokens_are_distinct_bounded_and_never_the_padding(query: str, buckets: int) -> None:
    tokens = tokens_of(query, buckets)
    assert len(tokens) == len(set(tokens)) <= MOST_TOKENS
    assert all(1 <= token < buckets for token in tokens)


def test_a_history_is_the_newest_searches_cut_to_the_newest_tokens() -> None:
    queries = [f"word{n}" for n in range(60)]
    words = [token for query in queries for token in tokens_of(query, BUCKETS)]
    assert history_tokens(queries, BUCKETS) == words[-50:]
    assert history_tokens(queries, BUCKETS, most_tokens=3) == words[-3:]
    a, b = tokens_of("a", BUCKETS), tokens_of("b", BUCKETS)
    assert history_tokens(["a", "b", "a"], BUCKETS) == a + b + a
    assert history_tokens([], BUCKETS) == []


def log_of(users: list[str], directory: Path) -> StoredLog:
    frame = pl.DataFrame({"user_id": users, "item_id": ["i"] * len(users), "event_ms": range(len(users))})
    return store_frame(frame, directory, completed_s=18.0)


def searches(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.String, "query": pl.String, "event_ms": pl.Int64}, orient="row")


def queries_of(stored: StoredSearches) -> list[list[int]]:
    return [stored.tokens[a:b].tolist() for a, b in zip(stored.starts[:-1], stored.starts[1:], strict=True)]


def test_searches_are_put_in_order_and_strangers_and_repeats_counted(tmp_path: Path) -> None:
    log = log_of(["a", "b"], tmp_path)
    rows = [("b", "cats", 5), ("who", "dogs", 4), ("a", "red cars", 3), ("b", "cats", 5), ("a", "", 4)]
    searches(rows).write_csv(tmp_path / "searches.csv")
    searches(rows).write_ndjson(tmp_path / "searches.jsonl")
    sources = (searches(rows), tmp_path / "searches.csv", tmp_path / "searches.jsonl")
    found = [store_searches(source, log, buckets=BUCKETS) for source in sources]
    for stored in (*found, store_search_batches(searches(rows).iter_slices(2), log, buckets=BUCKETS)):
        assert [log.user_ids[user] for user in stored.users] == ["a", "a", "b"]
        assert stored.event_ms.tolist() == [3, 4, 5]
        assert queries_of(stored) == [tokens_of("red cars", BUCKETS), [], tokens_of("cats", BUCKETS)]
        assert (stored.strangers, stored.duplicates) == (1, 1)


def test_no_searches_are_no_error_and_a_bad_one_is_named(tmp_path: Path) -> None:
    log = log_of(["a"], tmp_path)
    stored = store_searches(searches([]), log, buckets=BUCKETS)
    assert len(stored) == 0
    assert SearchTimeline(stored).before(np.array([0]), np.array([9])).tolist() == [[0]]
    with pytest.raises(LogError, match="searches: row 3, column event_ms"):
        bad = searches([("a", "x", 1), ("a", "x", 2), ("a", "x", -1)])
        store_search_batches(bad.iter_slices(1), log, buckets=BUCKETS)
    with pytest.raises(LogError, match="column query is missing"):
        store_searches(searches([]).drop("query").clear(), log, buckets=BUCKETS)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y z", "x y z", ""]), st.integers(0, 20)), max_size=50
    ),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_training_sees_the_tokens_that_serving_would_have_seen(
    rows: list[tuple[str, str, int]], most: int, most_tokens: int
) -> None:
    with TemporaryDirectory() as place:
        log = log_of(["a", "b", "c"], Path(place))
        stored = store_search_batches(searches(rows).iter_slices(4), log, buckets=BUCKETS)
        timeline = SearchTimeline(stored)
        users, times = np.repeat(np.arange(3), 22), np.tile(np.arange(22), 3)
        table = timeline.before(users, times, most=most, most_tokens=most_tokens)
        known = sorted(dict.fromkeys(rows), key=lambda row: row[2])  # stable, without repeats
        for user, at, tokens in zip(users, times, table.tolist(), strict=True):
            mine = [query for who, query, when in known if who == log.user_ids[user] and when < at]
            expected = history_tokens(mine, BUCKETS, most=most, most_tokens=most_tokens)
            assert tokens == expected + [0] * (len(tokens) - len(expected))

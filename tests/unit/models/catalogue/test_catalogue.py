from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalogue.catalogue import Catalogue
from models.catalogue.columns import Columns
from models.catalogue.id_lists import IdLists
from models.catalogue.item_frame import catalogue_frame, catalogue_of


def test_facts_are_read_by_row_and_unknown_items_say_so():
    catalogue = Catalogue()
    catalogue.upsert("x", channel="c", topics=("t", "s"), duration_s=30.0, published_ms=5)
    catalogue.upsert("y")
    rows = catalogue.rows(["y", "x", "nobody"])
    assert rows.tolist() == [1, 0, -1]
    np.testing.assert_array_equal(catalogue.duration_s(rows), np.array([np.nan, 30, np.nan], np.float32))
    np.testing.assert_array_equal(catalogue.published_ms(rows), [np.nan, 5, np.nan])
    assert catalogue.channel_codes(rows).tolist() == [0, 1, 0]
    assert catalogue.topic_codes(rows).tolist() == [0, 1, 0]
    assert catalogue.topics_of(0) == ("t", "s")
    assert catalogue.id_table("topics", 8).tolist() == [[1, 2], [0, 0]]


def test_an_upsert_replaces_what_was_known():
    catalogue = Catalogue()
    catalogue.upsert("x", channel="c", duration_s=30.0)
    assert catalogue.upsert("x", channel="d", duration_s=0.0) == 0
    assert catalogue.channel_of(0) == "d"
    assert np.isnan(catalogue.duration_s(np.array([0])))[0], "a duration of zero is an unknown one"


def test_a_takedown_holds_also_for_an_item_not_known_yet():
    catalogue = Catalogue()
    catalogue.upsert("x")
    catalogue.remove("x")
    catalogue.remove("later")
    rows = catalogue.rows(["x", "later", "unknown"])
    assert catalogue.is_available(rows).tolist() == [False, False, True]
    catalogue.upsert("x")
    assert catalogue.is_available(rows).tolist() == [True, False, True]


def test_an_empty_catalogue_answers():
    rows = Catalogue().rows(["x"])
    assert Catalogue().is_available(rows).tolist() == [True]


def test_any_id_column_is_a_table_of_its_own_as_channel_and_topics_are():
    catalogue = Catalogue()
    catalogue.upsert("x", channel="c", topics=("t", "s"), ids={"music": ["77"], "cast": ["ann", "bob", "ann"]})
    catalogue.upsert("y", ids={"music": ["78"], "cast": None})
    catalogue.upsert("z", ids={"cast": ["bob"]})
    assert catalogue.id_names == ("channel", "topics", "music", "cast")
    assert catalogue.id_table("music", 8).tolist() == [[1], [2], [0]]
    assert catalogue.id_table("cast", 8).tolist() == [[1, 2], [0, 0], [2, 0]]
    assert catalogue.id_table("cast", 1).tolist() == [[1], [0], [2]]
    assert catalogue.id_table("channel", 1).tolist() == [[1], [0], [0]]
    assert catalogue.id_values("cast") == ["", "ann", "bob"]
    further = {"music": ("77",), "cast": ("ann", "bob")}
    assert catalogue.all_ids_of(0) == {"channel": ("c",), "topics": ("t", "s")} | further


def test_an_upsert_replaces_the_ids_that_it_does_not_name():
    catalogue = Catalogue()
    catalogue.upsert("x", ids={"music": ["77"]})
    catalogue.upsert("x", ids={"cast": ["ann"]})
    assert catalogue.all_ids_of(0) == {"cast": ("ann",)}
    assert catalogue.id_table("music", 3).tolist() == [[0]]


def test_id_columns_without_end_and_our_own_names_are_passed_over():
    catalogue = Catalogue()
    catalogue.upsert("x", channel="c", ids={f"n{n}": ["1"] for n in range(50)} | {"channel": ["other"]})
    assert len(catalogue.id_names) == 18
    assert catalogue.channel_of(0) == "c"


def test_a_language_is_known_by_row_and_is_no_id_column():
    catalogue = Catalogue()
    catalogue.upsert("x", language="de")
    catalogue.upsert("y", ids={"language": ["other"]})
    catalogue.upsert("z", language="en")
    rows = catalogue.rows(["z", "y", "x", "nobody"])
    assert catalogue.language_codes(rows).tolist() == [2, 0, 1, 0]
    assert catalogue.language_codes(np.arange(3)).tolist() == [1, 0, 2]
    assert [catalogue.code_of_language(name) for name in ("de", "en")] == [1, 2]
    assert catalogue.id_names == ("channel", "topics", "language")  # that of y, from a grouping of the same name
    catalogue.upsert("x")
    assert catalogue.language_codes(np.array([0])) == 0


def test_the_code_of_a_name_that_no_item_has_is_0_and_asking_does_not_add_it():
    catalogue = Catalogue()
    catalogue.upsert("x", channel="c", language="de")
    assert (catalogue.code_of_id("channel", "c"), catalogue.code_of_language("de")) == (1, 1)
    assert (catalogue.code_of_id("channel", "d"), catalogue.code_of_language("d")) == (0, 0)
    assert (catalogue.id_values("channel"), catalogue.code_of_language("de")) == (["", "c"], 1)


def test_rows_survive_growth():
    columns = Columns(a=np.arange(3), b=np.zeros((3, 2)))
    for n in range(100):
        assert columns.append(a=n, b=[n, -n]) == 3 + n
    assert len(columns) == 103
    assert columns["a"].tolist() == [0, 1, 2, *range(100)]
    assert columns["b"][-1].tolist() == [99, -99]


def test_growing_copies_a_logarithmic_number_of_times():
    columns = Columns(a=np.arange(1000))
    capacities = set()
    for n in range(10_000):
        columns.append(a=n)
        capacities.add(columns.capacity)
    assert len(capacities) <= 4


def test_room_that_is_not_used_any_more_is_given_back_and_the_rows_stay():
    columns = Columns(a=np.arange(1000))
    for _ in range(900):
        columns.remove(0)
        columns.trim()
    assert len(columns) == 100 and columns.capacity < 400
    kept = columns["a"].tolist()
    assert kept == [100, *range(1, 100)], "the last row takes the place of the one that goes"
    for n in range(1000):
        columns.append(a=n)
    assert columns["a"][-1000:].tolist() == [*range(1000)]


def test_a_view_is_written_in_place():
    columns = Columns(a=np.zeros(2))
    columns["a"][1] = 5
    assert columns["a"].tolist() == [0, 5]


def test_a_row_needs_every_column():
    with pytest.raises(ValueError, match="exactly the columns"):
        Columns(a=np.zeros(1), b=np.zeros(1)).append(a=1)
    with pytest.raises(ValueError, match="differ in length"):
        Columns(a=np.zeros(1), b=np.zeros(2))


names = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), names), max_size=40), st.integers(1, 4))
def test_lists_are_as_they_were_last_set(changes: list[tuple[int, list[str]]], most: int) -> None:
    lists, simple = IdLists(), {}
    for row, values in changes:
        lists.set(row, values)
        simple[row] = tuple(dict.fromkeys(value for value in values if value))
    known = [simple.get(row, ()) for row in range(9)]
    assert [lists.names_of(row) for row in range(9)] == known
    table = lists.table(9, most)
    assert table.shape[1] == max(1, min(most, max(map(len, known))))
    assert [tuple(lists.names[code] for code in row if code) for row in table] == [row[:most] for row in known]
    first = lists.first(np.array([-1, *range(9), 99]))
    assert [lists.names[code] for code in first] == ["", *(row[0] if row else "" for row in known), ""]
    assert first.dtype == np.int32


texts = st.none() | st.sampled_from(["", "a", "b", "c"])
facts = st.fixed_dictionaries(
    {
        "item_id": st.sampled_from("pqrstuvw"),
        "channel": texts,
        "topics": names,
        "duration_s": st.none() | st.sampled_from([0.0, 1.5, 30.1]),
        "published_ms": st.none() | st.integers(0, 10**12),
        "available": st.booleans(),
        "language": texts,
        "ids": st.dictionaries(st.sampled_from(["music", "cast", "channel"]), st.none() | names),
    }
)
tables = st.lists(facts, max_size=8, unique_by=lambda item: item["item_id"])
SCHEMA = {
    "item_id": pl.String,
    "channel": pl.String,
    "topics": pl.List(pl.String),
    "duration_s": pl.Float64,
    "published_ms": pl.Int64,
    "available": pl.Boolean,
    "language": pl.String,
}


def as_table(items: list[dict[str, Any]]) -> pl.DataFrame:
    columns = dict.fromkeys(name for item in items for name in item["ids"])
    ids = {"ids": pl.Struct(dict.fromkeys(columns, pl.List(pl.String)))} if columns else {}
    return pl.DataFrame([item if ids else {**item, "ids": None} for item in items], schema=SCHEMA | ids)


def all_of(catalogue: Catalogue) -> list[Any]:
    """What can be read of a catalogue."""
    rows = np.arange(len(catalogue))
    numbers = [catalogue.duration_s(rows), catalogue.published_ms(rows), catalogue.language_codes(rows)]
    languages = [catalogue.code_of_language(name) for name in "abc"]
    ids = {name: [catalogue.id_values(name), catalogue.id_table(name, 5).tolist()] for name in catalogue.id_names}
    by_row = [catalogue.all_ids_of(row) for row in rows]
    rest = [catalogue.is_available(rows).tolist(), catalogue.rows("pqrstuvwx").tolist(), languages, ids, by_row]
    return [catalogue.item_ids, [np.nan_to_num(column, nan=-1).tolist() for column in numbers], rest]


@settings(max_examples=200, deadline=None)
@given(st.lists(tables, max_size=3))
def test_a_table_of_items_at_once_leaves_what_one_item_after_the_other_leaves(changes: list[list[Any]]) -> None:
    together, apart = Catalogue(), Catalogue()
    for items in changes:
        together.upsert_all(as_table(items))
        for item in items:
            apart.upsert(**item)
    assert all_of(together) == all_of(apart)
    together.upsert("p", topics=["c", "a", "b"], ids={"cast": ["d"]})
    apart.upsert("p", topics=["c", "a", "b"], ids={"cast": ["d"]})
    assert all_of(together) == all_of(apart)


@settings(max_examples=50, deadline=None)
@given(tables)
def test_a_catalogue_is_the_same_after_its_way_through_a_table(items: list[Any]) -> None:
    catalogue = Catalogue()
    for item in items:
        catalogue.upsert(**{**item, "language": None})
    found = catalogue_of(catalogue_frame(catalogue))
    assert all_of(found)[:2] == all_of(catalogue)[:2]
    assert [found.all_ids_of(row) for row in range(len(found))] == [catalogue.all_ids_of(r) for r in range(len(found))]


def test_id_columns_of_a_table_come_in_the_order_of_their_first_ids():
    ids = pl.DataFrame({"music": [[], ["77"]], "cast": [["ann"], []], "none": [[], []]}).to_struct()
    catalogue = catalogue_of(pl.DataFrame({"item_id": ["x", "y"], "ids": ids}))
    assert catalogue.id_names == ("channel", "topics", "cast", "music")


def test_of_an_item_that_a_table_has_twice_the_last_row_holds():
    catalogue = catalogue_of(pl.DataFrame({"item_id": ["x", "y", "x"], "channel": ["old", "c", "new"]}))
    assert catalogue.item_ids == ["x", "y"]
    assert [catalogue.channel_of(row) for row in (0, 1)] == ["new", "c"]


def test_rows_that_are_added_together_stand_behind_those_before():
    columns = Columns(a=np.arange(3), b=np.zeros((3, 2)))
    columns.extend(40, a=np.arange(40), b=7)
    assert columns.append(a=-1, b=[1, 2]) == 43
    assert columns["a"].tolist() == [0, 1, 2, *range(40), -1]
    assert columns["b"].sum() == 2 * 40 * 7 + 3
    with pytest.raises(ValueError, match="exactly the columns"):
        columns.extend(1, a=0)

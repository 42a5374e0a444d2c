import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalogue.catalogue import Catalogue
from models.catalogue.columns import Columns
from models.catalogue.id_lists import IdLists


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

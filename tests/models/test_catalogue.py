import numpy as np

from models.catalogue import Catalogue


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
    assert catalogue.topic_table(8).tolist() == [[1, 2], [0, 0]]


def test_an_upsert_replaces_what_was_known():
    catalogue = Catalogue()
    catalogue.upsert("x", channel="c", duration_s=30.0)
    assert catalogue.upsert("x", channel="d") == 0
    assert (catalogue.channel_of(0), np.isnan(catalogue.duration_s(np.array([0])))[0]) == ("d", True)


def test_a_duration_of_zero_is_an_unknown_one():
    catalogue = Catalogue()
    catalogue.upsert("x", duration_s=0.0)
    assert np.isnan(catalogue.duration_s(np.array([0])))[0]


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

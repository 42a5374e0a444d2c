"""What a filter means on a catalogue."""

import numpy as np
import pytest

from models.catalogue.catalogue import Catalogue
from models.catalogue.filter_syntax import parse_filter
from models.catalogue.item_filter import LATEST_MS, can_be_named

ITEMS = ("cats", "dogs", "bare", "gone")  # the last one is not in the catalogue


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    catalogue = Catalogue()
    catalogue.upsert("cats", channel="c", topics=("pets", "news"), duration_s=0.1, published_ms=5_000, language="de")
    catalogue.upsert("dogs", channel="d", topics=("pets",), duration_s=600.0, published_ms=7_000, language="en")
    catalogue.upsert("bare")
    return catalogue


def passing(catalogue: Catalogue, text: str) -> list[str]:
    mask = parse_filter(text).mask(catalogue, catalogue.rows(ITEMS))
    assert mask.dtype == np.bool_
    return [item_id for item_id, passes in zip(ITEMS, mask, strict=True) if passes]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('channel == "c"', ["cats"]),
        ('"c" == channel', ["cats"]),
        ('channel in ["c", "d", "nobody"]', ["cats", "dogs"]),
        ('channel in ("d",)', ["dogs"]),
        ('language == "en"', ["dogs"]),
        ('"news" in topics', ["cats"]),
        ('"pets" in topics', ["cats", "dogs"]),
        ('"nothing" in topics', []),
        ("duration_s < 600", ["cats"]),
        ("600 > duration_s", ["cats"]),
        ("duration_s <= 600", ["cats", "dogs"]),
        ("duration_s > 600", []),
        ("duration_s >= 600", ["dogs"]),
        ("0 < duration_s < 600", ["cats"]),
        ("7_000 > published_ms >= 5e3", ["cats"]),
        ("published_ms > -1", ["cats", "dogs"]),
        ('channel == "c" or duration_s == 600', ["cats", "dogs"]),
        ('"pets" in topics and not (language == "de")', ["dogs"]),
        ('channel == "c" or channel == "d" and language == "de"', ["cats"]),
        ('(channel == "c" or channel == "d") and language == "en"', ["dogs"]),
    ],
)
def test_a_filter_lets_through_what_it_says(catalogue: Catalogue, text: str, expected: list[str]) -> None:
    assert passing(catalogue, text) == expected


@pytest.mark.parametrize(
    ("unknown_is_false", "turned"),
    [
        ('channel != "c"', 'not (channel == "c")'),
        ('channel not in ["c"]', 'not (channel in ["c"])'),
        ('language != "de"', 'not (language == "de")'),
        ('"news" not in topics', 'not ("news" in topics)'),
        ("duration_s != 0.1", "not (duration_s == 0.1)"),
        ("published_ms != 5000", "not (published_ms == 5000)"),
        ("duration_s > 5", "not (duration_s <= 5)"),
    ],
)
def test_a_comparison_with_an_unknown_value_is_false_and_not_turns_it_round(
    catalogue: Catalogue, unknown_is_false: str, turned: str
) -> None:
    assert passing(catalogue, unknown_is_false) == ["dogs"]
    assert passing(catalogue, turned) == ["dogs", "bare", "gone"]


def test_a_duration_is_compared_as_the_float32_that_is_stored(catalogue: Catalogue) -> None:
    assert passing(catalogue, "duration_s == 0.1") == ["cats"]
    assert passing(catalogue, "duration_s <= 0.1") == ["cats"]
    assert passing(catalogue, "duration_s < 0.1") == []


def test_numbers_that_no_column_can_hold_compare_as_they_should(catalogue: Catalogue) -> None:
    assert passing(catalogue, f"published_ms < {2**63 - 1}") == ["cats", "dogs"]
    assert passing(catalogue, f"published_ms > {-(2**63)}") == ["cats", "dogs"]
    assert passing(catalogue, f"published_ms == {2**63 - 1}") == []
    assert passing(catalogue, "-1e38 < duration_s < 1e38") == ["cats", "dogs"]


def test_a_time_that_is_no_exact_float64_is_unknown() -> None:
    catalogue = Catalogue()
    catalogue.upsert("last", published_ms=LATEST_MS)
    catalogue.upsert("beyond", published_ms=LATEST_MS + 1)
    rows = catalogue.rows(["last", "beyond"])
    assert parse_filter("published_ms > 0").mask(catalogue, rows).tolist() == [True, False]
    for beyond in (2**53, 2**60, 2**63 - 1):
        assert parse_filter(f"published_ms < {beyond}").mask(catalogue, rows).tolist() == [True, False]
        assert parse_filter(f"published_ms >= {beyond}").mask(catalogue, rows).tolist() == [False, False]


def test_the_first_32_topics_of_an_item_count() -> None:
    catalogue = Catalogue()
    catalogue.upsert("x", topics=tuple(f"t{number}" for number in range(33)))
    catalogue.upsert("y", topics=("t32",))
    rows = catalogue.rows(["x", "y"])
    for number in range(32):
        assert parse_filter(f'"t{number}" in topics').mask(catalogue, rows).tolist() == [True, False]
    assert parse_filter('"t32" in topics').mask(catalogue, rows).tolist() == [False, True]


def test_a_filter_adds_no_name_to_the_catalogue(catalogue: Catalogue) -> None:
    passing(catalogue, 'channel == "new" or language == "new" or "new" in topics')
    assert "new" not in [*catalogue.id_values("channel"), *catalogue.id_values("topics")]
    assert catalogue.code_of_language("new") == 0


def test_no_rows_and_an_empty_catalogue_are_answered(catalogue: Catalogue) -> None:
    item_filter = parse_filter('not (channel == "c" or "t" in topics or language == "x" or duration_s < 5)')
    assert item_filter.mask(catalogue, np.empty(0, np.int64)).tolist() == []
    assert item_filter.mask(Catalogue(), np.array([-1, -1])).tolist() == [True, True]


def test_filters_of_the_same_terms_are_one(catalogue: Catalogue) -> None:
    first, second = parse_filter("duration_s<600"), parse_filter(" 600.0 > duration_s # short")
    assert first == second
    assert len({first, second}) == 1
    assert first != parse_filter("duration_s<601")


def test_a_name_is_short_and_without_control_characters() -> None:
    assert can_be_named("é" * 256)
    assert not any(map(can_be_named, ("", "x" * 257, "a\tb", "\x7f", "\udc00")))

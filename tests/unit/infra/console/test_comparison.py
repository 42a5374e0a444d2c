from infra.console.comparison import WHY, gone_from, rows_of
from models.ranking.ranking_batch import SOURCES
from nextwatch_client import Recommended
from serving.request.backfill import CATALOGUE, POPULAR


def listed(*ids: str) -> list[Recommended]:
    return [Recommended(item_id, rank, "two_tower") for rank, item_id in enumerate(ids, 1)]


def test_what_moved_is_told_by_how_many_places():
    rows = rows_of(listed("c", "a", "d", "b"), listed("a", "b", "c", "e"))
    assert [(row.item.item_id, row.was, row.moved, row.is_new) for row in rows] == [
        ("c", 3, 2, False),
        ("a", 1, -1, False),
        ("d", None, 0, True),
        ("b", 2, -2, False),
    ]
    assert [item.item_id for item in gone_from(listed("c", "a"), listed("a", "e"))] == ["e"]


def test_without_a_list_before_nothing_has_moved_and_nothing_is_new():
    assert [(row.moved, row.is_new) for row in rows_of(listed("a", "b"))] == [(0, False)] * 2


def test_of_a_source_without_words_the_name_is_told():
    [row] = rows_of([Recommended("a", 1, "of-tomorrow")])
    assert row.why == "of-tomorrow"


def test_an_item_whose_place_was_drawn_says_so():
    [row] = rows_of([Recommended("a", 1, "two_tower", probability=0.1)])
    assert "drawn" in row.why


def test_every_source_of_serving_has_words():
    assert {*SOURCES, POPULAR, CATALOGUE} - {""} <= set(WHY)

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.catalogue.catalogue import Catalogue
from serving.state import views
from serving.state.views import LONGEST_TITLE, MOST_HEARD, STAND_STILL_MS, CatalogueView, HistoryView, Views
from streams.messages import Item, StatisticsRow, encode
from streams.topics import ITEM_STATISTICS
from tests.unit.serving.worlds import history, no_views


def test_the_newest_history_of_a_user_is_given_and_only_on_its_partition() -> None:
    view = HistoryView()
    view.apply(1, b"ann", encode(history("ann", "a")))
    view.apply(1, b"ann", encode(history("ann", "a", "b")))
    found = view.get("ann", 1)
    assert found is not None
    assert [watch.item_id for watch in found.watches] == ["a", "b"]
    assert len(view) == 1
    assert view.get("ann", 2) is None


def test_users_of_lost_partitions_are_dropped_and_others_kept() -> None:
    view = HistoryView()
    for partition, user_id in ((0, "ann"), (1, "bob")):
        view.apply(partition, user_id.encode(), encode(history(user_id, "a")))
    view.keep(partition for partition in [1, 3])
    assert view.get("ann", 0) is None
    assert view.get("bob", 1) is not None


@pytest.mark.parametrize("value", [None, b'{"user_id": 7}'])
def test_a_tombstone_forgets_the_user_and_an_unreadable_history_counts_as_none(value: bytes | None) -> None:
    view = HistoryView()
    view.apply(0, b"ann", encode(history("ann", "a")))
    view.apply(0, b"ann", value)
    assert view.get("ann", 0) is None


def test_a_tombstone_and_an_unavailable_item_are_both_down() -> None:
    view = CatalogueView()
    for item_id in ("a", "b", "c"):
        view.apply(item_id.encode(), encode(Item(item_id)))
    assert view.apply(b"a", None) == "a"
    assert view.apply(b"b", encode(Item("b", available=False))) == "b"
    assert list(view) == ["c"]
    assert view.unavailable == {"a", "b"}
    view.apply(b"d", encode(Item("d")))
    assert list(reversed(view)) == ["d", "c"], "newest entry first"


def test_a_title_is_kept_cut_and_goes_with_its_item():
    view, without = CatalogueView(), CatalogueView(titles=False)
    for each in (view, without):
        each.apply(b"a", encode(Item("a", title="<b>A</b> " + "x" * 1500)))
    assert view.title("a").startswith("<b>A</b> xxx") and len(view.title("a")) == LONGEST_TITLE
    assert without.title("a") == view.title("unknown") == ""
    view.apply(b"a", encode(Item("a")))
    assert view.title("a") == "", "it has none any more"
    view.apply(b"a", encode(Item("a", title="A")))
    view.apply(b"a", None)
    assert view.title("a") == ""


def test_what_is_taken_down_takes_no_room_of_what_is_fresh() -> None:
    view = CatalogueView(fresh_ms=1000)
    for item_id in ("a", "b", "c"):
        view.apply(item_id.encode(), encode(Item(item_id, published_ms=100)), now_ms=200)
    view.apply(b"a", None, now_ms=200)
    view.apply(b"b", encode(Item("b", available=False)), now_ms=200)
    assert view.fresh.newest(200) == [(100, "c")]
    assert len(view.fresh) == 1
    view.apply(b"a", encode(Item("a", published_ms=150)), now_ms=200)
    assert view.fresh.newest(200) == [(100, "c"), (150, "a")]


def test_an_item_that_comes_back_is_available_again_and_a_broken_entry_leaves_what_was_known() -> None:
    view = CatalogueView()
    view.apply(b"a", None)
    view.apply(b"a", encode(Item("a")))
    assert view.apply(b"a", b"{") is None
    assert list(view) == ["a"]
    assert not view.unavailable


def test_facts_and_takedowns_reach_a_releases_catalogue() -> None:
    view, catalogue = CatalogueView(), Catalogue()
    view.apply(
        b"a",
        encode(Item("a", "", "cats", ("pets",), duration_s=30.0, published_ms=5, language="de", ids={"music": ("7",)})),
    )
    view.apply(b"b", None)
    view.describe_all(catalogue)
    [a, b] = catalogue.rows(["a", "b"])
    assert catalogue.all_ids_of(a) == {"channel": ("cats",), "topics": ("pets",), "music": ("7",)}
    assert catalogue.code_of_language("de") == 1
    assert catalogue.is_available(catalogue.rows(["a", "b"])).tolist() == [True, False]
    assert b >= 0


def test_all_items_at_once_are_described_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "AT_ONCE", 3)
    view, together, apart = CatalogueView(), Catalogue(), Catalogue()
    for catalogue in (together, apart):
        catalogue.upsert("2", channel="old", topics=["a", "b"], language="fr")
    for number in range(7):
        ids = {"music": (f"m{number}",)} if number % 2 else {}
        item = Item(
            f"{number}", "", f"c{number % 3}", ("x",) * (number % 2), 0.5 * number, None, language="de", ids=ids
        )
        view.apply(b"", encode(item))
    view.apply(b"5", None)
    view.describe_all(together)
    for item_id in [*view, *view.unavailable]:
        view.describe(item_id, apart)
    rows = np.arange(7)
    assert together.item_ids == apart.item_ids
    for row in rows.tolist():
        assert together.all_ids_of(row) == apart.all_ids_of(row)
    for read in ("duration_s", "published_ms", "language_codes", "is_available", "channel_codes"):
        np.testing.assert_array_equal(getattr(together, read)(rows), getattr(apart, read)(rows), read)


def heard(offset: int, impressions: float = 8.0) -> Any:
    row = StatisticsRow("item", "a", 0, 1_000_000, impressions, 4.0, 100.0, 2.0, 0.0, (0, 0))
    return SimpleNamespace(key=b"item/0/a", value=encode(row), partition=0, offset=offset)


def impressions_of(views: Views) -> float:
    return float(views.statistics.statistics.at("item", ["a"], np.array([1_000_000]))[0, 0])


def test_what_is_known_of_items_stands_still_and_only_what_is_taken_over_counts_as_read() -> None:
    views, now_ms = no_views(), 1_000_000
    views.statistics.hear(heard(4))
    views.settle(now_ms)
    assert (impressions_of(views), views.read_offsets.of(ITEM_STATISTICS)) == (8.0, (5,))
    before = views.statistics.moment
    views.statistics.hear(heard(5, 9.0))
    views.settle(now_ms + STAND_STILL_MS - 1)
    assert views.statistics.moment == before
    assert (impressions_of(views), views.read_offsets.of(ITEM_STATISTICS)) == (8.0, (5,))
    views.settle(now_ms + STAND_STILL_MS)
    assert views.statistics.moment != before
    assert views.statistics.known_ms == now_ms + STAND_STILL_MS
    assert (impressions_of(views), views.read_offsets.of(ITEM_STATISTICS)) == (9.0, (6,))


def test_many_records_are_taken_over_before_their_time() -> None:
    views, now_ms = no_views(), 1_000_000
    views.settle(now_ms)
    for offset in range(MOST_HEARD):
        views.settle(now_ms + 1)
        assert impressions_of(views) == 0.0
        views.statistics.hear(heard(offset))
    views.settle(now_ms + 1)
    assert impressions_of(views) == 8.0
    assert views.statistics.known_ms == now_ms + 1


def test_a_clock_that_is_put_back_does_not_stop_what_is_known() -> None:
    views = no_views()
    views.settle(9_000_000)
    views.statistics.hear(heard(4))
    views.settle(1_000_000)
    assert (impressions_of(views), views.statistics.known_ms) == (8.0, 1_000_000)


def test_a_row_that_is_taken_over_makes_another_moment() -> None:
    views = no_views()
    views.settle(1_000_000)
    before = views.statistics.moment
    views.statistics.apply(b"item/0/a", heard(4).value)
    assert views.statistics.moment != before

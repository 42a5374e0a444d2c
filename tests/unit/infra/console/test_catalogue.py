from types import SimpleNamespace
from typing import Any

from infra.console.catalogue import Catalogue, Counts, LearntRow
from streams.messages import Item, ItemVector, StatisticsRow, encode
from streams.topics import ITEM_STATISTICS, ITEM_VECTORS, ITEMS


def record(topic: str, key: str, value: Any, timestamp: int = 0) -> Any:
    encoded = None if value is None else encode(value)
    return SimpleNamespace(topic=f"prefix-{topic}", key=key.encode(), value=encoded, timestamp=timestamp)


def catalogue_of(*items: Item) -> Catalogue:
    catalogue = Catalogue(1_000_000)
    for item in items:
        catalogue.apply(record(ITEMS, item.item_id, item))
    return catalogue


def test_items_are_found_by_a_part_of_title_or_id_in_any_case():
    catalogue = catalogue_of(Item("v1", "Großes Kino"), Item("v2", "A cat"), Item("V3", "the CATALOGUE"), Item("cat"))
    assert [item.item_id for item in catalogue.search("CAT")] == ["v2", "V3", "cat"]
    assert [item.item_id for item in catalogue.search("cat")] == ["cat", "v2", "V3"], "of this very id first"
    assert [item.item_id for item in catalogue.search("GROSSES")] == ["v1"]
    assert [item.item_id for item in catalogue.search("v", most=2)] == ["v1", "v2"]


def test_what_no_page_shows_is_not_kept():
    catalogue = catalogue_of(Item("v1", "A cat", "c", vector=(0.5,) * 1024, description="d" * 1024))
    assert catalogue.item("v1") == Item("v1", "A cat", "c") and len(catalogue._items["v1"]) < 100


def test_what_is_taken_down_is_gone_and_what_changes_is_the_newest():
    catalogue = catalogue_of(Item("v1", "old"), Item("v1", "new"), Item("v2", "x"))
    catalogue.apply(record(ITEMS, "v2", None))
    assert catalogue.title("v1") == "new" and catalogue.item("v2") is None
    assert not catalogue.search("old") and not catalogue.search("x")


def test_an_entry_that_cannot_be_read_changes_nothing():
    catalogue = catalogue_of(Item("v1", "good"))
    for value in (b"{", b'{"item_id": 3}'):
        catalogue.apply(SimpleNamespace(topic=ITEMS, key=b"v1", value=value))
        catalogue.apply(SimpleNamespace(topic=ITEM_STATISTICS, key=b"v1", value=value))
    assert catalogue.title("v1") == "good"


def test_counts_are_added_up_over_partitions_and_replaced_within_one():
    catalogue = Catalogue(1_000_000)
    for partition, shown in ((0, 5.0), (0, 7.0), (1, 3.0)):
        row = StatisticsRow("item", "v1", partition, 1, shown, 1.0, 30.0, 1.0, 0.0, (0, 0))
        catalogue.apply(record(ITEM_STATISTICS, f"item/{partition}/v1", row))
    assert catalogue.counts("v1") == Counts(10.0, 2.0, 60.0)
    assert catalogue.counts("v2") == Counts()


def test_the_row_of_an_item_is_as_old_as_its_newest_record():
    catalogue = Catalogue(1_000_000)
    for at_ms in (1000, 2000):
        catalogue.apply(record(ITEM_VECTORS, "v1", ItemVector("v", 1, b"", b"", 0), at_ms))
    assert catalogue.learnt_row("v1") == LearntRow(2000, "v") and catalogue.item("v1") is None
    catalogue.apply(record(ITEM_VECTORS, "v1", None, 3000))
    assert catalogue.learnt_row("v1") is None

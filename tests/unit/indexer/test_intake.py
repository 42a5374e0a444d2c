"""What records mean for the rows that wait."""

import numpy as np
import pytest

from indexer.intake import Intake, Targets
from indexer.item_attributes import UNKNOWN, AttributeTable, ItemAttributes
from indexer.pending_writes import PendingWrites
from streams.messages import Item, ItemVector, Refused, encode


def vector(step: int = 1, version: str = "v", numbers: tuple[float, ...] = (1.0, 2.0), produced_ms: int = 0) -> bytes:
    return encode(ItemVector(version, step, np.array(numbers, "<f4").tobytes(), b"", produced_ms))


def intake(*versions: str) -> Intake:
    rows = PendingWrites()
    for version in versions:
        rows.follow(version)
    return Intake(rows, AttributeTable(), 1_000_000)


def hear(
    to: Intake,
    value: bytes | None,
    key: bytes | None = b"a",
    *,
    written: bool = False,
    catching_up: str = "",
    published_ms: int = 0,
) -> str | None:
    """A record of `item-vectors`; what catches up is of a release made at 100."""
    targets = Targets(dict.fromkeys(to.rows.followed, 2), catching_up, 100)
    return to.hear_vector(key, value, targets, is_written=written, now_ms=0, published_ms=published_ms)


def test_a_touched_row_waits_to_be_written() -> None:
    to = intake("v")
    hear(to, vector(7, produced_ms=5), published_ms=6)
    assert to.rows.take_rows(9) == ("v", {"a": (7, np.array([1, 2], "<f4").tobytes(), 5, 6)})


def test_a_row_of_another_version_is_passed_over() -> None:
    to = intake("v")
    hear(to, vector(version="w", numbers=(1.0,)))
    assert len(to.rows) == 0


def test_a_row_that_was_written_is_read_again_only_for_the_collection_that_catches_up() -> None:
    to = intake("v", "w")
    hear(to, vector(version="v"), written=True)
    hear(to, vector(version="v"), b"b", written=True, catching_up="w")
    assert len(to.rows) == 0
    hear(to, vector(3, version="w", produced_ms=5), written=True, catching_up="w")
    assert to.rows.take_rows(9) == ("w", {"a": (3, np.array([1, 2], "<f4").tobytes(), 0, 0)})


def test_the_row_of_an_item_that_is_down_is_known_again_after_a_restart() -> None:
    to = intake("v")
    to.hear_item(b"a", None, is_written=False, now_ms=0)
    hear(to, vector(4), written=True)
    to.hear_item(b"a", encode(Item("a")), is_written=False, now_ms=0)
    assert to.rows.take_rows(9) == ("v", {"a": (4, np.array([1, 2], "<f4").tobytes(), 0, 0)})


def test_unavailable_and_tombstone_both_take_an_item_down() -> None:
    to = intake("v")
    to.hear_item(b"a", encode(Item("a", available=False)), is_written=False, now_ms=0)
    to.hear_item(b"b", None, is_written=False, now_ms=0)
    assert to.rows.unavailable == {"a", "b"}
    to.hear_item(b"a", encode(Item("a")), is_written=False, now_ms=0)
    assert to.rows.unavailable == {"b"}


def test_the_trainers_tombstone_expires_the_item_but_not_when_it_is_read_again() -> None:
    to = intake("v")
    assert hear(to, None, written=True) is None
    assert len(to.rows) == 0
    assert hear(to, None) == "a"
    assert to.rows.take_deleted(9) == {"a": False}


def test_a_tombstone_that_is_younger_than_the_release_is_heard_by_the_collection_that_catches_up() -> None:
    to = intake("v", "w")
    for published_ms in (99, 100):
        hear(to, None, written=True, catching_up="w", published_ms=published_ms)
    assert to.rows.take_expired(9) is None
    hear(to, vector(3, version="w"), written=True, catching_up="w", published_ms=101)
    hear(to, None, written=True, catching_up="w", published_ms=102)
    assert to.rows.take_rows(9) is None
    assert to.rows.take_expired(9) == ("w", ["a"])
    assert to.rows.take_deleted(9) == {}


def test_the_trainers_own_record_is_no_row() -> None:
    to = intake("v")
    hear(to, vector(), b"")
    assert len(to.rows) == 0


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, vector(), "without a key"),
        (b"\xff", vector(), "UTF-8"),
        (b"a", b"\xc1", "MessagePack"),
        (b"a", vector(numbers=(1.0, 2.0, 3.0)), "12 bytes"),
        (b"a", vector(numbers=(1.0, float("inf"))), "not finite"),
        (b"a\x01", vector(), "control characters"),
        (b"a" * 1025, vector(), "1024 bytes"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(key: bytes | None, value: bytes, reason: str) -> None:
    to = intake("v")
    with pytest.raises(Refused, match=reason):
        hear(to, value, key)
    assert len(to.rows) == 0


def test_a_bad_catalogue_entry_is_refused_and_changes_nothing() -> None:
    to = intake("v")
    with pytest.raises(Refused):
        to.hear_item(b"a", b'{"item_id": ""}', is_written=False, now_ms=0)
    assert not to.rows.unavailable


def test_a_catalogue_entry_is_kept_as_facts_and_only_news_writes_rows_again() -> None:
    to, entry = intake("v"), encode(Item("a", channel="music", duration_s=30.0))
    to.hear_item(b"a", entry, is_written=False, now_ms=0)
    assert to.attributes.of("a") == ItemAttributes("music", duration_s=30.0)
    assert to.rows.take_changed(9) == ["a"]
    to.hear_item(b"a", entry, is_written=False, now_ms=0)
    to.hear_item(b"b", encode(Item("b")), is_written=False, now_ms=0)
    assert to.rows.take_changed(9) == []
    to.hear_item(b"a", encode(Item("a", title="other", channel="sport")), is_written=False, now_ms=0)
    assert to.rows.take_changed(9) == ["a"]


def test_an_entry_that_was_written_before_a_restart_is_known_and_not_written_again() -> None:
    to = intake("v")
    to.hear_item(b"a", encode(Item("a", channel="music")), is_written=True, now_ms=0)
    assert to.attributes.of("a") == ItemAttributes("music")
    assert len(to.rows) == 0


def test_an_item_that_returns_with_other_facts_before_it_was_deleted_is_written_again() -> None:
    to = intake("v")
    to.hear_item(b"a", encode(Item("a", channel="music")), is_written=True, now_ms=0)
    to.hear_item(b"a", None, is_written=False, now_ms=0)
    assert to.attributes.of("a") == UNKNOWN
    to.hear_item(b"a", encode(Item("a")), is_written=False, now_ms=0)
    assert to.rows.take_deleted(9) == {}
    assert to.rows.take_changed(9) == ["a"]

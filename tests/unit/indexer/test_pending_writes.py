"""Rows that wait: coalesced, newest first, and never of an item that is down."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import IndexMissing
from indexer.intake import Intake
from indexer.item_attributes import UNKNOWN, AttributeTable, ItemAttributes
from indexer.pending_writes import PendingWrites, Row, problem_of, stack
from indexer.upserts import Upserts
from streams.messages import Item, encode


def row(step: int, value: float = 0.0, produced_ms: int = 0, published_ms: int = 0) -> Row:
    return Row(step, np.array([value, step], "<f4").tobytes(), produced_ms, published_ms)


class Shelf:
    """An index in memory, with the methods that `write_all` uses."""

    def __init__(self, *versions: str) -> None:
        self.rows: dict[str, dict[str, tuple[int, np.ndarray]]] = {version: {} for version in versions}
        self.attributes: dict[str, dict[str, ItemAttributes]] = {version: {} for version in versions}
        self.calls: list[int] = []

    def upsert(
        self,
        version: str,
        item_ids: list[str],
        vectors: np.ndarray,
        steps: list[int],
        attributes: Sequence[ItemAttributes],
    ) -> None:
        self.calls.append(len(item_ids))
        if version not in self.rows:
            raise IndexMissing(version)
        self.rows[version].update({i: (s, v) for i, s, v in zip(item_ids, steps, vectors, strict=True)})
        self.attributes[version].update(zip(item_ids, attributes, strict=True))

    def delete(self, version: str, item_ids: list[str]) -> None:
        for item_id in item_ids:
            self.rows[version].pop(item_id, None)

    def vectors(self, version: str, item_ids: list[str]) -> dict[str, tuple[int, np.ndarray]]:
        if version not in self.rows:
            raise IndexMissing(version)
        return {i: self.rows[version][i] for i in item_ids if i in self.rows[version]}

    def steps(self, version: str) -> dict[str, int]:
        return {item_id: step for item_id, (step, _) in self.rows[version].items()}

    def channels(self, version: str) -> dict[str, str]:
        return {item_id: self.attributes[version][item_id].channel for item_id in self.rows[version]}


def at_once(call: Any) -> Any:
    """A Retry that tries once."""
    return call()


def write(shelf: Shelf, rows: PendingWrites, batch: int = 100, attributes: AttributeTable | None = None) -> set[str]:
    attributes = attributes or AttributeTable()
    return Upserts(shelf, rows, attributes, batch=batch, retry=at_once).write_all(shelf.rows)


def following(*versions: str) -> PendingWrites:
    rows = PendingWrites()
    for version in versions:
        rows.follow(version)
    return rows


def with_a() -> tuple[PendingWrites, Shelf]:
    """Rows and an index that holds item a."""
    rows, shelf = following("v"), Shelf("v")
    rows.put("v", "a", row(1), now_ms=0)
    write(shelf, rows)
    return rows, shelf


def test_touched_rows_are_coalesced_and_the_newest_step_wins() -> None:
    rows, shelf = following("v"), Shelf("v")
    for step in (1, 3, 2):
        rows.put("v", "a", row(step), now_ms=0)
    assert len(rows) == 1
    write(shelf, rows)
    assert shelf.steps("v") == {"a": 3}
    assert shelf.calls == [1]


def test_the_delay_is_counted_from_the_oldest_watch_that_no_search_has_seen() -> None:
    rows = following("v")
    for step, produced_ms in ((1, 0), (2, 700), (3, 900), (4, 0)):
        rows.put("v", "a", row(step, produced_ms=produced_ms), now_ms=0)
    assert rows.take_rows(1) == ("v", {"a": row(4, produced_ms=700)})


def test_the_lag_is_counted_from_the_oldest_row_that_is_not_written_yet() -> None:
    rows = following("v")
    for step, published_ms in ((1, 700), (3, 900), (2, 800)):
        rows.put("v", "a", row(step, published_ms=published_ms), now_ms=0)
    assert rows.take_rows(1) == ("v", {"a": row(3, published_ms=700)})


def test_a_touched_row_is_written_with_its_items_facts() -> None:
    rows, attributes, shelf = following("v"), AttributeTable(), Shelf("v")
    attributes.set("a", ItemAttributes("music"))
    rows.put("v", "a", row(1), now_ms=0)
    rows.put("v", "b", row(1), now_ms=0)
    write(shelf, rows, attributes=attributes)
    assert shelf.attributes["v"] == {"a": ItemAttributes("music"), "b": UNKNOWN}


def test_changed_facts_write_the_rows_that_are_there_again_and_make_none() -> None:
    rows, attributes, shelf = following("v", "w"), AttributeTable(), Shelf("v", "w")
    rows.put("v", "a", row(3, value=5.0), now_ms=0)
    write(shelf, rows, attributes=attributes)
    attributes.set("a", ItemAttributes("music"))
    rows.rewrite("a", now_ms=1000)
    rows.rewrite("a", now_ms=1200)
    assert not rows.is_due(1499, 500, 9)
    assert rows.is_due(1500, 500, 9)
    shelf.calls.clear()
    write(shelf, rows, attributes=attributes)
    assert shelf.attributes == {"v": {"a": ItemAttributes("music")}, "w": {}}
    assert shelf.steps("v") == {"a": 3}
    assert shelf.rows["v"]["a"][1].tolist() == [5.0, 3.0]
    assert shelf.calls == [1]


def test_an_item_whose_row_waits_is_not_written_twice_for_its_facts() -> None:
    rows, attributes, shelf = following("v"), AttributeTable(), Shelf("v")
    rows.put("v", "a", row(1), now_ms=0)
    write(shelf, rows, attributes=attributes)
    attributes.set("a", ItemAttributes("music"))
    rows.rewrite("a", now_ms=0)
    rows.put("v", "a", row(2), now_ms=0)
    shelf.calls.clear()
    write(shelf, rows, attributes=attributes)
    assert (shelf.calls, shelf.channels("v"), shelf.steps("v")) == ([1], {"a": "music"}, {"a": 2})


def test_rewriting_is_bounded_by_the_batch() -> None:
    rows, attributes, shelf = following("v"), AttributeTable(), Shelf("v")
    for number in range(25):
        rows.put("v", f"i{number}", row(1), now_ms=0)
    write(shelf, rows, attributes=attributes)
    shelf.calls.clear()
    for number in range(25):
        attributes.set(f"i{number}", ItemAttributes("music"))
        rows.rewrite(f"i{number}", now_ms=0)
    assert len(rows) == 25
    write(shelf, rows, batch=10, attributes=attributes)
    assert shelf.calls == [10, 10, 5]
    assert set(shelf.channels("v").values()) == {"music"}


def test_rows_of_a_version_that_is_not_followed_are_passed_over() -> None:
    rows = following("v")
    rows.put("other", "a", row(1), now_ms=0)
    assert len(rows) == 0


def test_rows_are_due_after_the_window_or_when_a_batch_is_full() -> None:
    rows = following("v")
    assert not rows.is_due(10_000, 500, 2)
    rows.put("v", "a", row(1), now_ms=1000)
    rows.put("v", "a", row(2), now_ms=1400)
    assert not rows.is_due(1499, 500, 2)
    assert rows.is_due(1500, 500, 2)
    rows.put("v", "b", row(2), now_ms=1401)
    assert rows.is_due(1402, 500, 2)
    write(Shelf("v"), rows)
    assert not rows.is_due(10_000, 500, 2)


def test_batches_are_bounded() -> None:
    rows, shelf = following("v"), Shelf("v")
    for number in range(25):
        rows.put("v", f"i{number}", row(1), now_ms=0)
    write(shelf, rows, batch=10)
    assert shelf.calls == [10, 10, 5]


def test_a_stale_vector_does_not_bring_back_an_item_that_was_taken_down() -> None:
    rows, shelf = with_a()
    rows.take_down("a", now_ms=0)
    rows.put("v", "a", row(2), now_ms=0)
    write(shelf, rows)
    assert shelf.steps("v") == {}


@pytest.mark.parametrize("seen", ["in the index", "waiting", "while down"])
def test_an_item_that_returns_gets_its_newest_known_row_back(seen: str) -> None:
    rows, shelf = following("v", "w"), Shelf("v", "w")
    rows.put("v", "a", row(1), now_ms=0)
    if seen == "in the index":
        write(shelf, rows)
    rows.take_down("a", now_ms=0)
    if seen == "while down":
        rows.put("v", "a", row(2), now_ms=0)
    write(shelf, rows)
    rows.bring_back("a", now_ms=0)
    write(shelf, rows)
    assert shelf.steps("v") == {"a": 2 if seen == "while down" else 1}
    assert shelf.steps("w") == {}


def test_an_item_that_returns_before_its_deletion_was_written_stays() -> None:
    rows, shelf = with_a()
    rows.take_down("a", now_ms=0)
    rows.bring_back("a", now_ms=0)
    write(shelf, rows)
    assert shelf.steps("v") == {"a": 1}


def test_an_expired_item_is_deleted_and_its_next_row_brings_it_back() -> None:
    rows, shelf = with_a()
    rows.expire("a", now_ms=0)
    write(shelf, rows)
    assert shelf.steps("v") == {}
    rows.put("v", "a", row(9), now_ms=0)
    write(shelf, rows)
    assert shelf.steps("v") == {"a": 9}


def test_an_item_that_expired_in_one_collection_stays_in_the_others_and_its_next_row_brings_it_back() -> None:
    rows, shelf = following("v", "w"), Shelf("v", "w")
    for version in ("v", "w"):
        rows.put(version, "a", row(1), now_ms=0)
    write(shelf, rows)
    rows.put("w", "a", row(2), now_ms=0)
    rows.expire_in("w", "a", now_ms=0)
    assert len(rows) == 1
    write(shelf, rows)
    assert (shelf.steps("v"), shelf.steps("w")) == ({"a": 1}, {})
    rows.expire_in("w", "a", now_ms=0)
    rows.put("w", "a", row(3), now_ms=0)
    write(shelf, rows)
    assert shelf.steps("w") == {"a": 3}


def test_a_collection_that_is_gone_is_reported_and_the_others_are_written() -> None:
    rows, shelf = following("gone", "v"), Shelf("v")
    rows.put("gone", "a", row(1), now_ms=0)
    rows.put("v", "a", row(1), now_ms=0)
    assert write(shelf, rows) == {"gone"}
    assert shelf.steps("v") == {"a": 1}
    assert rows.followed == {"v"}


def test_a_collection_that_is_about_to_be_made_is_followed_although_a_deletion_does_not_find_it() -> None:
    rows, shelf = following("next", "v"), Shelf("v")
    rows.take_down("a", now_ms=0)
    upserts = Upserts(shelf, rows, AttributeTable(), batch=9, retry=at_once)
    assert upserts.write_all(["next", "v"]) == {"next"}
    assert rows.followed == {"next", "v"}


CHANGES = st.tuples(st.sampled_from(["put v", "put w", "down", "entry", "expire", "write"]), st.sampled_from("ab"))


def hear(rows: PendingWrites, attributes: AttributeTable, what: str, item_id: str, step: int) -> None:
    """One change; a catalogue entry says another channel each time."""
    catalogue = Intake(rows, attributes, 10_000)
    match what.split():
        case ["put", version]:
            rows.put(version, item_id, row(step), now_ms=0)
        case ["down"]:
            catalogue.hear_item(item_id.encode(), None, is_written=False, now_ms=0)
        case ["entry"]:
            entry = Item(item_id, channel=f"c{step}" if step % 3 else None)
            catalogue.hear_item(item_id.encode(), encode(entry), is_written=False, now_ms=0)
        case ["expire"]:
            rows.expire(item_id, now_ms=0)


@settings(max_examples=500, deadline=None)
@given(st.lists(CHANGES, min_size=10, max_size=30), st.integers(1, 3))
def test_coalesced_writing_ends_as_if_each_change_had_been_written_at_once(
    changes: list[tuple[str, str]], batch: int
) -> None:
    late, late_attributes, late_shelf = following("v", "w"), AttributeTable(), Shelf("v", "w")
    prompt, prompt_attributes, prompt_shelf = following("v", "w"), AttributeTable(), Shelf("v", "w")
    for step, (what, item_id) in enumerate(changes, start=1):
        hear(late, late_attributes, what, item_id, step)
        hear(prompt, prompt_attributes, what, item_id, step)
        if what == "write":
            write(late_shelf, late, batch, late_attributes)
        write(prompt_shelf, prompt, attributes=prompt_attributes)
    write(late_shelf, late, batch, late_attributes)
    for version in ("v", "w"):
        assert late_shelf.steps(version) == prompt_shelf.steps(version)
        assert late_shelf.channels(version) == prompt_shelf.channels(version)
        assert late_shelf.channels(version) == {i: late_attributes.of(i).channel for i in late_shelf.rows[version]}
        assert not late.unavailable & set(late_shelf.steps(version))


def test_a_vector_of_another_length_or_with_nan_is_a_problem() -> None:
    good = np.array([1, 2], "<f4")
    assert problem_of(good.tobytes(), 2) is None
    assert "12 bytes" in str(problem_of(good.tobytes(), 3))
    assert "finite" in str(problem_of(np.array([1, np.nan], "<f4").tobytes(), 2))


def test_stacked_rows_keep_their_order() -> None:
    assert stack([row(1, 5.0), row(2, 6.0)]).tolist() == [[5.0, 1.0], [6.0, 2.0]]

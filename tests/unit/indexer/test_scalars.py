"""What Milvus holds of an item beside its vector."""

from __future__ import annotations

import numpy as np

from indexer.scalars import SCALARS, UNKNOWN, Scalars, as_row, scalars_of, topic_mark
from streams.messages import Item


def test_an_item_that_says_nothing_of_itself_is_an_unknown_one() -> None:
    assert scalars_of(Item("x")) == UNKNOWN
    assert UNKNOWN.available


def test_all_that_is_known_stands_in_the_row() -> None:
    item = Item("x", "title", "c", ("t", "s"), 30.5, 7, False, "de")
    assert scalars_of(item) == Scalars("c", ("t", "s"), "de", 30.5, 7, False)
    row = as_row(scalars_of(item))
    assert tuple(row) == SCALARS
    assert row["topics"] == "|t|s|"
    assert as_row(UNKNOWN)["topics"] == ""


def test_a_duration_is_a_float32_and_0_is_an_unknown_one() -> None:
    assert scalars_of(Item("x", duration_s=0.1)).duration_s == float(np.float32(0.1)) != 0.1
    assert scalars_of(Item("x", duration_s=0.0)).duration_s == -1


def test_a_time_that_the_catalogue_cannot_hold_exactly_is_unknown() -> None:
    assert scalars_of(Item("x", published_ms=2**53 - 1)).published_ms == 2**53 - 1
    assert scalars_of(Item("x", published_ms=2**53)).published_ms == -1


def test_topics_are_the_first_32_distinct_ones() -> None:
    topics = ("", "a", "a", *(f"t{number}" for number in range(40)))
    assert scalars_of(Item("x", topics=topics)).topics == ("a", *(f"t{number}" for number in range(31)))


def test_a_name_that_no_filter_can_name_is_neither_missing_nor_cut() -> None:
    for name in ("x" * 257, "a\x00b", "line\n", "\ud800"):
        scalars = scalars_of(Item("x", channel=name, topics=(name, "a", name + "2"), language=name))
        assert scalars == Scalars("\x01", ("\x01", "a"), "\x01")
    widest = "\U0001f600" * 256  # 1,024 bytes
    assert scalars_of(Item("x", channel=widest)).channel == widest


def test_a_topic_is_found_in_the_text_as_a_whole_and_no_other() -> None:
    topics = ("a", "b", "a|b", "a!ib", "a!b", "a%b", "a_b", "a\\b", "a!pb", "||", "!")
    for number, topic in enumerate(topics):
        others = topics[:number] + topics[number + 1 :]
        assert topic_mark(topic) in as_row(Scalars(topics=topics))["topics"]
        assert topic_mark(topic) not in as_row(Scalars(topics=others))["topics"]
        assert not set(topic_mark(topic)) & set("%_\\")

"""What Milvus holds of an item beside its vector."""

import numpy as np

from indexer.item_attributes import UNKNOWN, AttributeTable, ItemAttributes, as_row, attributes_of, topic_mark
from streams.messages import Item, decode


def test_an_item_that_says_nothing_of_itself_is_an_unknown_one() -> None:
    assert attributes_of(Item("x")) == UNKNOWN
    assert UNKNOWN.available


def test_all_that_is_known_stands_in_the_row() -> None:
    item = Item("x", "title", "c", ("t", "s"), 30.5, 7, False, "de")
    assert attributes_of(item) == ItemAttributes("c", ("t", "s"), "de", 30.5, 7, False)
    row = as_row(attributes_of(item))
    assert tuple(row) == ItemAttributes._fields
    assert row["topics"] == "|t|s|"
    assert as_row(UNKNOWN)["topics"] == ""


def test_a_duration_is_a_float32_and_0_is_an_unknown_one() -> None:
    assert attributes_of(Item("x", duration_s=0.1)).duration_s == float(np.float32(0.1)) != 0.1
    assert attributes_of(Item("x", duration_s=0.0)).duration_s == -1


def test_a_time_that_the_catalogue_cannot_hold_exactly_is_unknown() -> None:
    assert attributes_of(Item("x", published_ms=2**53 - 1)).published_ms == 2**53 - 1
    assert attributes_of(Item("x", published_ms=2**53)).published_ms == -1


def test_topics_are_the_first_32_distinct_ones() -> None:
    topics = ("", "a", "a", *(f"t{number}" for number in range(40)))
    assert attributes_of(Item("x", topics=topics)).topics == ("a", *(f"t{number}" for number in range(31)))


def test_a_name_that_no_filter_can_name_is_neither_missing_nor_cut() -> None:
    for name in ("x" * 257, "a\x00b", "line\n", "\ud800"):
        attributes = attributes_of(Item("x", channel=name, topics=(name, "a", name + "2"), language=name))
        assert attributes == ItemAttributes("\x01", ("\x01", "a"), "\x01")
    widest = "\U0001f600" * 256  # 1,024 bytes
    assert attributes_of(Item("x", channel=widest)).channel == widest


def test_a_topic_is_found_in_the_text_as_a_whole_and_no_other() -> None:
    topics = ("a", "b", "a|b", "a!ib", "a!b", "a%b", "a_b", "a\\b", "a!pb", "||", "!")
    for number, topic in enumerate(topics):
        others = topics[:number] + topics[number + 1 :]
        assert topic_mark(topic) in as_row(ItemAttributes(topics=topics))["topics"]
        assert topic_mark(topic) not in as_row(ItemAttributes(topics=others))["topics"]
        assert not set(topic_mark(topic)) & set("%_\\")


def test_only_what_is_new_is_news() -> None:
    attributes = AttributeTable()
    assert not attributes.set("a", UNKNOWN)
    assert attributes.set("a", ItemAttributes("music"))
    assert not attributes.set("a", ItemAttributes("music"))
    assert attributes.set("a", UNKNOWN)
    assert attributes.of("a") == attributes.of("never heard of") == UNKNOWN


def test_what_was_forgotten_is_unknown_and_news_again() -> None:
    attributes = AttributeTable()
    attributes.set("a", ItemAttributes("music"))
    attributes.forget("a")
    attributes.forget("a")
    assert (attributes.of("a"), len(attributes)) == (UNKNOWN, 0)
    assert attributes.set("a", ItemAttributes("music"))


def test_equal_names_are_kept_once() -> None:
    attributes = AttributeTable()
    for item_id in ("a", "b"):
        entry = b'{"item_id": "%s", "channel": "music", "topics": ["t", "u"], "language": "en"}' % item_id.encode()
        attributes.set(item_id, attributes_of(decode(Item, entry)))
    one, other = attributes.of("a"), attributes.of("b")
    assert one == other
    assert one.channel is other.channel
    assert one.topics is other.topics
    assert one.language is other.language

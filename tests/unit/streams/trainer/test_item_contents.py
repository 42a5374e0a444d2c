"""What the trainer keeps of what items say of themselves."""

import threading

import numpy as np
import pytest

from streams.messages import Item
from streams.trainer.item_contents import ENTRY_BYTES, ItemContents
from tests.harness.beside import beside


def test_an_entry_is_kept_as_what_is_read_of_it():
    contents = ItemContents()
    contents.hear(Item("a", "A title", "c", ("t",), description="some words", vector=(3.0, 4.0)))
    content = contents["a"]
    assert (content.ids["channel"], content.title, len(content.words)) == (("c",), "A title", 2)
    np.testing.assert_allclose(content.vector, [0.6, 0.8], atol=1e-3)
    assert content.vector.dtype == np.float16
    kept = contents._entries["a"].item
    assert not kept.description and not kept.vector
    contents.hear(Item("a", "Another"))
    assert contents["a"].title == "Another" and not len(contents["a"].words) and not len(contents["a"].vector)


def test_what_is_taken_down_is_forgotten_with_all_that_it_said():
    contents = ItemContents()
    contents.hear(Item("a", description="some words", vector=(1.0,)))
    contents.forget("a")
    contents.forget("never told")
    assert contents.get("a") is None and len(contents) == contents._bytes == 0
    assert not contents._vectors
    with pytest.raises(KeyError):
        contents["a"]


def test_vectors_are_held_in_bounded_memory_and_those_told_longest_ago_go_first():
    most = 2 * (4 + ENTRY_BYTES)  # two of two numbers
    contents = ItemContents(most_bytes=most)
    for item_id in ("a", "b", "a", "c"):
        contents.hear(Item(item_id, f"Title {item_id}", vector=(1.0, 2.0)))
        assert contents._bytes == sum(contents._vectors.values()) <= most
    assert [len(contents[item_id].vector) for item_id in ("a", "b", "c")] == [2, 0, 2]
    assert contents["b"].title == "Title b", "all else it said is there"


def test_who_reads_while_an_item_is_told_again_sees_it_whole():
    contents, torn = ItemContents(), list[int]()
    item = Item("a", description="some words", vector=(1.0, 2.0))
    contents.hear(item)

    def read(stop: threading.Event) -> None:
        while not stop.is_set():
            content = contents["a"]
            torn.extend([1] * (len(content.words) != 2 or len(content.vector) != 2))

    with beside(read, "reader"):
        for _ in range(2000):
            contents.hear(item)
    assert not torn


def test_without_a_map_to_be_learnt_neither_description_nor_vector_is_looked_at():
    contents = ItemContents(reads_content=False)
    contents.hear(Item("a", "A title", description="some words", vector=(1.0,)))
    content = contents["a"]
    assert (content.title, len(content.words), len(content.vector)) == ("A title", 0, 0)

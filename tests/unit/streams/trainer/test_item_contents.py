"""What the trainer keeps of what items say of themselves."""

import numpy as np
import pytest

from streams.messages import Item
from streams.trainer.item_contents import ItemContents


def test_an_entry_is_kept_as_what_is_read_of_it():
    contents = ItemContents()
    contents.hear(Item("a", "A title", "c", ("t",), description="some words", vector=(3.0, 4.0)))
    content = contents["a"]
    assert (content.ids["channel"], content.title, len(content.words)) == (("c",), "A title", 2)
    np.testing.assert_allclose(content.vector, [0.6, 0.8], atol=1e-3)
    assert content.vector.dtype == np.float16
    kept = contents._items["a"]
    assert not kept.description and not kept.vector
    contents.hear(Item("a", "Another"))
    assert contents["a"].title == "Another" and not len(contents["a"].words) and not len(contents["a"].vector)


def test_what_is_taken_down_is_forgotten_with_all_that_it_said():
    contents = ItemContents()
    contents.hear(Item("a", description="some words", vector=(1.0,)))
    contents.forget("a")
    contents.forget("never told")
    assert contents.get("a") is None and len(contents) == contents._bytes == 0
    assert not contents._words and not contents._vectors
    with pytest.raises(KeyError):
        contents["a"]


def test_vectors_are_held_in_bounded_memory_and_those_told_longest_ago_go_first():
    contents = ItemContents(most_bytes=8)  # two of two numbers
    for item_id in ("a", "b", "a", "c"):
        contents.hear(Item(item_id, f"Title {item_id}", vector=(1.0, 2.0)))
        assert contents._bytes == sum(map(len, contents._vectors.values())) <= 8
    assert [len(contents[item_id].vector) for item_id in ("a", "b", "c")] == [2, 0, 2]
    assert contents["b"].title == "Title b", "all else it said is there"

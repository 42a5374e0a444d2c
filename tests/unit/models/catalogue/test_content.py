from array import array

import msgspec
import numpy as np
import pytest

from models.catalogue.content import (
    BUCKETS,
    IDS_AND_TITLE,
    LARGEST,
    LONGEST_TITLE,
    MOST_IDS,
    MOST_NUMBERS,
    MOST_WORDS,
    WORD_BUCKETS,
    ContentShape,
    ItemContent,
    bag_of,
    grams_of,
    halves_of,
    word_codes,
    words_of,
)
from models.logs.log import items_from_frame
from streams.export.archive import item_frame
from streams.messages import Item, decode, encode


def test_a_title_is_read_as_the_distinct_ngrams_of_its_words_in_lower_case():
    assert grams_of("Ab  ab") == [" ab", "ab ", "b a", " ab ", "ab a", "b ab"]
    assert grams_of(" \t") == grams_of("") == []


def test_each_group_of_features_has_length_one_and_a_bag_is_the_same_everywhere():
    buckets, values = bag_of(ItemContent({"channel": ["c"], "topics": ["s", "t"]}, "a title"))
    assert np.isclose(np.square(values[:3]), [1, 0.5, 0.5]).all()
    assert np.isclose(np.square(values[3:]).sum(), 1)
    assert (buckets[0], values[0]) == (1793, 1.0), "the hash must not change: what is learnt hangs on it"
    assert bag_of(ItemContent({"topics": ["c"]})) != bag_of(ItemContent({"channel": ["c"]}))
    assert bag_of(ItemContent({}, "\ud800 half a pair"))[0], "text that is no text is a title all the same"


def test_what_an_item_costs_is_bounded():
    title = "".join(chr(at) for at in range(0x4E00, 0x4E00 + 5000))
    long = bag_of(ItemContent({"topics": [str(at) for at in range(100)]}, title))
    assert len(long[0]) == len(long[1]) <= MOST_IDS + 2 * LONGEST_TITLE + 2


def test_a_description_is_read_as_its_distinct_words_without_case_and_pairs_where_no_spaces_are():
    assert words_of("The cat, THE hat \u2013 ca\ufb01") == ["the", "cat", "hat", "cafi"]
    assert words_of("\u732b\u306e\u52d5\u753b TV") == ["\u732b\u306e", "\u306e\u52d5", "\u52d5\u753b", "tv"]
    assert words_of(" \t") == words_of("") == []


def test_what_a_description_costs_is_bounded():
    codes = word_codes(" ".join(f"w{at}" for at in range(100_000)))
    assert len(codes) == MOST_WORDS and codes.nbytes == 2 * MOST_WORDS
    assert len(word_codes("x" * 100_000)) == 1


def test_only_a_map_that_has_learnt_from_descriptions_reads_one():
    content = ItemContent({"channel": ["c"]}, "", word_codes("two words"))
    assert bag_of(content, IDS_AND_TITLE) == bag_of(ItemContent({"channel": ["c"]}))
    buckets, values = bag_of(content, ContentShape(words=True))
    assert all(BUCKETS <= bucket < BUCKETS + WORD_BUCKETS for bucket in buckets[1:])
    np.testing.assert_allclose(np.square(values[1:]), [0.5, 0.5])
    assert (buckets[1:], [value > 0 for value in values[1:]]) == ([4710, 5772], [True, True]), "as for ever"


@pytest.mark.parametrize("scale", [1e-12, 1.0, LARGEST / 4])
def test_a_vector_is_kept_at_length_one_whatever_its_scale_and_zeros_say_nothing(scale: float):
    kept = halves_of(scale * np.array([[3.0, -4.0], [0.0, 0.0]]))
    assert kept.dtype == np.float16
    np.testing.assert_allclose(kept, [[0.6, -0.8], [0.0, 0.0]], atol=1e-3)
    assert halves_of(()).shape == (0,)


def test_what_a_message_takes_and_what_is_read_of_it_have_one_limit():
    item = msgspec.inspect.type_info(Item)
    field = next(field.type for field in item.fields if field.name == "vector")
    vector = next(kind for kind in field.types if isinstance(kind, msgspec.inspect.VarTupleType))
    assert vector.max_length == MOST_NUMBERS
    assert (vector.item_type.ge, vector.item_type.le) == (-LARGEST, LARGEST)
    with_largest = decode(Item, encode(Item("i", vector=(LARGEST, -LARGEST))))
    frame = items_from_frame(item_frame([with_largest], [array("f", with_largest.vector)]))
    assert items_from_frame(frame)["vector"].to_list()[0] == pytest.approx([LARGEST, -LARGEST])


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("दिन दान", ["दिन", "दान"]),
        ("İstanbul", ["i\u0307stanbul"]),
        ("หมี หมู", ["หม", "มี", "มู"]),
        ("يَوْم", ["يَوْم"]),
    ],
)
def test_marks_that_are_vowels_and_tones_belong_to_their_words(description: str, words: list[str]):
    assert words_of(description) == words

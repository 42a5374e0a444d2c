import numpy as np

from models.catalogue.content import BUCKETS, LONGEST_TITLE, MOST_IDS, bag_of, grams_of, matrix_of


def test_a_title_is_read_as_the_distinct_ngrams_of_its_words_in_lower_case():
    assert grams_of("Ab  ab") == [" ab", "ab ", "b a", " ab ", "ab a", "b ab"]
    assert grams_of(" \t") == grams_of("") == []


def test_each_group_of_features_has_length_one_and_a_bag_is_the_same_everywhere():
    buckets, values = bag_of({"channel": ["c"], "topics": ["s", "t"]}, "a title")
    assert np.isclose(np.square(values[:3]), [1, 0.5, 0.5]).all()
    assert np.isclose(np.square(values[3:]).sum(), 1)
    assert (buckets[0], values[0]) == (1793, 1.0), "the hash must not change: what is learnt hangs on it"
    assert bag_of({"topics": ["c"]}) != bag_of({"channel": ["c"]})
    assert bag_of({}, "\ud800 half a pair")[0], "text that is no text is a title all the same"


def test_what_an_item_costs_is_bounded():
    long = bag_of({"topics": [str(at) for at in range(100)]}, "".join(chr(at) for at in range(0x4E00, 0x4E00 + 5000)))
    assert len(long[0]) == len(long[1]) <= MOST_IDS + 2 * LONGEST_TITLE + 2


def test_bags_as_a_matrix_add_up_what_shares_a_bucket():
    matrix = matrix_of([([1, 1], [0.5, 0.25]), ([], []), ([BUCKETS - 1], [2.0])])
    assert matrix.shape == (3, BUCKETS)
    dense = matrix.toarray()
    assert dense[0, 1] == 0.75 and dense[2, -1] == 2.0 and dense.sum() == 2.75

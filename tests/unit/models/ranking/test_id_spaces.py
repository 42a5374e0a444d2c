import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ranking.id_spaces import IdSpaces, most_frequent, width_of
from models.ranking.ranking_batch import Codes


def test_the_most_frequent_names_are_kept_and_rare_ones_are_not():
    counts, names = np.array([99, 5, 3, 7, 5, 4]), ["", "a", "b", "c", "d", "e"]
    assert most_frequent(counts, names, most=10, least=4) == ["c", "a", "d", "e"], "ties in their order, none empty"
    assert most_frequent(counts, names, most=2, least=4) == ["c", "a"], "what has no name takes no place"
    assert most_frequent(counts, names, most=2, least=100) == []
    assert most_frequent(np.zeros(1, np.int64), [""], most=2, least=1) == []


@pytest.mark.parametrize(("size", "width"), [(1, 2), (2, 2), (64, 4), (1024, 6), (2**20, 12), (2**30, 18)])
def test_a_width_grows_with_the_logarithm_of_its_space(size: int, width: int):
    assert width_of(size) == width


def test_an_unknown_name_a_missing_one_and_an_unknown_space_have_code_0():
    spaces = IdSpaces({"item": ["b", "a"]})
    named = Codes(np.array([[0, 1, 2], [3, 2, 0]]), ["a", "b", "new"], first=1)
    assert spaces.codes("item", named).tolist() == [[0, 2, 1], [0, 1, 0]]
    assert spaces.codes("nowhere", named).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert spaces.codes("item", Codes(np.array([0, 0]), [], first=1)).tolist() == [0, 0]
    assert spaces.sizes == {"item": 3}


name = st.sampled_from(["", "a", "b", "c", "d", "e"])


@settings(max_examples=150, deadline=None)
@given(st.lists(name, unique=True), st.lists(st.lists(name, max_size=4), max_size=5), st.sampled_from([0, 1]))
def test_a_list_of_names_that_grows_is_numbered_as_if_it_were_new_each_time(
    known: list[str], pieces: list[list[str]], first: int
):
    spaces = IdSpaces({"s": [each for each in known if each]})
    names: list[str] = []
    for piece in pieces:
        names += piece
        codes = np.arange(first, first + len(names))
        fresh = IdSpaces(spaces.names).codes("s", Codes(codes, list(names), first))
        np.testing.assert_array_equal(spaces.codes("s", Codes(codes, names, first)), fresh)
        assert fresh.tolist() == [spaces.names["s"].index(n) + 1 if n in spaces.names["s"] else 0 for n in names]


def test_another_list_of_the_same_space_is_numbered_by_its_own_names():
    spaces = IdSpaces({"s": ["a", "b"]})
    for names, expected in ((["", "a", "b"], [1, 2]), (["", "b", "a"], [2, 1]), (["", "a", "b"], [1, 2])):
        assert spaces.codes("s", Codes(np.array([1, 2]), names)).tolist() == expected

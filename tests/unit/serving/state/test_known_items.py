from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.ranking.ranker import ItemParts
from models.ranking.ranking_batch import Codes
from serving.state import known_items
from serving.state.known_items import KnownItems

Moment = tuple[int, ...]


class Source:
    """What is known of an item is a number that its row and the moment give; rows that are learnt are noted."""

    def __init__(self) -> None:
        self.known, self.learnt = KnownItems(), list[list[int]]()

    def ask(self, rows: list[int], moment: Moment = (1, 0)) -> ItemParts:
        asked = np.array(rows, np.int64)
        return self.known.parts(self.known.slots(asked, moment, self._learn(asked, moment)))

    def _learn(self, rows: np.ndarray, moment: Moment) -> Callable[[np.ndarray], ItemParts]:
        def learn(places: np.ndarray) -> ItemParts:
            self.learnt.append(rows[places].tolist())
            return parts_of(rows[places], moment)

        return learn


def parts_of(rows: np.ndarray, moment: Moment) -> ItemParts:
    value = rows + 1000.0 * moment[0]
    hidden = torch.from_numpy(np.stack([value, -value])[:, :, None].repeat(3, axis=2))  # [2, N, 3]
    ids = {"candidate": Codes(rows[:, None] + 1, ["name"], first=1)}
    return ItemParts(value[:, None].astype(np.float32), ids, hidden, value)


def check(found: ItemParts, rows: list[int], moment: Moment = (1, 0)) -> None:
    wanted = parts_of(np.array(rows, np.int64), moment)
    np.testing.assert_array_equal(found.numbers, wanted.numbers)
    np.testing.assert_array_equal(found.shown, wanted.shown)
    np.testing.assert_array_equal(found.hidden.numpy(), wanted.hidden.numpy())
    np.testing.assert_array_equal(found.ids["candidate"].codes, wanted.ids["candidate"].codes)


def test_an_item_is_learnt_once_however_many_requests_have_it_among_their_candidates():
    source = Source()
    check(source.ask([4, 2, 4]), [4, 2, 4])
    check(source.ask([2, 9, 4]), [2, 9, 4])
    assert source.learnt == [[2, 4], [9]]


def test_another_moment_begins_anew():
    source = Source()
    source.ask([4, 2])
    check(source.ask([2], (2, 0)), [2], (2, 0))
    check(source.ask([4], (2, 1)), [4], (2, 1))
    assert source.learnt == [[2, 4], [2], [4]]


def test_an_item_that_the_catalogue_describes_anew_is_learnt_again():
    source = Source()
    source.ask([4, 2])
    source.known.forget(2)
    source.known.forget(77)  # never asked for
    check(source.ask([4, 2]), [4, 2])
    assert source.learnt == [[2, 4], [2]]


def test_items_that_the_catalogue_does_not_know_are_learnt_each_for_itself_each_time():
    source = Source()
    for _ in range(2):
        check(source.ask([-1, 5, -1]), [-1, 5, -1])
    assert source.learnt == [[-1, -1, 5], [-1, -1]]


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_items, "MOST", 4)
    source = Source()
    for rows in ([1, 2, 3], [3, 4], [1, 2, 3, 4, 5, 6]):
        check(source.ask(rows), rows)
    assert source.learnt == [[1, 2, 3], [3, 4], [1, 2, 3, 4, 5, 6]]


@given(st.lists(st.lists(st.integers(-1, 400), min_size=1, max_size=300), max_size=6))
def test_whatever_is_asked_for_is_what_it_would_be_if_it_were_not_kept(asked: list[list[int]]):
    source = Source()
    for rows in asked:
        check(source.ask(rows), rows)

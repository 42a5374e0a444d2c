"""The protocol of leave one out: who is asked, with what history, and for what."""

import numpy as np
import pytest

from models.evaluation.leave_one_out import discounted_gain, hold_out
from models.evaluation.split import BacktestError, validation_history
from models.logs.sequences import Sequences


def sequences(*watched: str) -> Sequences:
    """One text of letters a user."""
    items = sorted(set("".join(watched)))
    users = np.repeat(np.arange(len(watched)), [len(each) for each in watched])
    rows = np.array([items.index(item) for item in "".join(watched)], np.int64)
    return Sequences([f"u{n}" for n in range(len(watched))], items, users, rows)


def asked_of(held, history, at: int) -> dict[str, tuple[str, str]]:
    """By user: the history that is asked with and the item that was watched then."""
    queries = history.queries(history.next_unseen(at))
    letters = held.item_ids.to_list()
    return {
        held.user_ids[user]: ("".join(letters[item] for item in mine if item >= 0), letters[target])
        for user, mine, target in zip(queries.users.tolist(), queries.histories, queries.targets, strict=True)
    }


def test_the_last_watch_is_the_test_and_the_one_before_it_validates():
    held = hold_out(sequences("abcd", "ab", "cba"))
    parts = held.parts
    assert asked_of(held, held.history, parts.cut) == {"u0": ("abc", "d"), "u2": ("cb", "a")}
    past = validation_history(held.history.stream, parts)
    assert asked_of(held, past, parts.validation) == {"u0": ("ab", "c"), "u2": ("c", "b")}
    learnt = held.training_set.dataset
    rows = [(int(u), held.item_ids[int(i)]) for u, i in zip(learnt.users, learnt.items, strict=True)]
    assert rows[: parts.validation] == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "c")], "who is short is learnt from"


def test_a_repeat_is_no_case_and_the_catalogue_is_all_of_the_log():
    held = hold_out(sequences("abca", "abcd"))
    assert list(asked_of(held, held.history, held.parts.cut)) == ["u1"]
    assert held.parts.end - held.parts.cut == 2 and held.catalogue == 4
    assert held.training_set.catalogue.item_ids == ["a", "b", "c", "d"]


def test_no_times_are_made_up():
    held = hold_out(sequences("abcd", "bcda"))
    assert not held.history.stream.event_ms.any() and not held.training_set.dataset.event_ms.any()


def test_rows_of_a_log_in_time_are_taken_user_by_user():
    one = sequences("abcd", "cba")
    mixed = np.array([0, 4, 1, 5, 2, 6, 3])
    other = hold_out(Sequences(one.user_ids, one.item_ids, one.users[mixed], one.items[mixed]))
    assert asked_of(other, other.history, other.parts.cut) == {"u0": ("abc", "d"), "u1": ("cb", "a")}


def test_a_log_of_short_users_is_refused():
    with pytest.raises(BacktestError, match="no user has 3 watches"):
        hold_out(sequences("ab", "c"))


def test_gain_is_discounted_by_the_logarithm_of_the_place():
    found = discounted_gain(np.array([0, 1, 2, 9, 10, -1]), 10)
    np.testing.assert_allclose(found, [1, 1 / np.log2(3), 0.5, 1 / np.log2(11), 0, 0])

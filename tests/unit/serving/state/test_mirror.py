import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.state.mirror import Mirror

DIM = 5


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def some(items: int = 50, seed: int = 1) -> Mirror:
    vectors = np.random.default_rng(seed).standard_normal((items, DIM)).astype(np.float32)
    return Mirror([f"i{at}" for at in range(items)], vectors)


def queries(count: int, seed: int = 2) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    found[:, -1] = 1  # the user's side of popularity
    return found


def naive(mirror: Mirror, query: np.ndarray, limit: int, hidden: set[str]) -> list[str]:
    rows = [at for at, item_id in enumerate(mirror.item_ids) if item_id not in hidden]
    scores = mirror.vectors(np.array(rows, np.int64)) @ query
    return [mirror.item_ids[rows[at]] for at in np.argsort(-scores, kind="stable")[:limit]]


@pytest.mark.parametrize("limit", [1, 7, 49, 50, 51, 1000])
def test_a_search_is_exact(limit: int) -> None:
    mirror = some()
    for query, (item_ids, scores) in zip(queries(3), mirror.search(queries(3), limit), strict=True):
        assert item_ids == naive(mirror, query, limit, set())
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        np.testing.assert_allclose(scores, mirror.vectors(mirror.rows(item_ids)) @ query, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("items", [1, 8, 9, 10, 11, 50])
def test_a_large_one_is_searched_in_parts_with_the_same_answers(monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    whole = some(items).search(queries(4), 7)
    monkeypatch.setattr("serving.state.mirror.ROWS_OF_A_PART", 10)
    for (ids, scores), (expected, expected_scores) in zip(some(items).search(queries(4), 7), whole, strict=True):
        assert ids == expected
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)


def test_what_is_down_is_never_found_and_comes_back_with_its_vector() -> None:
    mirror = some()
    [(before, _)] = mirror.search(queries(1), 3)
    for item_id in before:
        mirror.set_down(item_id, True)
    assert mirror.search(queries(1), 1000)[0][0] == naive(mirror, queries(1)[0], 1000, set(before))
    mirror.put(before[0], mirror.vectors(mirror.rows([before[0]]))[0], down=True)  # a row that comes late
    assert before[0] not in mirror.search(queries(1), 1000)[0][0]
    for item_id in before:
        mirror.set_down(item_id, False)
    assert mirror.search(queries(1), 3)[0][0] == before


def test_only_allowed_rows_are_found_even_when_they_are_few() -> None:
    mirror = some()
    allowed = np.zeros(len(mirror), np.bool_)
    allowed[[3, 9]] = True
    [(item_ids, _), (everything, _)] = mirror.search(queries(2), 10, [allowed, None])
    assert set(item_ids) == {"i3", "i9"}
    assert len(everything) == 10
    mirror.set_down("i3", True)
    assert mirror.search(queries(1), 10, [allowed])[0][0] == ["i9"]


def test_among_many_the_best_are_found_by_groups_and_ties_stay_in_the_order_of_rows() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.integers(-2, 3, (1003, DIM)).astype(np.float32)  # of few values: many ties
    mirror = Mirror([f"i{at}" for at in range(len(vectors))], vectors)
    for limit in (1, 20, 83, 250):
        for query, (item_ids, _) in zip(queries(3).round(), mirror.search(queries(3).round(), limit), strict=True):
            assert item_ids == naive(mirror, query, limit, set())


def test_equal_scores_come_in_the_order_of_rows() -> None:
    mirror = Mirror(list("abcd"), np.ones((4, 2), np.float32))
    assert mirror.search(np.ones((1, 2), np.float32), 3)[0][0] == ["a", "b", "c"]


def test_scores_of_items_that_are_not_here_are_missing() -> None:
    [scores] = some().scores(queries(1), [["i4", "unheard"]])
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1])


def test_a_vector_of_another_length_or_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="5 finite numbers"):
        some().put("x", vector(1, 2))
    with pytest.raises(ValueError, match="5 finite numbers"):
        some().put("x", vector(1, 2, 3, 4, np.nan))


def test_without_items_nothing_is_found() -> None:
    mirror = Mirror([], np.zeros((0, DIM), np.float32))
    assert mirror.search(queries(2), 5)[0][0] == []
    assert np.isnan(mirror.scores(queries(1), [["x"]])[0]).all()
    mirror.put("x", queries(1)[0])
    assert mirror.search(queries(1), 5)[0][0] == ["x"]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["put", "remove", "down", "up"]),
        st.sampled_from([f"i{at}" for at in range(8)]),
        st.integers(0, 1000),
    ),
    max_size=40,
)


@given(CHANGES)
def test_after_any_changes_it_is_what_they_say(changes: list[tuple[str, str, int]]) -> None:
    mirror = some(4)
    known = {item_id: mirror.vectors(mirror.rows([item_id]))[0] for item_id in mirror.item_ids}
    down: set[str] = set()
    for what, item_id, seed in changes:
        if what == "put":
            known[item_id] = queries(1, seed)[0]
            mirror.put(item_id, known[item_id], down=item_id in down)
        elif what == "remove":
            known.pop(item_id, None)
            mirror.remove(item_id)
        else:
            down = down | {item_id} if what == "down" else down - {item_id}
            mirror.set_down(item_id, what == "down")
    assert sorted(mirror.item_ids) == sorted(known)
    for item_id, row in known.items():
        np.testing.assert_array_equal(mirror.vectors(mirror.rows([item_id]))[0], row)
    [(item_ids, _)] = mirror.search(queries(1), 100)
    assert set(item_ids) == set(known) - down


def test_a_removed_rows_facts_go_with_it() -> None:
    mirror = some(3)
    for row, item_id in enumerate(mirror.item_ids[:]):
        mirror.set_catalogue_row(item_id, 10 + row)
    mirror.remove("i0")
    assert dict(zip(mirror.item_ids, mirror.catalogue_rows.tolist(), strict=True)) == {"i2": 12, "i1": 11}

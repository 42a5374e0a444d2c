import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.state import mirror as mirror_module
from serving.state.mirror import Mirror

DIM = 5


@pytest.fixture(autouse=True, params=["float32", "int8"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How rows are compared: each promise holds for both."""
    monkeypatch.setattr(mirror_module, "has_int8_product", lambda: request.param == "int8")
    monkeypatch.setattr(mirror_module, "MANY_ROWS", 1)
    monkeypatch.setattr(mirror_module, "FEW_QUERIES", 1000)
    return str(request.param)


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
    monkeypatch.setattr("serving.state.int8_rows.ROWS_OF_A_PART", 10)
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


def test_items_that_come_in_blocks_are_as_if_they_had_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "ROOM", 8)  # it is outgrown
    whole, vectors = some(60), some(60).vectors(np.arange(60))
    blocks = Mirror([], np.zeros((0, DIM), np.float32))
    for rows in (slice(0, 3), slice(3, 50), slice(50, 60)):
        blocks.extend(whole.item_ids[rows], vectors[rows])
    for mirror in (whole, blocks):
        mirror.put("i7", vector(1, 2, 3, 4, 5))
        mirror.put("new", vector(5, 4, 3, 2, 1))
        mirror.set_down("i9", True)
    assert blocks.item_ids == whole.item_ids
    assert blocks.rows(whole.item_ids).tolist() == [*range(61)]
    np.testing.assert_array_equal(blocks.vectors(np.arange(61)), whole.vectors(np.arange(61)))
    for ours, theirs in zip(blocks.search(queries(3), 20), whole.search(queries(3), 20), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])


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


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def whole(rng: np.random.Generator, rows: int, dim: int, shape: str) -> np.ndarray:
    """Vectors of few bits: every sum of products is exact in float32, in any order."""
    found = rng.integers(-3, 4, (rows, dim)).astype(np.float32)
    if shape == "lengths":
        found[:, :-1] *= 2.0 ** rng.integers(-3, 4, (rows, 1))
    elif shape == "popular":
        found[:, -1] *= 2.0 ** rng.integers(0, 9, rows)
    elif shape == "one number":
        found[:, 0] *= 256
    elif shape == "alike":
        found[:] = found[rng.integers(0, 3, rows)]
    elif shape == "zero":
        found[rng.random(rows) < 0.7] = 0
    elif shape == "small":
        found *= np.float32(2.0**-60)
    return found


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["even", "lengths", "popular", "one number", "alike", "zero", "small"]),
    st.sampled_from([1, 10, 60, 500]),
    st.sampled_from([2, 65, 257]),
)
def test_int8_finds_the_same_items_with_the_same_scores_as_float32_after_any_changes(
    seed: int, shape: str, limit: int, dim: int
) -> None:
    rng = np.random.default_rng(seed)
    ids, vectors = [f"i{at}" for at in range(300)], whole(rng, 300, dim, shape)
    asked = whole(rng, 3, dim, "even")
    asked[:, -1] = 1
    with pytest.MonkeyPatch.context() as patch:
        mirrors = []
        for has in (True, False):
            patch.setattr(mirror_module, "has_int8_product", lambda has=has: has)
            mirrors.append(Mirror(ids, vectors))
    for _ in range(3):
        change(mirrors, np.random.default_rng(seed), whole(rng, 40, dim, shape))
        allowed = [None, rng.random(len(mirrors[0])) < 0.5, rng.random(len(mirrors[0])) < 0.02]
        ours, theirs = (mirror.search(asked, limit, allowed) for mirror in mirrors)
        for (found, scores), (expected, expected_scores) in zip(ours, theirs, strict=True):
            assert found == expected
            assert scores.tolist() == expected_scores.tolist()


def change(mirrors: list[Mirror], rng: np.random.Generator, vectors: np.ndarray) -> None:
    """The same to each: rows put anew and for the first time, taken down, brought back, removed."""
    names = [f"i{at}" for at in rng.integers(0, 330, len(vectors))]
    kinds = rng.integers(0, 5, len(vectors)).tolist()
    for mirror in mirrors:
        for name, kind, row in zip(names, kinds, vectors, strict=True):
            if kind < 2:
                mirror.put(name, row, down=bool(kind))
            elif kind < 4:
                mirror.set_down(name, kind == 2)
            else:
                mirror.remove(name)


@pytest.mark.parametrize("seed", range(5))
def test_int8_misses_nothing_among_vectors_like_those_of_towers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items in clusters, norms and popularity that differ, queries near items: float64 says what is best."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, 129)).astype(np.float32)
    vectors = centres[rng.integers(0, 40, 5000)] + 0.3 * rng.standard_normal((5000, 129)).astype(np.float32)
    vectors[:, :-1] *= rng.gamma(4, 0.25, (5000, 1))
    vectors[:, -1] = np.log(rng.pareto(1, 5000) + 1e-3)
    asked = vectors[rng.integers(0, 5000, 20)] + 0.3 * rng.standard_normal((20, 129)).astype(np.float32)
    asked[:, -1] = 1
    monkeypatch.setattr(mirror_module, "has_int8_product", lambda: True)
    mirror = Mirror([f"i{at}" for at in range(5000)], vectors)
    exact = asked.astype(np.float64) @ vectors.T.astype(np.float64)
    for scores, (found, found_scores) in zip(exact, mirror.search(asked, 200), strict=True):
        rows = mirror.rows(found)
        least = np.sort(scores)[-200]
        np.testing.assert_allclose(found_scores, scores[rows], rtol=1e-5, atol=1e-4)
        assert (scores[rows] >= least - 1e-4).all()
        assert len(set(found)) == 200


def test_a_row_that_changes_is_found_by_what_it_is_now() -> None:
    mirror = some(200)
    [query] = asked = queries(1)
    mirror.search(asked, 5)
    mirror.put("i7", 50 * query)
    mirror.put("new", 40 * query)
    assert mirror.search(asked, 2)[0][0] == ["i7", "new"]
    mirror.remove("i7")
    assert mirror.search(asked, 1)[0][0] == ["new"]
    mirror.remove("new")
    assert mirror.search(asked, 1000)[0][0] == naive(mirror, query, 1000, set())


@pytest.mark.parametrize(("rows", "asked", "is_int8"), [(99, 1, False), (100, 2, True), (100, 3, False)])
def test_many_rows_and_few_queries_are_compared_in_int8(
    monkeypatch: pytest.MonkeyPatch, way: str, rows: int, asked: int, is_int8: bool
) -> None:
    monkeypatch.setattr(mirror_module, "MANY_ROWS", 100)
    monkeypatch.setattr(mirror_module, "FEW_QUERIES", 2)
    compared: list[int] = []
    products = Mirror._products
    monkeypatch.setattr(Mirror, "_products", lambda self, own: compared.append(len(own)) or products(self, own))
    some(rows).search(queries(asked), 5)
    assert bool(compared) is not (is_int8 and way == "int8")

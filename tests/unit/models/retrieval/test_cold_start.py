import numpy as np

from models.catalogue.catalogue import Catalogue
from models.catalogue.content import BUCKETS, ContentShape, ItemContent, bag_of, halves_of
from models.retrieval.cold_start import (
    RIDGE,
    SHRINK,
    TRUSTED,
    Admission,
    ColdStart,
    ContentMap,
    by_features,
    by_items,
    fit_content,
    matrix_of,
    row_of,
)


def cold_start() -> ColdStart:
    catalogue = Catalogue()
    for item_id, channel, topics in (("a", "c", ["t"]), ("b", "c", []), ("d", "e", ["t", "s"]), ("new", "f", ["r"])):
        catalogue.upsert(item_id, channel=channel, topics=topics)
    vectors = np.array([[1.0], [3.0], [8.0], [99.0]], np.float32)
    learnt = np.array([True, True, True, False])
    return ColdStart(vectors, vectors[:, 0], -vectors, catalogue=catalogue, learnt=learnt)


def test_a_new_item_starts_at_the_mean_of_its_channel_and_its_topics():
    overall = 4.0
    channel, topic = (1 + 3 + SHRINK * overall) / (2 + SHRINK), (1 + 8 + SHRINK * overall) / (2 + SHRINK)
    start = cold_start().place(ItemContent({"channel": ["c"], "topics": ["t", "unheard"]}))
    np.testing.assert_allclose(start.vector, [(channel + topic) / 2], rtol=1e-6)
    np.testing.assert_allclose(start.bias, (channel + topic) / 2, rtol=1e-6)
    np.testing.assert_allclose(start.query_row, [-(channel + topic) / 2], rtol=1e-6)


def test_an_item_of_which_nothing_is_known_starts_at_the_mean_of_all():
    np.testing.assert_allclose(cold_start().place(ItemContent({})).vector, [4.0])
    np.testing.assert_allclose(
        cold_start().place(ItemContent({"channel": ["unheard"], "topics": ["unheard"], "music": ["1"]})).vector, [4.0]
    )


def test_items_that_have_learnt_nothing_do_not_count():
    np.testing.assert_allclose(cold_start().place(ItemContent({"channel": ["f"], "topics": ["r"]})).vector, [4.0])


def test_every_column_that_says_something_counts_alike():
    catalogue = Catalogue()
    catalogue.upsert("a", channel="c", ids={"music": ["m"]})
    catalogue.upsert("b", channel="d", ids={"music": ["n"]})
    vectors = np.array([[0.0], [4.0]], np.float32)
    start = ColdStart(vectors, vectors[:, 0], vectors, catalogue=catalogue, learnt=np.array([True, True]))
    channel, music = (0 + SHRINK * 2) / (1 + SHRINK), (4 + SHRINK * 2) / (1 + SHRINK)
    placed = start.place(ItemContent({"channel": ["c"], "topics": (), "music": ["n"]}))
    np.testing.assert_allclose(placed.vector, [(channel + music) / 2], rtol=1e-6)


def test_means_of_many_rows_are_those_of_one_block(monkeypatch):
    whole = cold_start().place(ItemContent({"channel": ["c"], "topics": ["t"]}))
    monkeypatch.setattr("models.retrieval.cold_start.AT_ONCE", 1)
    np.testing.assert_allclose(
        cold_start().place(ItemContent({"channel": ["c"], "topics": ["t"]})).vector, whole.vector
    )


def test_bags_as_a_matrix_add_up_what_shares_a_bucket():
    matrix = matrix_of([([1, 1], [0.5, 0.25]), ([], []), ([BUCKETS - 1], [2.0])])
    assert matrix.shape == (3, BUCKETS)
    dense = matrix.toarray()
    assert dense[0, 1] == 0.75 and dense[2, -1] == 2.0 and dense.sum() == 2.75


def test_what_a_feature_adds_to_the_mean_is_its_items_share_of_the_ridge():
    bags = matrix_of([([0], [1.0]), ([1], [1.0])])
    content = fit_content(bags, np.array([[1.0], [3.0]]), np.array([TRUSTED, TRUSTED]))
    added = 0.5 * 1 / (0.5 + RIDGE)  # each counts half, and lies 1 beside the mean
    np.testing.assert_allclose(content[[0, 1, 2, -1], 0], [-added, added, 0, 2], rtol=1e-6)
    assert content.shape == (BUCKETS + 1, 1)
    assert content.dtype == np.float32
    np.testing.assert_allclose(row_of(content, ([1, 0], [2.0, 1.0])), [2 + added], rtol=1e-6)
    np.testing.assert_allclose(row_of(content, bag_of(ItemContent())), [2], err_msg="of nothing, the mean")


def test_items_that_were_watched_more_teach_more():
    content = fit_content(matrix_of([([0], [1.0])] * 2), np.array([[0.0], [1.0]]), np.array([3.0, 3000.0]))
    assert row_of(content, ([0], [1.0]))[0] > 0.6


def test_both_ways_to_solve_the_ridge_find_the_same(monkeypatch):
    monkeypatch.setattr("models.retrieval.cold_start.DENSE_AT_ONCE", 7)
    rng = np.random.default_rng(3)
    bags = matrix_of([([int(own)], [0.5]) for own in rng.integers(0, 9, 30)])[:, :9]
    vectors, targets, trust = halves_of(rng.normal(size=(30, 4))), rng.normal(size=(30, 2)), rng.random(30)
    for own in (vectors, vectors[:, :0]):
        found = [solve(bags, own, trust, targets) for solve in (by_items, by_features)]
        assert found[0].shape == (9 + own.shape[1], 2)
        np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-12)


def test_vectors_teach_what_the_same_numbers_as_hashed_features_would():
    """The ridge does not know which of its columns are dense."""
    rng = np.random.default_rng(3)
    ids, vectors = rng.integers(0, 5, 30), halves_of(rng.normal(size=(30, 4)))
    rows, watches = rng.normal(size=(30, 2)), rng.integers(1, 50, 30).astype(np.float64)
    bags = [([int(own)], [1.0]) for own in ids]
    dense = fit_content(matrix_of(bags), rows, watches, vectors)
    columns = [*range(BUCKETS - 4, BUCKETS)]
    sparse = fit_content(
        matrix_of((own + columns, one + row) for (own, one), row in zip(bags, vectors.tolist(), strict=True)),
        rows,
        watches,
    )
    assert dense.shape == (BUCKETS + 4 + 1, 2)
    np.testing.assert_allclose(dense[BUCKETS:-1], sparse[columns], atol=1e-6)
    np.testing.assert_allclose(dense[[*range(5), -1]], sparse[[*range(5), -1]], atol=1e-6)
    said = ItemContent(vector=vectors[0])
    expected = dense[-1] + vectors[0].astype(np.float32) @ dense[BUCKETS:-1]
    learnt = ContentMap(dense, ContentShape(vector=4))
    np.testing.assert_allclose(learnt.row_of(said), expected, rtol=1e-5)
    np.testing.assert_allclose(
        learnt.row_of(said._replace(vector=vectors[0, :3])), dense[-1], err_msg="of another length"
    )


def test_with_a_map_the_title_places_vector_and_query_row_and_the_bias_stays_the_means():
    rng = np.random.default_rng(1)
    names = ["cooking pasta", "pasta at home", "racing cars", "fast cars"] * 20
    learnt = np.repeat([[1.0], [-1.0]], 2, axis=0).repeat(2, axis=1)[[0, 1, 2, 3] * 20] + rng.normal(0, 0.1, (80, 2))
    content = fit_content(matrix_of(bag_of(ItemContent({}, name)) for name in names), learnt, np.full(80, 100.0))
    catalogue = Catalogue()
    catalogue.upsert("a", channel="c")
    table = np.array([[5.0]], np.float32)
    start = ColdStart(
        table, table[:, 0], table, catalogue=catalogue, learnt=np.array([True]), content=ContentMap(content)
    )
    pasta, cars = (
        start.place(ItemContent({}, "Pasta for two")),
        start.place(ItemContent({"channel": ["c"]}, "old cars")),
    )
    assert pasta.vector[0] > 0.3 > -0.3 > cars.vector[0]
    assert pasta.query_row[0] > 0.3 > -0.3 > cars.query_row[0]
    assert pasta.bias == cars.bias == 5.0


def test_an_item_is_admitted_with_its_nth_watch_and_then_forgotten():
    admission = Admission(3)
    assert [admission.admits("a") for _ in range(2)] == [False, False]
    assert not admission.admits("b")
    assert admission.admits("a")
    assert len(admission) == 1
    assert Admission(1).admits("a"), "at once where one is enough"


def test_memory_is_bounded_and_the_longest_waiting_is_forgotten_first():
    admission = Admission(2, capacity=2)
    for item in ("a", "b", "c"):
        assert not admission.admits(item)
    assert len(admission) == 2
    assert admission.admits("b")
    assert not admission.admits("a")  # its first watch was forgotten

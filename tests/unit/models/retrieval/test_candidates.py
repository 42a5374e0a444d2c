import numpy as np
import pytest

from models.logs.timeline import HISTORY
from models.release.bundle import Bundle
from tests.unit.models.samples import START_MS, Viewer, Watch, watched


def vectors(bundle: Bundle, *viewers: Viewer) -> np.ndarray:
    return bundle.model.user_vectors(viewers, START_MS)


def test_vectors_have_the_manifests_dimension_and_the_users_side_ends_in_one(bundle: Bundle):
    users = vectors(bundle, watched("i1"), Viewer())
    assert users.shape == (2, bundle.manifest.dim)
    assert users.dtype == np.float32
    assert (users[:, -1] == 1).all()
    assert bundle.model.item_vectors().shape == (bundle.manifest.items, bundle.manifest.dim)


def test_an_empty_history_and_one_of_unknown_items_have_the_same_finite_vector(bundle: Bundle):
    users = vectors(bundle, Viewer(), watched("never-heard-of"))
    assert np.isfinite(users).all()
    np.testing.assert_array_equal(users[0], users[1])


def test_batch_composition_does_not_matter(bundle: Bundle):
    viewers = [watched(), watched("i3"), watched(*[f"i{n % 60}" for n in range(80)]), watched("i1", "i2")]
    together = vectors(bundle, *viewers)
    for viewer, vector in zip(viewers, together, strict=True):
        np.testing.assert_allclose(vectors(bundle, viewer)[0], vector, atol=1e-6)


def test_only_the_newest_completed_watches_count(bundle: Bundle):
    newest = [f"i{n % 60}" for n in range(HISTORY)]
    skipped = Viewer([Watch("i1"), Watch("i2", completed=False)])
    np.testing.assert_array_equal(
        vectors(bundle, skipped, watched("i59", *newest)), vectors(bundle, watched("i1"), watched(*newest))
    )


def test_the_index_vector_is_the_embedding_with_bias_and_popularity_in_one_number(bundle: Bundle):
    model = bundle.model
    item = model.item_vectors(np.array([5]))[0]
    np.testing.assert_array_equal(item[:-1], model.vectors[5])
    np.testing.assert_allclose(item[-1], model.bias[5] + model.popularity.log_share(np.array([5]))[0])


def test_a_query_row_of_a_new_item_counts_from_then_on(bundle: Bundle):
    before = vectors(bundle, watched("i1", "new"))
    row = np.full(bundle.model.dim - 1, 0.5, np.float32)
    bundle.model.apply_query_row("new", row)
    assert (vectors(bundle, watched("i1", "new")) != before).any()
    np.testing.assert_array_equal(bundle.model.query_row("new"), row)
    before = vectors(bundle, watched("i1"))
    bundle.model.apply_query_row("i1", bundle.model.query_row("i1") + 1)
    assert (vectors(bundle, watched("i1")) != before).any(), "also of a known one"


@pytest.mark.parametrize("row", [np.zeros(3, np.float32), np.full(8, np.nan, np.float32)])
def test_a_query_row_that_cannot_be_is_refused(bundle: Bundle, row: np.ndarray):
    with pytest.raises(ValueError, match="8 finite numbers"):
        bundle.model.apply_query_row("new", row)

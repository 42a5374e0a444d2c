import numpy as np
import pytest

from models.bundle import Bundle
from models.catalogue import Catalogue
from models.ranker import CAP_S, ItemStatistics, Ranker, RankingQuery, serve_seconds
from tests.models.samples import START_MS, Viewer, watched


def query(viewer: Viewer, *item_ids: str, scores: list[float] | None = None) -> RankingQuery:
    given = np.zeros(len(item_ids), np.float32) if scores is None else np.array(scores, np.float32)
    return RankingQuery(viewer, START_MS + 10_000_000, item_ids, given)


def test_each_query_gets_its_seconds_in_the_order_of_its_items(bundle: Bundle):
    queries = [query(watched("i1", "i5"), "i9", "i2"), query(Viewer(), "i3"), query(Viewer())]
    answers = bundle.ranker.expected_watch_s(queries)
    assert [len(answer) for answer in answers] == [2, 1, 0]
    assert all(answer.dtype == np.float32 for answer in answers)


def test_what_else_is_in_the_batch_and_the_order_of_candidates_do_not_matter(bundle: Bundle):
    one, other = query(watched("i1", "i5"), "i9", "i2", "i4"), query(Viewer(), *[f"i{n}" for n in range(50)])
    alone = bundle.ranker.expected_watch_s([one])[0]
    np.testing.assert_allclose(bundle.ranker.expected_watch_s([other, one])[1], alone, rtol=1e-5)
    turned = bundle.ranker.expected_watch_s([query(watched("i1", "i5"), "i4", "i2", "i9")])[0]
    np.testing.assert_allclose(turned[::-1], alone, rtol=1e-5)


def test_it_expects_more_of_the_channel_that_the_viewer_likes(bundle: Bundle):
    viewer = watched("i0", "i4", "i8", "i12", "i16")  # all of channel c0
    liked, other = [f"i{n}" for n in range(20, 60, 4)], [f"i{n}" for n in range(21, 60, 4)]
    answers = bundle.ranker.expected_watch_s([query(viewer, *liked), query(viewer, *other)])
    assert answers[0].mean() > 1.4 * answers[1].mean()


@pytest.mark.parametrize("scores", [[np.nan] * 3, [np.inf, -np.inf, np.nan], [1e30, -1e30, 0.0]])
def test_any_score_gives_finite_capped_seconds(bundle: Bundle, scores: list[float]):
    answer = bundle.ranker.expected_watch_s(
        [query(watched("i1", "never-heard-of"), "i2", "unheard", "i3", scores=scores)]
    )
    assert np.isfinite(answer[0]).all()
    assert ((answer[0] >= 0) & (answer[0] <= CAP_S)).all()


def test_a_logit_that_is_no_number_sinks_and_a_large_one_is_capped():
    seconds = serve_seconds(np.array([np.nan, -np.inf, 0, 99, np.inf], np.float32))
    assert (seconds[:2] < 1e-3).all()
    np.testing.assert_allclose(seconds[2:], [1, CAP_S, CAP_S], rtol=1e-6)


def test_an_item_that_came_after_training_is_ranked_with_its_facts(bundle: Bundle):
    before = bundle.ranker.features([query(watched("i0"), "new")])[0]
    bundle.catalogue.upsert("new", channel="c0", topics=["t0"], duration_s=99.0, published_ms=START_MS)
    after = bundle.ranker.features([query(watched("i0"), "new")])[0]
    assert np.isnan(before).sum() > np.isnan(after).sum()
    assert 99 in after.tolist()


def test_an_untrained_ranker_says_so_and_keeps_the_order():
    ranker = Ranker(None, None, ItemStatistics(*(np.zeros(0) for _ in range(3))), Catalogue())
    assert not ranker.trained
    assert ranker.expected_watch_s([query(Viewer(), "a", "b")])[0].tolist() == [0, 0]


def test_saved_and_loaded_arrays_give_the_same_ranker(bundle: Bundle):
    again = Ranker.from_arrays(bundle.ranker.to_arrays(), bundle.catalogue, hidden=bundle.manifest.ranker_hidden)
    queries = [query(watched("i1", "i5"), *[f"i{n}" for n in range(60)])]
    np.testing.assert_array_equal(again.expected_watch_s(queries)[0], bundle.ranker.expected_watch_s(queries)[0])

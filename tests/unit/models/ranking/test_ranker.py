"""What a served ranker promises, whatever it was trained on and whatever it is asked."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ranking.features import compute_numbers
from models.ranking.ranker import Ranker, serve_seconds
from models.ranking.ranking_batch import RankingBatch
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from models.release.bundle import Bundle, read_bundle
from tests.unit.models.samples import START_MS, ShownList, Viewer, Watch, watched

NOW_MS = START_MS + 10_000_000


def query(viewer: Viewer, *item_ids: str, scores: list[float] | None = None) -> RankingQuery:
    given = np.zeros(len(item_ids), np.float32) if scores is None else np.array(scores, np.float32)
    return RankingQuery(viewer, NOW_MS, item_ids, given)


def moment(bundle: Bundle, *queries: RankingQuery) -> RankingBatch:
    return ranking_batch_of(queries, bundle.catalogue, [bundle.statistics])


def seconds(bundle: Bundle, *queries: RankingQuery) -> np.ndarray:
    return bundle.ranker.rank(moment(bundle, *queries)).expected_s


def test_each_candidate_of_each_request_gets_its_seconds_in_one_pass(bundle: Bundle):
    found = bundle.ranker.rank(moment(bundle, query(watched("i1"), "i9", "i2"), query(Viewer()), query(Viewer(), "i3")))
    assert found.expected_s.dtype == np.float32
    assert found.expected_s.shape == (3,)
    assert [len(found.numbers[scope]) for scope in ("query", "impression")] == [3, 3]
    assert found.completion is None, "no head for it"


def test_what_else_is_in_the_batch_and_the_order_of_candidates_do_not_matter(bundle: Bundle):
    one, other = query(watched("i1", "i5"), "i9", "i2", "i4"), query(Viewer(), *[f"i{n}" for n in range(50)])
    alone = seconds(bundle, one)
    np.testing.assert_allclose(seconds(bundle, other, one)[50:], alone, rtol=1e-5)
    turned = seconds(bundle, query(watched("i1", "i5"), "i4", "i2", "i9"))
    np.testing.assert_allclose(turned[::-1], alone, rtol=1e-5)


def test_it_expects_more_of_the_channel_that_the_viewer_likes(bundle: Bundle):
    viewer = watched("i0", "i4", "i8", "i12", "i16")  # all of channel c0
    liked, other = [f"i{n}" for n in range(20, 60, 4)], [f"i{n}" for n in range(21, 60, 4)]
    assert seconds(bundle, query(viewer, *liked)).mean() > 1.4 * seconds(bundle, query(viewer, *other)).mean()


item_ids = st.sampled_from(["i0", "i1", "i59", "unheard", "bare", "never-heard-of"])
scores = st.one_of(st.floats(width=32, allow_nan=True, allow_infinity=True), st.just(0.0))
watches = st.builds(
    Watch,
    item_id=item_ids,
    event_ms=st.sampled_from([START_MS, NOW_MS, NOW_MS + 10**9, 0]),
    watch_s=st.sampled_from([0.0, 3.0, 1e9]),
    duration_s=st.sampled_from([None, 0.0, 60.0]),
    completed=st.booleans(),
)
shown = st.builds(ShownList, at_ms=st.sampled_from([0, START_MS, NOW_MS + 5]), item_ids=st.lists(item_ids, max_size=4))
viewers = st.builds(
    Viewer, watches=st.lists(watches, max_size=60), impressions=st.lists(shown, max_size=3), context=st.none()
)
asked = st.lists(st.tuples(item_ids, scores), max_size=6)


@pytest.fixture(scope="module")
def fixed(release) -> Bundle:
    """One for all examples: they leave it as it is but for an item without facts."""
    bundle = read_bundle(release)
    bundle.catalogue.upsert("bare", duration_s=0.0)
    return bundle


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(viewers, asked), min_size=1, max_size=3))
def test_whatever_is_asked_the_seconds_are_finite_and_capped(fixed: Bundle, requests: list) -> None:
    """Unknown items, no history, replays, clocks ahead, no duration, no candidates, scores that are no numbers."""
    queries = [query(viewer, *[i for i, _ in pairs], scores=[s for _, s in pairs]) for viewer, pairs in requests]
    found = seconds(fixed, *queries)
    assert len(found) == sum(len(pairs) for _, pairs in requests)
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= fixed.ranker.cap_s)).all()


def test_a_score_that_is_no_number_is_a_missing_one(bundle: Bundle):
    missing = seconds(bundle, query(watched("i1"), "i2", "i3", scores=[np.nan, np.nan]))
    for value in (np.inf, -np.inf):
        np.testing.assert_array_equal(seconds(bundle, query(watched("i1"), "i2", "i3", scores=[value, value])), missing)


def test_a_logit_that_is_no_number_sinks_and_a_large_one_is_capped():
    found = serve_seconds(np.array([np.nan, -np.inf, 0, 99, np.inf], np.float32), 7_200.0)
    assert (found[:2] < 1e-3).all()
    np.testing.assert_allclose(found[2:], [1, 7_200, 7_200], rtol=1e-6)


def test_an_item_that_came_after_training_is_ranked_with_its_facts(bundle: Bundle):
    asked = query(watched("i0"), "new")
    before = compute_numbers(moment(bundle, asked), "impression")[0]
    bundle.catalogue.upsert("new", channel="c0", topics=["t0"], duration_s=99.0, published_ms=START_MS)
    after = compute_numbers(moment(bundle, asked), "impression")[0]
    assert np.isnan(before).sum() > np.isnan(after).sum()
    assert 99 in after.tolist()
    assert np.isfinite(seconds(bundle, asked)).all()


def test_an_untrained_ranker_says_so(bundle: Bundle):
    assert not Ranker().trained
    assert not Ranker.from_arrays({}, None, {}).trained
    with pytest.raises(RuntimeError, match="not trained"):
        Ranker().rank(moment(bundle, query(Viewer(), "a", "b")))


def test_saved_and_loaded_arrays_give_the_same_ranker(bundle: Bundle):
    again = Ranker.from_arrays(bundle.ranker.to_arrays(), bundle.ranker.shape, bundle.ranker.spaces.names)
    asked = moment(bundle, query(watched("i1", "i5"), *[f"i{n}" for n in range(60)], "unheard"))
    np.testing.assert_array_equal(again.rank(asked).expected_s, bundle.ranker.rank(asked).expected_s)


def with_members(bundle: Bundle, *shifts: float) -> Ranker:
    """The same network several times; each adds so much to every logit."""
    nets = []
    for shift in shifts:
        net = copy.deepcopy(bundle.ranker.nets[0])
        with torch.no_grad():
            (net.bias if net.last is None else net.last.bias)[0] += shift
        nets.append(net)
    return Ranker(bundle.ranker.shape, nets, bundle.ranker.quantiles, bundle.ranker.spaces)


def test_the_spread_is_how_far_the_members_log_seconds_lie_apart(bundle: Bundle):
    asked = moment(bundle, query(watched("i1"), "i9", "i2"))
    one, three = with_members(bundle, -1.0).rank(asked), with_members(bundle, -1.75, -0.75, -0.5).rank(asked)
    np.testing.assert_allclose(three.expected_s, one.expected_s, rtol=1e-5)
    assert three.spread is not None and three.spread.dtype == np.float32
    np.testing.assert_allclose(three.spread, np.std([-1.75, -0.75, -0.5]), rtol=1e-5)
    np.testing.assert_array_equal(one.spread, np.zeros(2, np.float32)), "one member agrees with itself"


def test_the_seconds_are_those_of_the_members_mean_to_the_bit(bundle: Bundle):
    asked, three = moment(bundle, query(watched("i1"), "i9", "i2")), with_members(bundle, 0.1, 0.2, 0.7)
    ranked = three.rank(asked)
    logits = [with_members(bundle, s).logits(ranked.numbers, ranked.ids, asked.request) for s in (0.1, 0.2, 0.7)]
    mean = (logits[0] + logits[1] + logits[2]) / np.float32(3)
    np.testing.assert_array_equal(ranked.expected_s, serve_seconds(mean[:, 0], three.cap_s))


def test_the_spread_is_finite_whatever_a_member_says(bundle: Bundle):
    for shifts in ((np.nan, 0.0), (np.inf, 0.0), (99.0, -99.0)):
        spread = with_members(bundle, *shifts).rank(moment(bundle, query(watched("i1"), "i9"))).spread
        assert spread is not None and np.isfinite(spread).all()


def test_ranking_leaves_no_trace(bundle: Bundle):
    """The same question twice, and another one between, has the same answer."""
    asked = query(watched("i1", "i5"), *[f"i{n}" for n in range(60)])
    first = seconds(bundle, asked)
    seconds(bundle, query(watched("i2"), "i3", "unheard"))
    np.testing.assert_array_equal(seconds(bundle, asked), first)


def test_in_sixteen_bits_the_seconds_are_about_the_same_and_those_in_thirty_two_stay(bundle: Bundle):
    asked = query(watched("i1", "i5"), *[f"i{n}" for n in range(50)]), query(Viewer(), "i3")
    before = seconds(bundle, *asked)
    lower = bundle.ranker.in_bfloat16()
    found = lower.rank(moment(bundle, *asked))
    assert found.expected_s.dtype == np.float32
    np.testing.assert_allclose(found.expected_s, before, rtol=0.03)
    assert not np.array_equal(found.expected_s, before), "it is another format"
    np.testing.assert_array_equal(seconds(bundle, *asked), before)

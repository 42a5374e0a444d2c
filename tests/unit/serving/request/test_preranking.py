import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from infra.platform import metrics
from infra.platform.settings import Selection, Serving
from models.ranking.ranker import ItemParts, Ranked, Ranker
from models.ranking.ranking_batch import RankingBatch
from models.release.bundle import Manifest
from serving.request.pipeline import Pipeline
from serving.request.preranking import ENOUGH, MOST_CHOICES, best_of
from serving.request.response_draft import RequestContext
from serving.state.item_worth import MAX_AGE_MS, MOST_DUE, ItemWorth
from serving.state.release import LiveRelease, load_release
from serving.state.views import Views
from streams.bundles.source import BundleSource
from streams.experiments import Plan
from streams.messages import Impression, RecommendRequest
from tests.unit.serving.worlds import CREATED_MS, ITEMS, ExactIndex, answer, pipeline_of, views_of_ann

NOW_MS, RANKED = CREATED_MS + 60_000, 10
NAN = np.nan


class Spy(Ranker):
    """The ranker, that says how many candidates of a viewer it was asked about; `turned`: what is worth most to a
    viewer is what is worth least to nobody."""

    def __init__(self, ranker: Ranker, *, turned: bool = False) -> None:
        super().__init__(ranker.shape, ranker.nets, ranker.quantiles, ranker.spaces, ranker.watch_quantiles)
        self.asked: list[int] = []
        self._turned = turned

    def rank(self, batch: RankingBatch, items: ItemParts | None = None) -> Ranked:
        ranked = super().rank(batch, items)
        if not batch.requests.there.any():  # nobody
            return ranked
        self.asked.append(len(batch.request))
        return dataclasses.replace(ranked, expected_s=1 / ranked.expected_s) if self._turned else ranked


@pytest.fixture
def views() -> Views:
    return views_of_ann()


@pytest.fixture
def live(bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, views: Views) -> LiveRelease:
    release = load_release(BundleSource(bundles_dir), bundles[0].version, index, mirror_items=100)
    views.catalogue.describe_all(release.catalogue)
    return dataclasses.replace(release, ranker=Spy(release.ranker))


def server(views: Views, **changes: float) -> Pipeline:
    quiet = {"first": "mirror", "trending": 0, "similar": 0, "fresh": 0, "ranked": RANKED, "audit_share": 0.0}
    return pipeline_of(views, Serving(**(quiet | changes)))


def ask(pipeline: Pipeline, live: LiveRelease, times: int = 1, **request: object) -> Impression:
    for number in range(times):
        of_ann = RecommendRequest(f"r{number}", "ann", **({"k": 2} | request))  # type: ignore[arg-type]
        [answered] = answer([RequestContext(of_ann, 0)], live, pipeline, now_ms=NOW_MS)
    assert answered.impression is not None
    return answered.impression


def asked_of(live: LiveRelease) -> list[int]:
    assert isinstance(live.ranker, Spy)
    return live.ranker.asked


@pytest.mark.parametrize(
    ("worth", "pins", "expected"),
    [
        ([3, 1, 4, 1, 5], [], [2, 4]),
        ([3, NAN, 4, 1, 5], [], [1, 2, 4]),
        ([3, 1, 4, 1, 5], [3, 4], [2, 3, 4]),
        ([1, 1, 1], [], [0, 1]),
        ([3, NAN, NAN, 1], [], None),
        ([3, 1], [], None),
    ],
    ids=["the best", "and the unknown", "and the pins", "equal ones in their order", "all: unknown", "all: few"],
)
def test_the_best_are_kept_in_their_order(worth: list[float], pins: list[int], expected: list[int] | None):
    kept = best_of(np.array(worth, np.float32), 2, pins)
    assert (kept if kept is None else kept.tolist()) == expected


def test_worth_is_asked_for_what_is_unknown_and_then_for_what_is_old():
    worth, all_rows = ItemWorth(), np.array([7, 3, -1, 3, 5])
    assert worth.due(all_rows, NOW_MS).tolist() == [3, 5, 7]
    worth.set(np.array([3, 5]), np.array([30.0, NAN], np.float32), NOW_MS)
    np.testing.assert_array_equal(worth.of(all_rows), np.array([NAN, 30, NAN, 30, NAN], np.float32))
    assert worth.due(all_rows, NOW_MS + MAX_AGE_MS).tolist() == [5, 7], "a value that is none is asked for again"
    assert worth.due(all_rows, NOW_MS + MAX_AGE_MS + 1).tolist() == [5, 7, 3]
    assert len(worth.due(np.arange(10_000), NOW_MS)) == MOST_DUE
    assert np.isnan(worth.of(np.array([10**9]))).all()


def test_all_are_ranked_until_enough_was_looked_at_and_then_the_best_alone(views: Views, live: LiveRelease):
    pipeline = server(views)
    ask(pipeline, live, ENOUGH + 3)
    everything = len(ITEMS) - 3
    assert asked_of(live) == [everything] * ENOUGH + [RANKED] * 3
    assert metrics.PRERANKER_IN_USE._value.get() == 1


def test_the_list_and_the_places_by_retrieval_are_those_of_a_whole_ranking(views: Views, live: LiveRelease):
    quick, whole = server(views), server(views, ranked=0)
    ask(quick, live, ENOUGH)
    some, all_ = ask(quick, live), ask(whole, live)
    assert asked_of(live)[-2:] == [RANKED, len(ITEMS) - 3]
    told = [(item.item_id, item.retrieval_rank, item.values, some.best_score) for item in some.items]
    assert told == [(item.item_id, item.retrieval_rank, item.values, all_.best_score) for item in all_.items]


def test_where_the_choice_loses_all_are_ranked(views: Views, live: LiveRelease):
    turned = dataclasses.replace(live, ranker=Spy(live.ranker, turned=True))
    ask(server(views), turned, 2 * ENOUGH)
    assert set(asked_of(turned)) == {len(ITEMS) - 3}
    assert metrics.PRERANKER_IN_USE._value.get() == 0
    assert metrics.PRERANKED_KEPT._value.get() < 0.5
    trusting = dataclasses.replace(live, ranker=Spy(live.ranker, turned=True))
    ask(server(views, audit_kept=0.0), trusting, ENOUGH + 1)
    assert asked_of(trusting)[-1] == RANKED


def test_a_share_is_ranked_whole_and_looked_at(views: Views, live: LiveRelease):
    ask(server(views, audit_share=0.25), live, ENOUGH + 8)
    assert asked_of(live)[ENOUGH:].count(len(ITEMS) - 3) == 2


def test_another_release_begins_anew(views: Views, live: LiveRelease):
    pipeline = server(views)
    ask(pipeline, live, ENOUGH + 1)
    other = dataclasses.replace(live, version="another", ranker=Spy(live.ranker), worth=ItemWorth())
    ask(pipeline, other)
    assert asked_of(live)[-1] == RANKED
    assert asked_of(other) == [len(ITEMS) - 3]


def ask_by(pipeline: Pipeline, live: LiveRelease, *ranked: int) -> None:
    """One request by each of these `serving.ranked`."""
    plans = iter([Plan(pipeline.settings.model_copy(update={"ranked": each}), Selection()) for each in ranked])
    pipeline.__dict__["plan_of"] = lambda user, live: next(plans)
    ask(pipeline, live, len(ranked))


def test_a_variant_that_keeps_too_few_says_nothing_of_who_keeps_more(views: Views, live: LiveRelease):
    """Each `serving.ranked` is trusted by its own audits."""
    turned = dataclasses.replace(live, ranker=Spy(live.ranker, turned=True))
    everything = len(ITEMS) - 3
    most = everything - 1
    ask_by(server(views, ranked=most, audit_kept=0.5), turned, *[most, RANKED] * (ENOUGH + 1))
    assert asked_of(turned)[0::2] == [everything] * ENOUGH + [most]
    assert asked_of(turned)[1::2] == [everything] * (ENOUGH + 1)
    assert metrics.PRERANKER_IN_USE._value.get() == 1, "of our own settings"


def test_no_more_choices_are_remembered_than_an_experiment_may_have_and_our_own(views: Views, live: LiveRelease):
    pipeline = server(views)
    ask_by(pipeline, live, *[each for ranked in range(11, 31) for each in (ranked, RANKED)])
    assert len(pipeline.preranker._remembered) == MOST_CHOICES and ("", RANKED) in pipeline.preranker._remembered


def test_pins_and_long_lists_are_kept(views: Views, live: LiveRelease):
    pipeline = server(views)
    ask(pipeline, live, ENOUGH)
    least = ITEMS[int(np.nanargmin(live.worth.of(live.catalogue.rows(ITEMS))))]
    assert ask(pipeline, live, pinned=(least,)).items[0].item_id == least
    ask(pipeline, live, k=6)
    assert asked_of(live)[-2:] == [RANKED + 1, 30]


def test_what_is_drawn_or_picked_apart_has_its_pool(views: Views, live: LiveRelease):
    settings = Serving(first="mirror", trending=0, similar=0, fresh=0, ranked=RANKED, audit_share=0.0)
    for selection in ({"explore": 0.1, "explore_pool": 20}, {"diversity": "mmr", "diversity_pool": 20}):
        pipeline = dataclasses.replace(pipeline_of(views, settings), selection=Selection(**selection))
        ask(pipeline, live, ENOUGH + 1)
        assert asked_of(live)[-1] == 22

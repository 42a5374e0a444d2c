"""Variants in one server and one batch: each viewer by its own settings, and on record by which."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from infra.platform.settings import Selection, Serving
from models.ranking.ranker import Ranker
from models.ranking.ranking_request import RankingQuery, by_two_towers, ranking_batch_of
from models.release.bundle import Bundle, Manifest
from serving.experiments.rival_candidates import load_beside
from serving.experiments.rivals import load_rival
from serving.request import ranking
from serving.request.ranking import LatencyEstimate, drop_late, score_candidates
from serving.request.response_draft import Answered, CandidateSet, RequestContext, ResponseDraft
from serving.state.drift import AnswerDrift
from serving.state.release import LiveRelease, load_release
from serving.state.search_order import SearchOrder
from serving.state.views import Views
from streams.bundles.source import BundleSource
from streams.experiments import Plan, plans_of
from streams.join.attribution import Rules
from streams.join.rules import advance, apply_impression
from streams.messages import (
    Experiment,
    ImpressionOutline,
    Item,
    JoinState,
    RankingExample,
    RecommendRequest,
    Trending,
    Variant,
    decode,
    encode,
)
from tests.unit.serving.worlds import (
    CREATED_MS,
    ITEMS,
    ExactIndex,
    answer,
    history,
    load,
    pipeline_of,
    unavailable,
    views_of_ann,
)

NOW_MS = CREATED_MS + 60_000
USERS = [f"user-{number}" for number in range(12)]
SETTINGS = Serving(first="index", similar=0, fresh=0, trending=0)


@pytest.fixture
def live(bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex) -> LiveRelease:
    return load_release(BundleSource(bundles_dir), bundles[0].version, index)


@pytest.fixture
def views() -> Views:
    views = views_of_ann()
    for user in USERS:
        views.histories.apply(0, user.encode(), encode(history(user, "item-1", "item-2")))
    views.trending.apply(b"global/0", encode(Trending("global", 0, NOW_MS, 3600.0, (("item-9", 12.0),))))
    for item_id in ITEMS[:5]:
        views.catalogue.apply(item_id.encode(), encode(Item(item_id, published_ms=NOW_MS - 1000)), NOW_MS)
    return views


def ask(
    views: Views, live: LiveRelease | None, changes: dict[str, Any], *, interleaved: bool = False, k: int = 10
) -> dict[str, list[Answered]]:
    """One batch of all users, by their variants (both, where interleaved)."""
    variants = (Variant("control", 0.5), Variant("other", 0.5, changes))
    plan_of = plans_of(Experiment("one", "salt", 1, variants, interleaved=interleaved), SETTINGS, Selection())
    pipeline = replace(pipeline_of(views, SETTINGS), plan_of=lambda user, live: plan_of(user))
    contexts = [RequestContext(RecommendRequest(f"r-{user}", user, k=k), 0, 5.0) for user in USERS]
    found: dict[str, list[Answered]] = {}
    for answered in answer(contexts, live, pipeline, now_ms=NOW_MS):
        found.setdefault(answered.reply.variant, []).append(answered)
    return found


def sources(answers: list[Answered]) -> set[str]:
    return {
        source for each in answers if each.impression for shown in each.impression.items for source in shown.sources
    }


def test_the_variant_stands_in_reply_and_impression(views: Views, live: LiveRelease):
    found = ask(views, live, {"serving.trending": 5})
    assert set(found) == {"control", "other"}
    for variant, answers in found.items():
        for reply, impression in answers:
            assert impression is not None and impression.assigned is not None
            assigned = impression.assigned
            assert (reply.experiment, assigned.experiment, assigned.variant) == ("one", "one", variant)
            assert assigned.took_ms > 5 and not assigned.degraded


def test_a_source_is_asked_for_those_alone_whose_variant_has_it(views: Views, live: LiveRelease):
    for source in ("trending", "similar", "fresh"):
        found = ask(views, live, {f"serving.{source}": 5}, k=38)
        assert source not in sources(found["control"]) and source in sources(found["other"])


def test_without_the_ranker_a_variant_is_in_the_order_of_retrieval_and_not_degraded(views: Views, live: LiveRelease):
    found = ask(views, live, {"serving.ranker": False})
    for reply, _ in found["other"]:
        scores = [item.score for item in reply.items]
        assert scores == sorted(scores, reverse=True) and not reply.degraded
        assert all(item.expected_watch_s is None for item in reply.items)
    for reply, _ in found["control"]:
        assert all(item.expected_watch_s is not None for item in reply.items)


def test_places_are_drawn_for_the_exploring_variant_alone_and_the_pool_is_on_record(views: Views, live: LiveRelease):
    found = ask(views, live, {"selection.explore": 0.3})
    for _, impression in found["control"]:
        assert impression is not None and impression.pool is None
        assert all(shown.probability is None for shown in impression.items)
    for _, impression in found["other"]:
        assert impression is not None and impression.pool is not None
        pool, drawn = impression.pool, [shown for shown in impression.items if shown.probability is not None]
        assert len(drawn) == 3 and pool.chance == pytest.approx(0.3)
        expected = [shown.expected_watch_s or 0.0 for shown in drawn]
        assert max(expected) <= pool.best_s and sum(expected) < pool.sum_s
        assert pool.best_s**2 <= pool.squares_s <= pool.best_s * pool.sum_s * (1 + 1e-9)
        assert pool.candidates >= len(drawn)


def test_the_probabilities_of_the_pool_add_up_to_the_chance_of_a_place(views: Views, live: LiveRelease):
    """1 / probability over the drawn places counts the pool, on average: what a policy's value stands on."""
    counts = []
    for seed in range(60):
        plan = Plan(SETTINGS, Selection(explore=0.3, seed=seed))
        pipeline = replace(pipeline_of(views, SETTINGS), plan_of=lambda user, live, plan=plan: plan)
        [(_, impression)] = answer(
            [RequestContext(RecommendRequest("r", "ann", k=10), 0)], live, pipeline, now_ms=NOW_MS
        )
        assert impression is not None and impression.pool is not None
        pool = impression.pool
        drawn = [shown.probability for shown in impression.items if shown.probability]
        counts.append(sum(pool.chance / probability for probability in drawn) / (10 * pool.chance) / pool.candidates)
    assert np.mean(counts) == pytest.approx(1, abs=0.1)


def test_an_interleaved_list_has_each_items_team(views: Views, live: LiveRelease):
    [(variant, answers)] = ask(views, live, {"serving.ranker": False}, interleaved=True).items()
    assert variant == "" and len(answers) == len(USERS)
    for reply, impression in answers:
        assert impression is not None and impression.assigned is not None and impression.assigned.variant == ""
        teams = [shown.team for shown in impression.items]
        assert teams.count("control") == teams.count("other") == 5
        assert [item.rank for item in reply.items] == list(range(1, 11))
        assert len({item.item_id for item in reply.items}) == 10
        own = {team: [item for item, of in zip(reply.items, teams, strict=True) if of == team] for team in set(teams)}
        scores, expected = [i.score for i in own["other"]], [i.expected_watch_s for i in own["control"]]
        assert scores == sorted(scores, reverse=True) and expected == sorted(expected, reverse=True)


@pytest.fixture
def comparing(live: LiveRelease, bundles_dir: Path, rival: Manifest) -> LiveRelease:
    """The release with a rival beside it."""
    return replace(live, rivals={rival.version: load_rival(BundleSource(bundles_dir), rival.version, live)})


def scores_by(bundle: Bundle, live: LiveRelease, answered: Answered, views: Views) -> list[float]:
    """What this bundle's ranker, asked by itself, expects of a list that was shown."""
    assert answered.impression is not None
    shown, user = answered.impression.items, answered.impression.user_id
    query = RankingQuery(
        history(user, "item-1", "item-2"),
        NOW_MS,
        [item.item_id for item in shown],
        np.array([item.score for item in shown], np.float32),
        np.array([item.retrieval_rank for item in shown], np.float32),
        answered.impression.best_score,
        known_ms=answered.impression.known_ms,
    )
    batch = ranking_batch_of([query], live.catalogue, [bundle.statistics, views.statistics.statistics])
    return bundle.ranker.rank(batch).expected_s.tolist()


def test_each_variants_lists_are_those_of_its_own_ranker(
    views: Views, comparing: LiveRelease, bundles_dir: Path, bundles: Sequence[Manifest], rival: Manifest
):
    """Requests of both in one batch: as each bundle would have ranked by itself."""
    found = ask(views, comparing, {"release": rival.version})
    orders = {}
    for variant, manifest in (("control", bundles[0]), ("other", rival)):
        bundle = load(bundles_dir, manifest)
        for answered in found[variant]:
            reply, impression = answered
            assert impression is not None and not reply.degraded
            assert reply.version == impression.version == comparing.version
            assert reply.ranked_by == impression.ranked_by == ("" if variant == "control" else rival.version)
            expected = [item.expected_watch_s for item in reply.items]
            assert expected == pytest.approx(scores_by(bundle, comparing, answered, views), rel=1e-4)
            assert expected == sorted(expected, reverse=True)  # type: ignore[type-var]
            orders[variant] = [item.item_id for item in reply.items]
    assert orders["control"] != orders["other"], "the two rankers do not agree, or nothing is shown here"


def test_of_a_batch_each_ranker_is_asked_once_and_about_its_own_alone(
    views: Views, comparing: LiveRelease, rival: Manifest, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, int]] = []

    def spy(queries: Any, release: LiveRelease, *args: Any, **more: Any) -> Any:
        asked.append((release.ranked_by, len(queries)))
        return score_candidates(queries, release, *args, **more)

    monkeypatch.setattr(ranking, "score_candidates", spy)
    found = ask(views, comparing, {"release": rival.version})
    assert sorted(asked) == sorted([("", len(found["control"])), (rival.version, len(found["other"]))])


def test_a_list_that_two_rankers_draw_up_has_each_ones_best_and_one_of_them_on_record(
    views: Views, comparing: LiveRelease, bundles_dir: Path, bundles: Sequence[Manifest], rival: Manifest
):
    [(_, answers)] = ask(views, comparing, {"release": rival.version}, interleaved=True).items()
    for answered in answers:
        impression = answered.impression
        assert impression is not None and impression.ranked_by == answered.reply.ranked_by == ""
        by = {
            team: scores_by(load(bundles_dir, manifest), comparing, answered, views)
            for team, manifest in (("control", bundles[0]), ("other", rival))
        }
        teams = [shown.team for shown in impression.items]
        assert teams.count("control") == teams.count("other") == 5
        for team, expected in by.items():
            own = [seconds for seconds, of in zip(expected, teams, strict=True) if of == team]
            assert own == sorted(own, reverse=True), "in the order of its own ranker"
        on_record = [shown.expected_watch_s for shown in impression.items]
        assert on_record == pytest.approx(by["control"], rel=1e-4), "of the live ranker, whoever has picked it"


def test_a_rival_that_fails_leaves_its_variant_unranked_and_the_others_as_they_are(
    views: Views, comparing: LiveRelease, rival: Manifest
):
    broken = replace(comparing.rivals[rival.version], ranker=Ranker(nets=[nn.Linear(1, 1)]))  # type: ignore[list-item]
    found = ask(views, replace(comparing, rivals={rival.version: broken}), {"release": rival.version})
    for reply, impression in found["other"]:
        assert [step.partition(":")[0] for step in reply.degraded] == ["unranked"] and impression is not None
        assert reply.ranked_by == "" and all(item.expected_watch_s is None for item in reply.items)
    assert all(not reply.degraded and reply.items[0].expected_watch_s for reply, _ in found["control"])


def test_each_ranker_promises_by_its_own_calibration(views: Views, comparing: LiveRelease, rival: Manifest):
    plain = ask(views, comparing, {"release": rival.version})
    views.statistics.statistics.set("calibration", rival.version, 0, NOW_MS, (1.0, 1.0, 1e9, 0.5e9))
    after = ask(views, comparing, {"release": rival.version})
    for variant, factor in (("control", 1.0), ("other", 2.0)):
        for before, now in zip(plain[variant], after[variant], strict=True):
            assert before.impression is not None and now.impression is not None
            assert now.impression.factor / before.impression.factor == pytest.approx(factor, rel=1e-3)


def test_the_drift_of_a_rivals_scores_is_not_the_live_releases(
    views: Views, comparing: LiveRelease, rival: Manifest, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []
    monkeypatch.setattr(
        AnswerDrift, "observe", lambda _, version, scores, expected: seen.extend([len(scores), len(expected)])
    )
    found = ask(views, comparing, {"release": rival.version})
    assert seen == [len(USERS), len(found["control"])], "the two towers' scores are the same for all"


def test_what_the_prerankers_choice_keeps_is_remembered_of_each_ranker(
    views: Views, comparing: LiveRelease, rival: Manifest
):
    variants = (Variant("control", 0.5), Variant("other", 0.5, {"release": rival.version}))
    few = SETTINGS.model_copy(update={"ranked": 5})
    plan_of = plans_of(Experiment("one", "salt", 1, variants), few, Selection())
    pipeline = replace(pipeline_of(views, few), plan_of=lambda user, live: plan_of(user))
    contexts = [RequestContext(RecommendRequest(f"r-{user}", user, k=1), 0, 5.0) for user in USERS]
    answers = answer(contexts, comparing, pipeline, now_ms=NOW_MS)
    counted = Counter(answered.reply.ranked_by for answered in answers)
    asked = {key: choice.asked for key, choice in pipeline.preranker._remembered.items()}
    assert asked == {("", 5): counted[""], (rival.version, 5): counted[rival.version]} and len(counted) == 2


def test_before_the_first_release_the_variants_are_served_all_the_same(views: Views):
    found = ask(views, None, {"serving.ranker": False})
    for answers in found.values():
        for _, impression in answers:
            assert impression is not None and impression.assigned is not None and impression.assigned.degraded


def test_the_join_passes_the_variant_on(views: Views, live: LiveRelease):
    """It reads an outline of the impression, and its example has the impression as it came."""
    impression = ask(views, live, {"serving.fresh": 5})["other"][0].impression
    assert impression is not None
    raw = encode(impression)
    rules = Rules(window_ms=1000, grace_ms=1000, early_ms=1000, keep=10, completed_s=30.0, most_bytes=10**6)
    where: Any = {"partition": 0, "rules": rules}
    step = apply_impression(
        JoinState(impression.user_id), decode(ImpressionOutline, raw), raw, 0, watermark_ms=0, **where
    )
    [example] = advance(step.state, watermark_ms=NOW_MS + 2000, **where).examples
    assert decode(RankingExample, encode(example)).impression == impression


@pytest.fixture
def beside(live: LiveRelease, bundles_dir: Path, bundles: Sequence[Manifest], views: Views) -> LiveRelease:
    """The first release with the second one, which has candidates of its own, beside it."""
    other = load_beside(BundleSource(bundles_dir), bundles[1].version, live, views.catalogue)
    return replace(live, rivals={other.version: other})


def test_each_variants_lists_are_those_of_its_own_release(
    views: Views, beside: LiveRelease, index: ExactIndex, bundles_dir: Path, bundles: Sequence[Manifest]
):
    """Requests of both in one batch: retrieved from their own rows, ranked by their own ranker, in their own order."""
    other = bundles[1].version
    found = ask(views, beside, {"release": other})
    assert len(found["control"]) + len(found["other"]) == len(USERS)
    for variant, manifest in (("control", bundles[0]), ("other", bundles[1])):
        bundle, own = load(bundles_dir, manifest), beside if variant == "control" else beside.rivals[other]
        for answered in found[variant]:
            reply, impression = answered
            assert impression is not None and not reply.degraded and reply.request_id == f"r-{impression.user_id}"
            assert reply.version == impression.version == manifest.version
            assert reply.ranked_by == impression.ranked_by == ("" if variant == "control" else other)
            assert reply.retrieved_by == ("index" if variant == "control" else "mirror")
            vector = bundle.model.user_vectors([history(impression.user_id, "item-1", "item-2")], NOW_MS)[0]
            vectors = dict(zip(bundle.model.item_ids, bundle.model.item_vectors(), strict=True))
            scores = [float(vector @ vectors[item.item_id]) for item in reply.items]
            assert [item.score for item in reply.items] == pytest.approx(scores, rel=1e-3, abs=1e-3)
            expected = [item.expected_watch_s for item in reply.items]
            assert expected == pytest.approx(scores_by(bundle, own, answered, views), rel=1e-4)
            assert expected == sorted(expected, reverse=True)  # type: ignore[type-var]
    assert index.searched == [bundles[0].version] * len(index.searched) and index.searched


def test_a_list_that_a_release_beside_the_live_one_could_not_rank_is_its_own_all_the_same(
    views: Views, beside: LiveRelease, bundles: Sequence[Manifest], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(beside.rivals[bundles[1].version].ranker), "rank", fail)
    for variant, answers in ask(views, beside, {"release": bundles[1].version}).items():
        for reply, _ in answers:
            assert reply.version == bundles[variant == "other"].version and "unranked" in reply.degraded[0]


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("the ranker is broken")


def test_while_the_index_is_dead_the_release_beside_answers_as_ever(
    views: Views, beside: LiveRelease, index: ExactIndex, bundles: Sequence[Manifest]
):
    """It has no part in what is known of the index, and the index none in it."""
    index.failure = unavailable()
    found = ask(views, beside, {"release": bundles[1].version})
    assert all(reply.degraded for reply, _ in found["control"])
    assert not any(reply.degraded for reply, _ in found["other"])


def test_the_live_releases_gauges_tell_nothing_of_a_release_beside_it(
    views: Views, beside: LiveRelease, bundles: Sequence[Manifest], monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []
    monkeypatch.setattr(AnswerDrift, "observe", lambda self, version, *_: seen.append(version))
    ask(views, beside, {"release": bundles[1].version})
    assert seen == [bundles[0].version]


def test_all_of_a_batch_are_told_one_time_and_its_mirror_says_nothing_of_the_live_ones(
    views: Views, beside: LiveRelease, bundles: Sequence[Manifest], monkeypatch: pytest.MonkeyPatch
):
    """Their replies are sent together; else a guard rail would fail the release that a batch comes to last."""
    other, timed = beside.rivals[bundles[1].version], list[str]()
    assert other.mirror is not None
    search = other.mirror.search

    def slowly(*args: Any, **more: Any) -> Any:
        time.sleep(0.05)
        return search(*args, **more)

    monkeypatch.setattr(other.mirror, "search", slowly)
    monkeypatch.setattr(SearchOrder, "add", lambda self, way, *_: timed.append(way))
    found = ask(views, beside, {"release": other.version})
    shown = [answered.impression for answers in found.values() for answered in answers]
    took_ms = [each.assigned.took_ms for each in shown if each is not None and each.assigned is not None]
    assert len(took_ms) == len(USERS) and min(took_ms) > 50 and max(took_ms) - min(took_ms) < 20
    assert set(timed) == {"index"}


def test_who_has_no_time_for_what_a_batch_ranks_later_is_not_ranked():
    latency = LatencyEstimate()
    latency.expected_s = 0.01
    draft = ResponseDraft(
        RequestContext(RecommendRequest("r", "ann", deadline_ms=100), 0),
        10,
        history("ann"),
        set(),
        Plan(SETTINGS, Selection()),
    )
    draft.candidates = CandidateSet(["item-1"], np.ones(1, np.float32), by_two_towers(1))
    assert drop_late([draft], 0.05, latency, SETTINGS, later=4) == [draft]
    assert drop_late([draft], 0.05, latency, SETTINGS, later=5) == [] and draft.degraded

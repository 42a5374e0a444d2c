"""Variants in one server and one batch: each viewer by its own settings, and on record by which."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.platform.settings import Selection, Serving
from models.release.bundle import Manifest
from serving.request.response_draft import Answered, RequestContext
from serving.state.release import LiveRelease, load_release
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
from tests.unit.serving.worlds import CREATED_MS, ITEMS, ExactIndex, answer, history, pipeline_of, views_of_ann

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
    pipeline = replace(pipeline_of(views, SETTINGS), plan_of=plan_of)
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
        pipeline = replace(pipeline_of(views, SETTINGS), plan_of=lambda user, plan=plan: plan)
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

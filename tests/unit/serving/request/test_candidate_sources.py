"""Candidate sources: their nominees, the union, and the record of it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.platform.settings import Selection, Serving
from models.catalogue.filter_syntax import parse_filter
from serving.request.candidate_sources import NOBODY, Nominees, ask, scores_by_source, unite
from serving.request.filtering import MayBeShown, banned_by
from serving.request.response_draft import Answered, RequestContext, ResponseDraft
from serving.state.fresh import FreshView
from serving.state.release import LiveRelease
from serving.state.views import CatalogueView, Views
from streams.experiments import Plan
from streams.history.watched_filter import remember
from streams.messages import Context, Item, RecommendRequest, ShownList, Trending, UserHistory, Watch, encode
from tests.unit.serving.worlds import CREATED_MS, ITEMS, answer, history, no_views, pipeline_of

HOUR_MS = 3_600_000
NOW_MS = CREATED_MS + 60_000


@pytest.fixture
def views() -> Views:
    views = no_views()
    views.histories.apply(0, b"ann", encode(history("ann", "item-1", "item-2", "item-3")))
    for item_id in ITEMS:
        views.catalogue.apply(item_id.encode(), encode(Item(item_id, duration_s=60.0)), NOW_MS)
    return views


def trend(views: Views, scope: str, *counts: tuple[str, float]) -> None:
    views.trending.apply(f"{scope}/0".encode(), encode(Trending(scope, 0, NOW_MS, 3600.0, counts)))


def ask_for(views: Views, live: LiveRelease | None, request: RecommendRequest, **settings: Any) -> Answered:
    context = RequestContext(request, 0, 0.0, None if request.filter is None else parse_filter(request.filter))
    [answered] = answer([context], live, pipeline_of(views, Serving(**({"first": "index"} | settings))), now_ms=NOW_MS)
    return answered


def shown_sources(answered: Answered) -> dict[str, dict[str, float | None]]:
    assert answered.impression is not None
    return {shown.item_id: shown.sources for shown in answered.impression.items}


def draft(user: UserHistory | None = None) -> ResponseDraft:
    context, plan = RequestContext(RecommendRequest("r1", "ann"), 0), Plan(Serving(), Selection())
    return ResponseDraft(context, 10, user or UserHistory("ann"), set(), plan)


def test_a_candidate_keeps_all_its_sources_and_their_scores(views: Views, live: LiveRelease) -> None:
    trend(views, "global", ("item-9", 12.0))
    views.catalogue.apply(b"item-9", encode(Item("item-9", published_ms=NOW_MS - 2 * HOUR_MS)), NOW_MS)
    answered = ask_for(views, live, RecommendRequest("r1", "ann", k=40))
    sources = shown_sources(answered)["item-9"]
    assert list(sources) == ["two_tower", "trending", "similar", "fresh"]
    assert sources["trending"] == 12.0
    [item] = [item for item in answered.reply.items if item.item_id == "item-9"]
    assert item.source == "two_tower"
    assert sources["two_tower"] == pytest.approx(item.score)


def test_what_only_others_have_found_is_a_candidate_with_a_two_tower_score_of_its_own(
    views: Views, live: LiveRelease
) -> None:
    """Ten candidates in all: the towers' last ones make way for a trending item that the towers would have left out."""
    everything = ask_for(views, live, RecommendRequest("r1", "ann", k=37), trending=0, similar=0, fresh=0)
    by_score = sorted(everything.reply.items, key=lambda item: -(item.score or 0))
    last = by_score[-1]
    trend(views, "global", (last.item_id, 5.0))
    answered = ask_for(views, live, RecommendRequest("r1", "ann", k=10), candidates=10, similar=0, fresh=0)
    found = {item.item_id: item for item in answered.reply.items}
    assert len(found) == 10
    assert found[last.item_id].source == "trending"
    assert found[last.item_id].score == pytest.approx(last.score)
    assert {item.item_id for item in by_score[:9]} | {last.item_id} == set(found)


def test_the_viewers_region_comes_first_and_the_rest_of_the_world_fills_up(views: Views, live: LiveRelease) -> None:
    trend(views, "global", ("item-20", 9.0), ("item-21", 8.0), ("item-22", 7.0))
    trend(views, "region/de", ("item-30", 2e6), ("item-21", 1e6))
    request = RecommendRequest("r1", "ann", k=40, context=Context(region="de"))
    by_item = shown_sources(ask_for(views, live, request, trending=3))
    assert {name: each["trending"] for name, each in by_item.items() if "trending" in each} == {
        "item-30": 2e6,
        "item-21": 1e6,
        "item-20": 9.0,
    }
    elsewhere = shown_sources(ask_for(views, live, RecommendRequest("r2", "ann", k=40), trending=3))
    assert {name for name, each in elsewhere.items() if "trending" in each} == {"item-20", "item-21", "item-22"}


def test_similar_is_what_the_last_watch_alone_would_find(views: Views, live: LiveRelease) -> None:
    answered = ask_for(views, live, RecommendRequest("r1", "ann", k=40), similar=4, trending=0, fresh=0)
    similar = {name: each["similar"] for name, each in shown_sources(answered).items() if "similar" in each}
    vectors = live.model.user_vectors([history("x", "item-3")], NOW_MS)
    assert live.mirror is not None
    [(item_ids, scores)] = live.mirror.search(vectors, 7)
    best = [
        (name, score)
        for name, score in zip(item_ids, scores, strict=True)
        if name not in {"item-1", "item-2", "item-3"}
    ]
    assert similar == {name: pytest.approx(float(score)) for name, score in best[:4]}


def test_without_a_mirror_similar_items_come_from_the_index_in_the_same_call(views: Views, live: LiveRelease) -> None:
    bare = dataclasses.replace(live, mirror=None)
    request = RecommendRequest("r1", "ann", k=40)
    by_index = ask_for(views, bare, request, similar=4, trending=0, fresh=0)
    by_mirror = ask_for(views, live, request, similar=4, trending=0, fresh=0)
    assert len(live.index.searched) == 2  # type: ignore[attr-defined]
    names = [{name for name, each in shown_sources(a).items() if "similar" in each} for a in (by_index, by_mirror)]
    assert names[0] == names[1]
    assert len(names[0]) == 4


def test_who_has_completed_nothing_has_nothing_similar(views: Views, live: LiveRelease) -> None:
    skipped = Watch("item-3", NOW_MS, 1.0, 60.0, False, "e", 0)
    views.histories.apply(0, b"ann", encode(UserHistory("ann", (skipped,))))
    answered = ask_for(views, live, RecommendRequest("r1", "ann", k=40), trending=0, fresh=0)
    assert not any("similar" in each for each in shown_sources(answered).values())


def test_every_fresh_item_is_nominated_for_some_and_the_same_ones_for_the_same_request(
    views: Views, live: LiveRelease
) -> None:
    new = [f"new-{at}" for at in range(20)]
    for at, name in enumerate(new):
        views.catalogue.apply(name.encode(), encode(Item(name, published_ms=NOW_MS - at * HOUR_MS)), NOW_MS)
    nominated: set[str] = set()
    for number in range(40):
        request = RecommendRequest(f"r{number}", "ann", k=200)
        first, again = (ask_for(views, live, request, fresh=3, trending=0, similar=0) for _ in range(2))
        mine = {name for name, each in shown_sources(first).items() if "fresh" in each}
        assert mine == {name for name, each in shown_sources(again).items() if "fresh" in each}
        assert len(mine) == 3
        nominated |= mine
    assert nominated == set(new)


def test_a_source_that_takes_too_long_is_left_out_for_the_rest_of_the_batch() -> None:
    seen: list[ResponseDraft] = []

    def slow(each: ResponseDraft) -> Nominees:
        seen.append(each)
        return Nominees(["a"], [1.0])

    drafts = [draft() for _ in range(3)]
    assert ask("trending", drafts, slow, timeout_s=-1.0) == [NOBODY] * 3
    assert ask("trending", drafts, slow, timeout_s=10.0) == [Nominees(["a"], [1.0])] * 3
    assert len(seen) == 3


NAMES = st.lists(st.sampled_from([f"i{at}" for at in range(30)]), unique=True, max_size=20)


@given(NAMES, NAMES, NAMES, st.integers(1, 25))
def test_the_union_has_each_candidate_once_and_keeps_what_others_nominate(
    towers: list[str], trending: list[str], fresh: list[str], most: int
) -> None:
    scores = np.arange(len(towers), 0, -1).astype(np.float32)
    others = {
        "trending": Nominees(trending, [float(at) for at in range(len(trending))]),
        "fresh": Nominees(fresh, [1.0] * len(fresh)),
    }
    found = unite((towers, scores), others, most)
    assert len(set(found.item_ids)) == len(found.item_ids) == min(most, len({*towers, *trending, *fresh}))
    nominated = {*trending, *fresh}
    if len(nominated) <= most:
        assert nominated <= set(found.item_ids)
        alone = [name for name in towers if name not in nominated]
        assert [name for name in found.item_ids if name in alone] == alone[: most - len(nominated)]
    recorded = scores_by_source(found, range(len(found.item_ids)))
    for scores_of, name in zip(recorded, found.item_ids, strict=True):
        assert list(scores_of) == [
            source
            for source, names in (("two_tower", towers), ("trending", trending), ("fresh", fresh))
            if name in names
        ]
        if name in towers:
            assert scores_of["two_tower"] == scores[towers.index(name)]
        if name in trending:
            assert scores_of["trending"] == trending.index(name)


def test_a_filter_holds_for_every_source_and_for_what_fills_up(views: Views, live: LiveRelease) -> None:
    """The index of this test does not apply filters, so only what is checked afterwards can hold it."""
    trend(views, "global", *((name, 1.0) for name in ITEMS))
    for name in ITEMS[5:9]:
        item = Item(name, duration_s=30.0, published_ms=NOW_MS)
        views.catalogue.apply(name.encode(), encode(item), NOW_MS)
        live.catalogue.upsert(name, duration_s=30.0)
    for release in (live, None):
        answered = ask_for(views, release, RecommendRequest("r1", "ann", k=20, filter="duration_s < 60"))
        assert {item.item_id for item in answered.reply.items} == set(ITEMS[5:9])


def test_what_was_watched_long_ago_is_left_out_for_as_long_as_it_is_remembered() -> None:
    long_ago = Watch("item-7", NOW_MS - 10 * 24 * HOUR_MS, 50.0, 60.0, True, "e", 0)
    seen = remember(b"", [long_ago], newest_ms=NOW_MS, keep=10, days=90)
    user = UserHistory("ann", seen=seen)
    names = ["item-6", "item-7"]
    for days, expected in ((90, [True, False]), (5, [True, True])):
        assert MayBeShown(CatalogueView(), None, NOW_MS, days)(draft(user), names).tolist() == expected


def test_what_was_shown_too_often_is_banned_and_what_was_watched_always() -> None:
    lists = tuple(ShownList(str(at), at, ("a", "b") if at else ("a",)) for at in range(3))
    user = UserHistory("ann", history("ann", "w").watches, impressions=lists)
    assert banned_by(user, 0) == {"w"}
    assert banned_by(user, 3) == {"w", "a"}
    assert banned_by(user, 2) == {"w", "a", "b"}


def test_a_pin_is_on_top_of_any_kind_of_answer_unless_it_may_not_be_shown(views: Views, live: LiveRelease) -> None:
    views.catalogue.apply(b"item-8", None)
    pinned = ("item-1", "item-8", "item-30", "item-31", "unheard")
    trend(views, "global", ("item-30", 1.0))
    for user, release in (("ann", live), ("nobody", live), ("ann", None)):
        answered = ask_for(views, release, RecommendRequest("r1", user, k=6, pinned=pinned))
        names = [item.item_id for item in answered.reply.items]
        first = ["item-30", "item-31", "unheard"] if user == "ann" else ["item-1", "item-30", "item-31", "unheard"]
        assert names[: len(first)] == first
        assert [item.source for item in answered.reply.items[: len(first)]] == ["pinned"] * len(first)
        assert len(set(names)) == 6


def test_fresh_items_grow_old_come_and_go() -> None:
    fresh = FreshView(2 * HOUR_MS, most=3)
    fresh.put("old", NOW_MS - 3 * HOUR_MS, NOW_MS)
    fresh.put("none", None, NOW_MS)
    fresh.put("a", NOW_MS - HOUR_MS, NOW_MS)
    fresh.put("tomorrow", NOW_MS + HOUR_MS, NOW_MS)
    assert fresh.newest(NOW_MS) == [(NOW_MS - HOUR_MS, "a")]
    assert [name for _, name in fresh.newest(NOW_MS + HOUR_MS)] == ["a", "tomorrow"]
    assert [name for _, name in fresh.newest(NOW_MS + HOUR_MS + 1)] == ["tomorrow"]
    for at in range(4):
        fresh.put(f"n{at}", NOW_MS + at, NOW_MS + 10)
    assert len(fresh) == 3
    fresh.put("n3", None, NOW_MS)
    fresh.remove("unheard")
    assert [name for _, name in fresh.newest(NOW_MS + 10)] == ["n1", "n2"]


def test_items_that_are_dated_far_ahead_take_no_room_of_those_that_are_fresh_now() -> None:
    for first in (True, False):
        fresh = FreshView(2 * HOUR_MS, most=3)
        if first:
            fresh.put("good", NOW_MS - HOUR_MS, NOW_MS)
        for at in range(5):
            fresh.put(f"wrong-{at}", NOW_MS + (1000 + at) * HOUR_MS, NOW_MS)
        if not first:
            fresh.put("good", NOW_MS - HOUR_MS, NOW_MS)
        assert [name for _, name in fresh.newest(NOW_MS)] == ["good"]
        assert len(fresh) == 3
        fresh.put("better", NOW_MS, NOW_MS)
        assert [name for _, name in fresh.newest(NOW_MS)] == ["good", "better"]

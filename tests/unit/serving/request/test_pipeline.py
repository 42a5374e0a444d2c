import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.platform.settings import Serving
from models.ranking.features import SCHEMA_HASH, compute_ids, compute_numbers, numbers_of
from models.ranking.ranker import ItemParts, Ranked, Ranker, id_strings
from models.ranking.ranking_batch import RankingBatch
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from models.release.bundle import Manifest
from serving.request.ranking import LatencyEstimate
from serving.request.response_draft import Answered, RequestContext
from serving.state.drift import AnswerDrift
from serving.state.release import LiveRelease, describe, load_release, mirror_of
from serving.state.views import Views
from streams.bundles.source import BundleSource
from streams.messages import Context, Item, RecommendRequest, Search, StatisticsRow, Trending, UserHistory, encode
from tests.unit.serving.worlds import (
    CREATED_MS,
    ITEMS,
    ExactIndex,
    answer,
    history,
    load,
    no_views,
    pipeline_of,
    unavailable,
    views_of_ann,
)

NOW_MS = CREATED_MS + 60_000


@pytest.fixture
def live(bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex) -> LiveRelease:
    return load_release(BundleSource(bundles_dir), bundles[0].version, index)


@pytest.fixture
def views() -> Views:
    """One user with a history, a catalogue, and a trending list that starts with the least known items."""
    views = views_of_ann()
    counts = tuple((item_id, float(count)) for count, item_id in enumerate(ITEMS))
    views.trending.apply(b"global/0", encode(Trending("global", 0, NOW_MS, 3600.0, counts[::-1])))
    return views


def ask(
    views: Views, live: LiveRelease | None, *batch: RequestContext | RecommendRequest, **changes: Any
) -> list[Answered]:
    """Answers of the two towers alone unless other sources are given in `changes` of the settings."""
    latency, selection = changes.pop("latency", None), changes.pop("selection", {})
    settings = Serving(**({"first": "index", "trending": 0, "similar": 0, "fresh": 0} | changes))
    contexts = [each if isinstance(each, RequestContext) else RequestContext(each, 0) for each in batch]
    return answer(contexts, live, pipeline_of(views, settings, latency, **selection), now_ms=NOW_MS)


def of_ann(**changes: Any) -> RecommendRequest:
    return RecommendRequest("r1", "ann", **({"k": 10} | changes))


def items_of(answered: Answered) -> list[str]:
    return [item.item_id for item in answered.reply.items]


def sources_of(answered: Answered) -> set[str]:
    return {item.source for item in answered.reply.items}


def test_a_known_user_gets_ranked_items_of_the_live_version(views: Views, live: LiveRelease) -> None:
    [answered] = ask(views, live, of_ann())
    reply = answered.reply
    assert sources_of(answered) == {"two_tower"}
    assert len(reply.items) == 10
    assert reply.version == live.version
    assert reply.degraded == ()
    expected = [item.expected_watch_s for item in reply.items]
    assert expected == sorted(expected, reverse=True)  # type: ignore[type-var]
    assert [item.rank for item in reply.items] == list(range(1, 11))
    assert reply.history_watches == 3
    assert reply.history_event_ms == CREATED_MS


def test_a_history_is_in_the_reply_where_it_is_asked_for(views: Views, live: LiveRelease) -> None:
    for release in (live, None):
        asked, plain, stranger = ask(
            views, release, of_ann(history=True), of_ann(), RecommendRequest("r2", "nobody", history=True)
        )
        assert asked.reply.history is not None and len(asked.reply.history.watches) == 3
        assert asked.reply.history.seen == b"" and plain.reply.history is None
        assert stranger.reply.history is not None and not stranger.reply.history.watches


def test_an_item_comes_with_its_title_where_it_has_one(live: LiveRelease) -> None:
    views = views_of_ann()
    views.catalogue.apply(b"item-7", encode(Item("item-7", title="<Seven>", duration_s=60.0)))
    for release in (live, None):
        [answered] = ask(views, release, RecommendRequest("r", "ann", 200))
        titles = {item.item_id: item.title for item in answered.reply.items}
        assert titles.pop("item-7", "<Seven>") == "<Seven>" and not any(titles.values())
        if release is live:
            assert len(titles) > 10


def test_what_was_scored_is_looked_at_for_drift(views: Views, live: LiveRelease, monkeypatch) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(AnswerDrift, "observe", lambda _, version, *scores: seen.append((version, *map(len, scores))))
    ask(views, live, RecommendRequest("r", "ann"), RecommendRequest("s", "nobody"))
    assert seen == [(live.version, 2, 2)], "also of who has no history"


def test_every_stage_is_timed_in_the_reply(views: Views, live: LiveRelease) -> None:
    [answered] = ask(views, live, RequestContext(of_ann(), 0, wait_ms=3.0))
    stages = ["wait", "hydrate", "embed", "retrieve", "filter", "sources", "rank", "select", "reply"]
    assert list(answered.reply.stages_ms) == stages
    assert answered.reply.stages_ms["wait"] == 3.0


@pytest.mark.parametrize("first", ["index", "mirror"])
def test_a_viewer_without_a_watch_is_answered_by_the_towers_and_ranked(
    views: Views, live: LiveRelease, first: str
) -> None:
    live = dataclasses.replace(live, mirror=mirror_of(live.model))
    [answered] = ask(views, live, RecommendRequest("r1", "nobody", k=5), first=first)
    rows = np.array([live.model.row(item_id) for item_id in items_of(answered)])
    [scores] = live.model.user_vectors([UserHistory("nobody")], NOW_MS) @ live.model.item_vectors(rows).T
    assert [item.score for item in answered.reply.items] == pytest.approx(scores.tolist())
    assert sources_of(answered) == {"two_tower"} and answered.reply.retrieved_by == first
    assert all(item.expected_watch_s is not None for item in answered.reply.items)
    assert answered.reply.degraded == () and answered.reply.version == live.version


def test_what_is_trending_is_among_the_candidates_of_a_viewer_without_a_watch(views: Views, live: LiveRelease) -> None:
    [answered] = ask(views, live, RecommendRequest("r1", "nobody", k=40), candidates=10, trending=3, similar=5)
    assert answered.impression is not None
    by = {shown.item_id: set(shown.sources) for shown in answered.impression.items if shown.sources}
    assert len(by) == 10 and {name for name, sources in by.items() if "trending" in sources} == set(ITEMS[-3:])
    assert not any("similar" in sources for sources in by.values())


def test_the_towers_know_context_and_searches_of_a_viewer_without_a_watch(
    views: Views, live: LiveRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[UserHistory] = []
    user_vectors = live.model.user_vectors

    def recording(users: Sequence[UserHistory], now_ms: int) -> Any:
        asked.extend(users)
        return user_vectors(users, now_ms)

    monkeypatch.setattr(live.model, "user_vectors", recording)
    searched = UserHistory("new", searches=(Search("cats", NOW_MS, "s", 0),))
    views.histories.apply(0, b"new", encode(searched))
    context = Context(region="de", device="tv")
    ask(views, live, RecommendRequest("r1", "new", context=context), similar=5)
    assert asked == [msgspec.structs.replace(searched, context=context)], "and no last watch is asked about"


def test_seen_and_excluded_items_are_never_returned(views: Views, live: LiveRelease) -> None:
    [answered] = ask(views, live, of_ann(k=40, exclude=("item-5", "item-0")))
    assert not {"item-1", "item-2", "item-3", "item-5", "item-0"} & set(items_of(answered))
    assert len(items_of(answered)) == 35


def test_exclusion_also_holds_for_the_trending_answer(views: Views) -> None:
    [answered] = ask(views, None, RecommendRequest("r1", "nobody", k=2, exclude=(ITEMS[-1],)))
    assert items_of(answered) == [ITEMS[-2], ITEMS[-3]]


def test_a_taken_down_item_is_gone_from_every_kind_of_answer(views: Views, live: LiveRelease) -> None:
    [before] = ask(views, live, of_ann())
    first = items_of(before)[0]
    views.catalogue.apply(first.encode(), None)
    views.catalogue.apply(ITEMS[-1].encode(), encode(Item(ITEMS[-1], available=False)))
    answers = ask(views, live, of_ann(k=40), RecommendRequest("r2", "nobody", k=40))
    for answered in answers:
        assert not {first, ITEMS[-1]} & set(items_of(answered))
        assert len(items_of(answered)) >= 35


def test_k_items_come_back_when_filtering_takes_most_candidates(views: Views, live: LiveRelease) -> None:
    [answered] = ask(views, live, of_ann(k=10, exclude=tuple(ITEMS[4:24])), candidates=12)
    assert len(items_of(answered)) == 10
    assert sources_of(answered) == {"two_tower"}


def test_too_few_candidates_are_filled_up_with_trending_then_with_the_catalogue(
    views: Views, live: LiveRelease
) -> None:
    views.catalogue.apply(b"fresh", encode(Item("fresh")))
    [answered] = ask(views, live, of_ann(k=200), candidates=5)
    assert [item.source for item in answered.reply.items] == ["two_tower"] * 5 + ["trending"] * 32 + ["catalogue"]
    assert items_of(answered)[-1] == "fresh"
    assert len(set(items_of(answered))) == 38


def test_without_a_release_everybody_gets_trending(views: Views) -> None:
    [answered] = ask(views, None, of_ann(k=3))
    assert sources_of(answered) == {"trending"}
    assert answered.reply.degraded == ("trending: no release is live yet",)
    assert answered.reply.version == ""
    assert items_of(answered) == ITEMS[:-4:-1]
    total = sum(range(len(ITEMS)))
    assert [item.score for item in answered.reply.items] == pytest.approx([at / total for at in (39, 38, 37)])


def test_before_the_first_release_what_nobody_has_watched_comes_last_and_newest_first(views: Views) -> None:
    for item_id in ("old", "new"):
        views.catalogue.apply(item_id.encode(), encode(Item(item_id)))
    [answered] = ask(views, None, RecommendRequest("r1", "nobody", k=42))
    assert items_of(answered)[-2:] == ["new", "old"]
    assert [item.score for item in answered.reply.items][-2:] == [0.0, 0.0]


def test_before_the_first_release_a_regions_own_list_is_given_there(views: Views) -> None:
    counts = (("item-7", 1e9), ("item-3", 1e8))
    views.trending.apply(b"region/de/0", encode(Trending("region/de", 0, NOW_MS, 3600.0, counts)))
    there, elsewhere = (RecommendRequest("r", "nobody", k=2, context=Context(region=name)) for name in ("de", "fr"))
    [here] = ask(views, None, there)
    [other] = ask(views, None, elsewhere)
    assert items_of(here) == ["item-7", "item-3"] and items_of(other) == ITEMS[:-3:-1]


def test_with_nothing_trending_the_release_knows_what_is_popular(
    views: Views, live: LiveRelease, index: ExactIndex
) -> None:
    index.failure = unavailable()
    bare = dataclasses.replace(live, mirror=None)
    views.trending.apply(b"global/0", None)
    [answered] = ask(views, bare, RecommendRequest("r1", "nobody", k=5))
    shares = live.model.popularity.log_share()
    best = [live.model.item_ids[row] for row in np.argsort(-shares, kind="stable")[:5]]
    assert set(items_of(answered)) == set(best) and sources_of(answered) == {"popular"}
    assert [item.score for item in answered.reply.items] == pytest.approx(np.exp(np.sort(shares)[::-1][:5]).tolist())


def test_a_failing_index_degrades_to_trending_and_says_why(views: Views, live: LiveRelease, index: ExactIndex) -> None:
    index.failure = unavailable()
    [answered] = ask(views, live, of_ann(k=3))
    assert sources_of(answered) == {"trending"}
    [step] = answered.reply.degraded
    assert step.startswith("trending: ")
    assert "connection refused" in step


def test_a_failed_index_is_left_alone_and_taken_up_again(views: Views, live: LiveRelease, index: ExactIndex) -> None:
    """The pause of the breaker is half a second."""
    pipeline = pipeline_of(views, Serving(first="index"))
    index.failure = unavailable()
    answer([RequestContext(of_ann(), 0)], live, pipeline, now_ms=NOW_MS)
    index.failure = None
    [answered] = answer([RequestContext(of_ann(), 0)], live, pipeline, now_ms=NOW_MS + 499)
    assert answered.reply.degraded
    assert index.searched == []
    [answered] = answer([RequestContext(of_ann(), 0)], live, pipeline, now_ms=NOW_MS + 501)
    assert answered.reply.degraded == ()


class BrokenRanker:
    trained, cap_s = True, 600.0

    def __init__(self, value: float | None) -> None:
        self.value = value

    def item_parts(self, batch: RankingBatch) -> ItemParts:
        size = len(batch.request)
        return ItemParts(np.zeros((size, 0), np.float32), {}, torch.zeros((1, size, 1)), np.zeros(size))

    def rank(self, batch: RankingBatch, items: ItemParts) -> Ranked:
        if self.value is None:
            raise RuntimeError("no memory")
        return Ranked(np.full(len(batch.request), self.value, np.float32), {}, {})


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_broken_ranker_leaves_the_retrieval_order(views: Views, live: LiveRelease, value: float | None) -> None:
    broken = dataclasses.replace(live, ranker=BrokenRanker(value))  # type: ignore[arg-type]
    [answered] = ask(views, broken, of_ann())
    scores = [item.score for item in answered.reply.items]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert sources_of(answered) == {"two_tower"}
    assert all(item.expected_watch_s is None for item in answered.reply.items)
    [step] = answered.reply.degraded
    assert step.startswith("unranked: ")


def test_a_user_vector_that_is_not_finite_degrades_only_its_request(
    views: Views, live: LiveRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    views.histories.apply(0, b"bob", encode(history("bob", "item-4")))
    user_vectors = live.model.user_vectors

    def poisoned(viewers: Sequence[Any], now_ms: int) -> np.ndarray:
        vectors = user_vectors(viewers, now_ms)
        vectors[0] = np.nan
        return vectors

    monkeypatch.setattr(live.model, "user_vectors", poisoned)
    ann, bob = ask(views, live, of_ann(), RecommendRequest("r2", "bob", k=10))
    assert ann.reply.degraded == ("trending: the user vector is not finite",)
    assert bob.reply.degraded == ()
    assert sources_of(bob) == {"two_tower"}


def test_a_request_past_its_deadline_is_answered_from_the_cheap_end(
    views: Views, live: LiveRelease, index: ExactIndex
) -> None:
    late = RequestContext(of_ann(deadline_ms=30_000), 0, wait_ms=30_001.0)
    in_time = RequestContext(of_ann(deadline_ms=30_000), 0, wait_ms=20_000.0)  # whatever else this machine is doing
    default = RequestContext(of_ann(), 0, wait_ms=2001.0)
    answers = ask(views, live, late, in_time, default, deadline_s=2.0)
    assert [bool(answered.reply.degraded) for answered in answers] == [True, False, True]
    assert "deadline" in answers[0].reply.degraded[0]


def test_a_batch_is_searched_and_ranked_in_one_call(views: Views, live: LiveRelease, index: ExactIndex) -> None:
    views.histories.apply(0, b"bob", encode(history("bob", "item-4")))
    together = ask(views, live, of_ann(), RecommendRequest("r2", "bob", k=10))
    assert len(index.searched) == 1
    alone = [ask(views, live, of_ann())[0], ask(views, live, RecommendRequest("r2", "bob", k=10))[0]]
    assert [items_of(answered) for answered in together] == [items_of(answered) for answered in alone]


def test_a_batch_that_is_ranked_in_parts_gives_each_what_it_gets_alone(
    views: Views, live: LiveRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.threads._cores", lambda: 2)
    parts: list[int] = []

    def noted(queries: list[RankingQuery], *rest: Any) -> RankingBatch:
        parts.append(len(queries))
        return ranking_batch_of(queries, *rest)

    monkeypatch.setattr("serving.request.ranking.ranking_batch_of", noted)
    users = [f"user-{number}" for number in range(9)]
    for number, user in enumerate(users):
        views.histories.apply(0, user.encode(), encode(history(user, *ITEMS[number : number + 3])))
    batch = [RecommendRequest(user, user, 10) for user in users]
    together = ask(views, live, *batch)
    assert sorted(parts) == [4, 5]
    for request, answered in zip(batch, together, strict=True):
        [alone] = ask(views, live, request)
        assert items_of(answered) == items_of(alone)
        assert answered.impression is not None and alone.impression is not None
        for mine, same in zip(answered.impression.items, alone.impression.items, strict=True):
            values = [np.frombuffer(shown.values, "<f4") for shown in (mine, same)]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)  # scores of a batch differ in the last bits
        assert answered.impression.values == alone.impression.values


def test_the_impression_records_what_was_shown(views: Views, live: LiveRelease) -> None:
    context = Context(region="de")
    [answered] = ask(views, live, of_ann(context=context))
    impression = answered.impression
    assert impression is not None
    assert [shown.item_id for shown in impression.items] == items_of(answered)
    assert [shown.position for shown in impression.items] == list(range(1, 11))
    assert (impression.request_id, impression.user_id, impression.version) == ("r1", "ann", live.version)
    assert (impression.at_ms, impression.served_by, impression.context) == (NOW_MS, "test", context)


def test_the_impression_holds_the_features_that_the_ranker_was_fed(views: Views, live: LiveRelease) -> None:
    """Computed again from the history, the record's scores and ranks, and what was known then: equal to the bit."""
    views.statistics.apply(b"item/0/item-7", encode(statistics_row("item", "item-7")))
    views.statistics.apply(b"all/0/", encode(statistics_row("all", "")))
    views.read_offsets.read("items", 1, 41)
    [answered] = ask(views, live, of_ann(context=Context(region="de")))
    impression = answered.impression
    assert impression is not None
    shown = impression.items
    assert impression.schema_hash == SCHEMA_HASH
    assert impression.marks == {"items": (0, 42)}
    stored = views.histories.get("ann", 0)
    assert stored is not None
    query = RankingQuery(
        msgspec.structs.replace(stored, context=impression.context),
        impression.at_ms,
        [each.item_id for each in shown],
        np.array([each.score for each in shown], np.float32),
        np.array([each.retrieval_rank for each in shown], np.float32),
        impression.best_score,
    )
    batch = ranking_batch_of([query], live.catalogue, [live.statistics, views.statistics.statistics])
    values = compute_numbers(batch, "impression")
    assert [each.values for each in shown] == [row.astype("<f4").tobytes() for row in values]
    assert impression.values == compute_numbers(batch, "query")[0].astype("<f4").tobytes()
    ids = compute_ids(batch, "query") | compute_ids(batch, "impression")
    assert impression.ids == id_strings(ids, "query", [0])[0]
    assert impression.ids["last_watched"] == ("item-1", "item-2", "item-3")
    assert impression.ids["region"] == ("de",)
    assert shown[0].ids == id_strings(ids, "impression", [0])[0]
    column = [feature.name for feature in numbers_of("impression")].index("item_mean_s")
    seconds = {each.item_id: np.frombuffer(each.values, "<f4")[column] for each in shown}
    assert len(set(seconds.values())) > 1 or "item-7" not in seconds


def statistics_row(scope: Literal["item", "all"], name: str) -> StatisticsRow:
    return StatisticsRow(scope, name, 0, NOW_MS, 10.0, 5.0, 100.0, 4.0, 0.0, (NOW_MS, 3))


def test_what_is_known_of_an_item_follows_catalogue_and_statistics(views: Views, live: LiveRelease) -> None:
    """Kept from one request to the next, and worked out again when either says something else."""
    views.catalogue.describe_all(live.catalogue)
    first = features_of(views, live)
    assert features_of(views, live) == first
    views.catalogue.apply(b"item-7", encode(Item("item-7", duration_s=240.0)))
    describe("item-7", live, views.catalogue)
    longer = features_of(views, live)
    assert (first["item-7"]["duration_s"], longer["item-7"]["duration_s"]) == (60.0, 240.0)
    assert {item for item in first if longer[item] != first[item]} == {"item-7"}
    views.statistics.apply(b"item/0/item-7", encode(statistics_row("item", "item-7")))
    views.statistics.apply(b"all/0/", encode(statistics_row("all", "")))
    watched = features_of(views, live)
    assert watched["item-7"]["item_watch_share"] > longer["item-7"]["item_watch_share"]


def features_of(views: Views, live: LiveRelease) -> dict[str, dict[str, float]]:
    """The numbers on record of each item that Ann is shown."""
    [answered] = ask(views, live, of_ann(k=len(ITEMS)))
    assert answered.impression is not None
    assert answered.impression.known_ms == views.statistics.known_ms
    names = [feature.name for feature in numbers_of("impression")]
    values = {each.item_id: np.nan_to_num(np.frombuffer(each.values, "<f4")) for each in answered.impression.items}
    return {item_id: dict(zip(names, row.tolist(), strict=True)) for item_id, row in values.items() if len(row)}


def test_items_that_were_not_ranked_have_no_features_on_record(views: Views) -> None:
    [answered] = ask(views, None, RecommendRequest("r1", "nobody", k=3))
    assert answered.impression is not None
    assert answered.impression.schema_hash == ""
    assert {each.values for each in answered.impression.items} == {b""}


def test_a_request_that_is_not_to_be_recorded_leaves_no_impression(views: Views, live: LiveRelease) -> None:
    recorded, unrecorded = ask(views, live, of_ann(), of_ann(record=False))
    assert recorded.impression is not None
    assert unrecorded.impression is None
    assert items_of(recorded) == items_of(unrecorded)


def test_expectations_follow_what_was_watched_of_this_version(views: Views, live: LiveRelease) -> None:
    """Twice as much was watched as the ranker had said: the seconds double, the order stays."""
    [before] = ask(views, live, of_ann())
    row = StatisticsRow("calibration", live.version, 0, NOW_MS, 1e6, 1e6, 2e7, 0.0, 1e7, (NOW_MS, 3))
    views.statistics.apply(b"calibration/0/" + live.version.encode(), encode(row))
    [after] = ask(views, live, of_ann())
    assert items_of(before) == items_of(after)
    ratio = [
        b.expected_watch_s / a.expected_watch_s for a, b in zip(before.reply.items, after.reply.items, strict=True)
    ]  # type: ignore[operator]
    assert ratio == pytest.approx([2.0] * 10, rel=1e-3)
    assert after.impression is not None
    assert after.impression.factor == pytest.approx(2.0, rel=1e-3)


def test_nothing_is_promised_beyond_the_cap_of_the_release_and_lists_say_what_that_is(
    views: Views, live: LiveRelease
) -> None:
    [plain] = ask(views, live, of_ann())
    promised = [item.expected_watch_s or 0.0 for item in plain.reply.items]
    cap_s = sum(promised) / len(promised)
    assert live.ranker.shape is not None and min(promised) < cap_s < max(promised)
    shape = msgspec.structs.replace(live.ranker.shape, cap_s=cap_s)
    ranker = Ranker(shape, live.ranker.nets, live.ranker.quantiles, live.ranker.spaces)
    row = StatisticsRow("calibration", live.version, 0, NOW_MS, 1e6, 1e6, 2e7, 0.0, 1e7, (NOW_MS, 3))
    views.statistics.apply(b"calibration/0/" + live.version.encode(), encode(row))  # twice as much was watched
    [capped] = ask(views, dataclasses.replace(live, ranker=ranker), of_ann())
    found = [item.expected_watch_s or 0.0 for item in capped.reply.items]
    assert max(found) == pytest.approx(cap_s) and min(found) > min(promised)
    assert capped.impression is not None and capped.impression.cap_s == cap_s
    assert plain.impression is not None and plain.impression.cap_s == live.ranker.cap_s
    [unranked] = ask(views, None, of_ann())
    assert unranked.impression is not None and unranked.impression.cap_s == 600, "nobody promises anything yet"


def test_a_slow_ranker_is_left_out_where_its_answer_would_come_too_late(views: Views, live: LiveRelease) -> None:
    """It took a second for the last batch: who waits for half a second gets retrieval order and is told; in time it is
    tried again."""
    latency = LatencyEstimate()
    latency.expected_s = 1.0
    hurried = of_ann(deadline_ms=500)
    [answered] = ask(views, live, hurried, latency=latency)
    assert answered.reply.degraded == ("unranked: no time is left for the ranker",)
    assert all(item.expected_watch_s is None for item in answered.reply.items)
    [patient] = ask(views, live, of_ann(deadline_ms=5000), latency=latency)
    assert patient.reply.degraded == ()
    for _ in range(10):
        [answered] = ask(views, live, hurried, latency=latency)
    assert answered.reply.degraded == ()


def test_a_score_that_is_no_number_leaves_a_finite_answer(views: Views, live: LiveRelease, index: ExactIndex) -> None:
    item_ids, rows = index.collections[live.version]
    index.collections[live.version] = (item_ids, np.where(np.arange(len(rows))[:, None] == 7, np.nan, rows))
    [answered] = ask(views, live, of_ann(k=40))
    assert all(np.isfinite(item.expected_watch_s) for item in answered.reply.items if item.expected_watch_s is not None)
    assert len(items_of(answered)) == 37


def test_an_empty_world_gives_an_empty_reply_and_no_impression() -> None:
    empty = no_views()
    [answered] = ask(empty, None, of_ann())
    assert answered.reply.items == ()
    assert answered.impression is None


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    exclude=st.sets(st.sampled_from(ITEMS)),
    down=st.sets(st.sampled_from(ITEMS)),
    watched=st.lists(st.sampled_from(ITEMS), max_size=10),
    k=st.integers(1, 60),
)
def test_k_distinct_allowed_items_come_back_whenever_they_exist(
    world: LiveRelease, exclude: set[str], down: set[str], watched: list[str], k: int
) -> None:
    views = no_views()
    views.histories.apply(0, b"ann", encode(history("ann", *watched)))
    for item_id in ITEMS:
        views.catalogue.apply(item_id.encode(), encode(Item(item_id, available=item_id not in down)))
    [answered] = ask(views, world, of_ann(k=k, exclude=tuple(exclude)))
    allowed = set(ITEMS) - exclude - down - set(watched)
    assert set(items_of(answered)) <= allowed
    assert len(set(items_of(answered))) == len(items_of(answered)) == min(k, len(allowed))


@pytest.fixture(scope="module")
def world(bundles_dir: Path, bundles: Sequence[Manifest]) -> LiveRelease:
    return load_release(BundleSource(bundles_dir), bundles[0].version, ExactIndex(load(bundles_dir, bundles[0])))


def test_marks_say_what_had_been_read_when_it_was_used(views: Views, live: LiveRelease) -> None:
    """Histories are read in the first half of a batch, the catalogue's attributes in the second."""
    pipeline = pipeline_of(views, Serving(first="index"))
    views.read_offsets.read("user-histories", 0, 4)
    views.read_offsets.read("items", 0, 4)
    batch = pipeline.begin([RequestContext(of_ann(), 0)], live, NOW_MS)
    views.read_offsets.read("user-histories", 0, 9)
    views.read_offsets.read("items", 0, 9)
    [answered] = pipeline.finish(batch)
    assert answered.impression is not None
    assert answered.impression.marks == {"user-histories": (5,), "items": (10,)}

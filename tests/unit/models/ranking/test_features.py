"""Every feature by hand, on one small moment. A number that moves here is a feature that is computed differently: then
REVISION is to be raised, so that bundles and impressions of the old one are refused."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue.catalogue import Catalogue
from models.ranking import ranking_batch
from models.ranking.feature import Scope
from models.ranking.features import FEATURES, SCHEMA_HASH, compute_ids, compute_numbers, ids_of, numbers_of
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import id_strings
from models.ranking.ranking_batch import DAY_MS, HISTORY, LENGTHS, SHOWN, RankingBatch, length_codes, nominated
from models.ranking.ranking_request import Nominations, RankingQuery, ranking_batch_of
from tests.unit.models.samples import START_MS, ShownList, Viewer, Watch

NOW_MS = START_MS  # a Tuesday, 22:13:20 UTC
NAN = float("nan")


@dataclass(frozen=True)
class Context:
    region: str | None = None
    language: str | None = None
    device: str | None = None


def catalogue() -> Catalogue:
    facts = Catalogue()
    facts.upsert("x", channel="c", topics=["t", "s"], duration_s=40.0, published_ms=NOW_MS - 7_200_000)
    facts.upsert("y", channel="c", topics=["s"], duration_s=50.0)
    facts.upsert("z", channel="d", topics=["t"], duration_s=100.0, published_ms=NOW_MS - 9 * DAY_MS)
    facts.upsert("bare")
    return facts


def ago(seconds: float) -> int:
    return NOW_MS - round(1000 * seconds)


def ann() -> Viewer:
    """Twelve watches, among them a replay (50 s of 40 s) and an item that the catalogue does not know."""
    watches = [Watch("bare", ago(10_000 - n), 1.0, None, completed=False) for n in range(8)]
    watches += [
        Watch("x", ago(500), 50.0, 40.0),
        Watch("y", ago(200), 5.0, 50.0, completed=False),
        Watch("z", ago(80), 7.0, 100.0, completed=False),
        Watch("unheard", ago(60), 100.0, None),
    ]
    shown = [ShownList(ago(7200), ["x", "z"]), ShownList(ago(600), ["y", "unheard", "x"])]
    return Viewer(watches, context=Context("de", device="tv"), impressions=shown)


YES, NO = np.ones(1, np.bool_), np.zeros(1, np.bool_)
TRENDING_AND_SIMILAR = Nominations(
    nominated([NO, YES, YES]), np.array([12.5], np.float32), np.array([0.75], np.float32)
)


def known() -> ItemStatistics:
    """The item's sums are as of one half-life ago, so half of them are left."""
    statistics = ItemStatistics(half_life_ms=DAY_MS)
    statistics.set("item", "x", 0, NOW_MS - DAY_MS, [20, 16, 400, 10])
    statistics.set("channel", "c", 0, NOW_MS, [30, 20, 450, 10])
    statistics.set("topic", "t", 0, NOW_MS, [40, 30, 900, 20])
    statistics.set("length", "32.0 s", 0, NOW_MS, [50, 40, 800, 20])  # up to 40.3 s
    statistics.set("all", "", 0, NOW_MS, [100, 60, 1000, 20])
    return statistics


@pytest.fixture(scope="module")
def moment() -> RankingBatch:
    """Ann with four candidates, and a stranger with one."""
    facts = catalogue()
    scores = np.array([1.5, np.nan, 2.0, np.inf], np.float32)
    batch = [
        RankingQuery(ann(), NOW_MS, ["x", "bare", "z", "unheard-2"], scores),
        RankingQuery(Viewer(), NOW_MS + 3 * DAY_MS, ["y"], np.zeros(1, np.float32), nominations=TRENDING_AND_SIMILAR),
    ]
    return ranking_batch_of(batch, facts, [known()])


def batch_of(
    viewer: Viewer, *item_ids: str, known: Sequence[ItemStatistics] = (), now_ms: int = NOW_MS
) -> RankingBatch:
    """One request, all scores 0."""
    scores = np.zeros(len(item_ids), np.float32)
    return ranking_batch_of([RankingQuery(viewer, now_ms, item_ids, scores)], catalogue(), known)


def numbers(moment: RankingBatch, scope: Scope, row: int) -> dict[str, float]:
    values = compute_numbers(moment, scope)
    assert values.dtype == np.float32
    return dict(zip([feature.name for feature in numbers_of(scope)], values[row].tolist(), strict=True))


def check(found: dict[str, float], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys(), "every feature has its number here"
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name


def test_what_is_known_of_a_viewer_by_hand(moment: RankingBatch):
    expected = {
        "since_last_watch_s": 60,
        "history_entries": 12,
        "history_mean_s": (8 * 1 + 50 + 5 + 7 + 100 + 8 * 1000 / 60) / (12 + 8),
        "history_completion": (2 + 8 * 20 / 60) / (12 + 8),
        "recent_mean_s": (6 * 1 + 162 + 8 * 1000 / 60) / (10 + 8),
        "recent_completion": (2 + 8 * 20 / 60) / (10 + 8),
        "history_share": (1 + 5 / 50 + 7 / 100) / 3,  # a replay is one whole video
        "last_watch_s": 100,
        "shown_last_hour": 2,
        "hour": 22 + 13 / 60 + 20 / 3600,
        "weekday": 1,
    }
    check(numbers(moment, "query", 0), expected)


def test_a_stranger_has_missing_values_and_a_friday(moment: RankingBatch):
    stranger = numbers(moment, "query", 1)
    missing = {name for name, value in stranger.items() if np.isnan(value)}
    assert missing == set(stranger) - {"history_entries", "shown_last_hour", "hour", "weekday"}
    assert (stranger["history_entries"], stranger["shown_last_hour"], stranger["weekday"]) == (0, 0, 4)


def test_an_impression_by_hand(moment: RankingBatch):
    """The item's statistics lean on those of videos about as long, and these on those of all."""
    watched, completed, seconds = (40 + 20 * 0.6) / 70, (20 + 20 * 0.2) / 70, (800 + 20 * 10) / 70
    expected = {
        "channel_watches": 2,
        "channel_watched_s": 55,
        "since_channel_s": 200,
        "topic_watches": 2,
        "topic_watched_s": 57,
        "since_topic_s": 80,
        "any_topic_watches": 3,
        "any_topic_watched_s": 62,
        "since_any_topic_s": 80,
        "topic_mean_watched_s": 57 / 2,
        "like_duration_share": (1 + 0.1) / 2,  # y is 1.25 times as long, z 2.5 times
        "item_watches": 1,
        "item_shown": 2,
        "since_item_shown_s": 600,
        "channel_shown": 3,
        "since_channel_shown_s": 600,
        "duration_s": 40,
        "age_h": 2,
        "item_impression_share": np.log(10 / 100 + 1e-6),
        "item_watch_share": np.log(8 / 60 + 1e-6),
        "item_watch_ratio": (8 + 20 * watched) / (10 + 20),
        "item_completion": (5 + 20 * completed) / (10 + 20),
        "item_mean_s": (200 + 20 * seconds) / (10 + 20),
        "item_lift": np.log((200 + 20 * seconds) / (10 + 20) / seconds),
        "length_mean_s": seconds,
        "channel_mean_s": (450 + 20 * 10) / (30 + 20),
        "topic_mean_s": (900 + 20 * 10) / (40 + 20),
        "retrieval_score": 1.5,
        "retrieval_gap": 1.5 - 2.0,
        "retrieval_rank": 2,
        "trending_watches": NAN,
        "similar_score": NAN,
    }
    check(numbers(moment, "impression", 0), expected)


def of_nothing(**known: float) -> dict[str, float]:
    """An impression that nothing is known of."""
    counts = dict.fromkeys([f.name for f in numbers_of("impression")], NAN)
    counts |= {name: 0 for name in counts if name.endswith(("watches", "_shown", "watched_s"))}
    counts |= {"topic_mean_watched_s": NAN, "trending_watches": NAN}
    means = {"item_watch_ratio": 0.6, "item_completion": 0.2, "item_mean_s": 10, "channel_mean_s": 10}
    means |= {"length_mean_s": 10, "item_lift": 0}
    shares = {"item_impression_share": np.log(1e-6), "item_watch_share": np.log(1e-6), "topic_mean_s": 10}
    return counts | means | shares | known


@pytest.mark.parametrize(("row", "watches"), [(1, 8), (3, 0)])
def test_an_item_without_facts_shares_nothing_with_others_and_stands_at_the_means(
    moment: RankingBatch, row: int, watches: int
):
    """`bare` has no channel, as an unheard one has none; two unheard items are not the same item. A score that is not
    finite is none."""
    check(numbers(moment, "impression", row), of_nothing(item_watches=watches))


def test_an_age_ends_at_a_week_and_the_best_of_a_request_has_no_gap(moment: RankingBatch):
    seen = numbers(moment, "impression", 2)
    assert (seen["age_h"], seen["retrieval_gap"], seen["retrieval_rank"]) == (24 * 7, 0, 1)


def test_ids_by_hand(moment: RankingBatch):
    ids = {name: each for scope in ("query", "impression") for name, each in compute_ids(moment, scope).items()}
    last = ("bare",) * 8 + ("x", "y", "z")
    assert id_strings(ids, "query", [0])[0] == {"last_watched": last, "region": ("de",), "device": ("tv",)}
    assert id_strings(ids, "query", [1])[0] == {}
    of_x = {"candidate": ("x",), "channel": ("c",), "topics": ("t", "s"), "sources": ("two_tower",)} | {
        "length": ("32.0 s",)
    }
    assert id_strings(ids, "impression", [0])[0] == of_x
    assert id_strings(ids, "impression", [1])[0] == {"candidate": ("bare",), "sources": ("two_tower",)}
    assert id_strings(ids, "impression", [3])[0] == {"sources": ("two_tower",)}
    of_y = {"candidate": ("y",), "channel": ("c",), "topics": ("s",), "sources": ("trending", "similar")}
    of_y |= {"length": ("40.3 s",)}
    assert id_strings(ids, "impression", [4])[0] == of_y


def test_the_schema_is_the_one_that_bundles_in_use_were_made_for():
    """Changed on purpose? Then put the new hash here. Not on purpose? Then every bundle out there would be refused."""
    assert SCHEMA_HASH == "00ddc403937aefe0"


def test_every_feature_is_declared_once_and_says_why():
    assert max(Counter(feature.name for feature in FEATURES).values()) == 1
    assert {feature.kind for feature in FEATURES} == {"continuous", "univalent id", "multivalent id"}
    assert {feature.scope for feature in FEATURES} == {"query", "impression"}
    assert all(len(feature.compute.__doc__ or "") > 20 for feature in FEATURES)
    assert [f.space for f in FEATURES if f.name in ("last_watched", "candidate")] == ["item", "item"], "one embedding"


def test_query_features_are_computed_once_per_request(moment: RankingBatch):
    assert compute_numbers(moment, "query").shape == (2, len(numbers_of("query")))
    assert compute_numbers(moment, "impression").shape == (5, len(numbers_of("impression")))
    codes = {name: named.codes.shape for name, named in compute_ids(moment, "query").items()}
    assert codes == {f.name: (2, HISTORY if f.many else 1) for f in ids_of("query")}


def test_before_anything_was_ever_shown_the_means_are_missing():
    seen = numbers(batch_of(Viewer(), "x"), "impression", 0)
    means = ("item_watch_ratio", "item_completion", "item_mean_s", "item_lift")
    means += ("channel_mean_s", "topic_mean_s", "length_mean_s")
    assert all(np.isnan(seen[name]) for name in means)
    assert seen["item_impression_share"] == pytest.approx(np.log(1e-6))


def test_a_watch_of_unknown_length_is_an_entry_and_says_nothing_of_seconds():
    watches = [Watch("x", ago(90), 20.0, completed=False), Watch("x", ago(50), NAN)]
    untimed = batch_of(Viewer(watches), "x")
    of_query, seen = numbers(untimed, "query", 0), numbers(untimed, "impression", 0)
    assert (of_query["history_entries"], of_query["since_last_watch_s"]) == (2, 50)
    assert (of_query["history_mean_s"], of_query["history_completion"], of_query["history_share"]) == (20, 0, 0.5)
    assert np.isnan(of_query["last_watch_s"])
    assert (seen["channel_watches"], seen["channel_watched_s"], seen["topic_mean_watched_s"]) == (2, 20, 20)
    assert seen["like_duration_share"] == 0.5


def test_times_ahead_of_now_count_as_now():
    viewer = Viewer([Watch("x", NOW_MS + 5000)], impressions=[ShownList(NOW_MS + 9000, ["x"])])
    ahead = batch_of(viewer, "x", known=[known()])
    assert numbers(ahead, "query", 0)["since_last_watch_s"] == 0
    seen = numbers(ahead, "impression", 0)
    assert (seen["since_channel_s"], seen["since_item_shown_s"]) == (0, 0)
    assert numbers(batch_of(viewer, "x", now_ms=NOW_MS - DAY_MS), "impression", 0)["age_h"] == 0, "unborn"


def test_lengths_are_a_third_of_an_octave_and_an_unknown_one_is_none():
    durations = np.array([np.nan, 1.9, 2.0, 39.9, 40.4, 4096.0, 1e9], np.float32)
    names = [LENGTHS[code] for code in length_codes(durations).tolist()]
    assert names == ["", "shorter", "2.0 s", "32.0 s", "40.3 s", "4096.0 s", "4096.0 s"]


def test_only_the_newest_watches_and_shown_items_are_looked_at():
    watches = [Watch("x", ago(1000)), *[Watch("z", ago(900 - n)) for n in range(HISTORY)]]
    shown = [ShownList(ago(900), ["x"]), ShownList(ago(800), ["z"] * (SHOWN - 1)), ShownList(ago(700), ["y"])]
    full = batch_of(Viewer(watches, impressions=shown), "x")
    seen = numbers(full, "impression", 0)
    assert (seen["item_watches"], seen["item_shown"], seen["channel_shown"]) == (0, 0, 1)
    assert numbers(full, "query", 0)["history_entries"] == HISTORY


def test_statistics_of_a_release_and_of_the_stream_are_added_up():
    both = numbers(batch_of(Viewer(), "x", known=[known(), known()]), "impression", 0)
    assert both["item_mean_s"] == pytest.approx((2 * 200 + 20 * (2 * 800 + 20 * 10) / (2 * 50 + 20)) / (2 * 10 + 20))
    assert both["topic_mean_s"] == pytest.approx((2 * 900 + 20 * 10) / (2 * 40 + 20))


def test_what_else_is_in_the_batch_and_the_order_of_candidates_do_not_matter_to_the_bit(moment: RankingBatch):
    turned = RankingQuery(
        ann(), NOW_MS, ["unheard-2", "z", "bare", "x"], np.array([np.nan, 2, np.nan, 1.5], np.float32)
    )
    alone = ranking_batch_of([turned], catalogue(), [known()])
    np.testing.assert_array_equal(compute_numbers(alone, "query"), compute_numbers(moment, "query")[:1])
    ours, theirs = compute_numbers(alone, "impression")[::-1], compute_numbers(moment, "impression")[:4]
    np.testing.assert_array_equal(ours, theirs)


def test_equal_scores_share_their_place_so_the_order_of_candidates_does_not_matter():
    scores = np.array([1.0, 2.0, 1.0, np.nan, 0.5], np.float32)
    tied = ranking_batch_of([RankingQuery(ann(), NOW_MS, ["x", "y", "z", "bare", "x"], scores)], catalogue(), [])
    np.testing.assert_array_equal(tied.candidates.rank, [2, 1, 2, np.nan, 4])


def test_ranks_and_best_are_those_on_record_where_they_are_given():
    """A list that is computed again from its impression holds what was shown, not all candidates."""
    scores = np.array([1.5, 1.0], np.float32)
    query = RankingQuery(ann(), NOW_MS, ["x", "z"], scores, np.array([4, 9], np.float32), best=3.5)
    again = ranking_batch_of([query], catalogue(), [known()])
    seen = [numbers(again, "impression", row) for row in (0, 1)]
    assert [(each["retrieval_rank"], each["retrieval_gap"]) for each in seen] == [(4, -2), (9, -2.5)]
    assert again.candidates.sources.codes.tolist() == [[1, 0, 0, 0]] * 2


def test_the_scores_of_the_sources_that_nominated_it_are_features(moment: RankingBatch):
    y = numbers(moment, "impression", 4)
    assert (y["trending_watches"], y["similar_score"]) == (12.5, 0.75)


def test_a_request_without_candidates_has_features_of_the_query_only():
    none = batch_of(ann(), known=[known()])
    assert compute_numbers(none, "query").shape[0] == 1
    assert compute_numbers(none, "impression").shape == (0, len(numbers_of("impression")))


def test_what_an_item_has_whoever_asks_is_read_from_nothing_of_the_request(moment: RankingBatch):
    """Ann with her scores, and a stranger hours later: equal to the bit for one moment of what is known."""
    items, nothing = ["x", "bare", "z", "unheard-2"], np.full(4, np.nan, np.float32)
    stranger = RankingQuery(Viewer(), NOW_MS + DAY_MS, items, nothing, known_ms=NOW_MS)
    other = ranking_batch_of([stranger], catalogue(), [known()])
    np.testing.assert_array_equal(
        compute_numbers(other, "impression", True), compute_numbers(moment, "impression", True)[:4]
    )
    ours, theirs = compute_ids(other, "impression", True), compute_ids(moment, "impression", True)
    assert ours.keys() == {"candidate", "channel", "topics", "length"}
    for name, named in ours.items():
        np.testing.assert_array_equal(named.codes, theirs[name].codes[:4])


def test_what_is_known_of_items_stands_for_the_moment_that_is_given():
    then = numbers(batch_of(Viewer(), "x", known=[known()]), "impression", 0)
    later = RankingQuery(Viewer(), NOW_MS + 3_600_000, ["x"], np.zeros(1, np.float32), known_ms=NOW_MS)
    still = numbers(ranking_batch_of([later], catalogue(), [known()]), "impression", 0)
    assert still["age_h"] == then["age_h"] == 2.0
    moved = numbers(batch_of(Viewer(), "x", known=[known()], now_ms=NOW_MS + 3_600_000), "impression", 0)
    assert moved["age_h"] == 3.0
    assert moved["item_mean_s"] != then["item_mean_s"] == still["item_mean_s"]


ITEMS = st.sampled_from(["x", "y", "z", "bare", "three", "two", "unheard", "unheard-2"])
WATCHES = st.lists(st.tuples(ITEMS, st.integers(0, 9_000), st.sampled_from([NAN, 0.0, 3.5, 80.0])), max_size=8)
REQUESTS = st.tuples(WATCHES, st.lists(st.lists(ITEMS, max_size=4), max_size=3), st.lists(ITEMS, max_size=9))


@given(st.lists(REQUESTS, min_size=1, max_size=4))
def test_candidates_that_are_about_the_same_have_what_each_would_have_by_itself_to_the_bit(asked: list[Any]):
    """Many candidates are compared with a history by what they are about, few by themselves."""
    facts = catalogue()
    facts.upsert("three", channel="d", topics=["s", "u", "t"], duration_s=45.0)
    facts.upsert("two", channel="d", topics=["s", "u"], duration_s=45.0)
    queries = []
    for watches, lists, item_ids in asked:
        seen = [Watch(item_id, ago(s), watch_s, None) for item_id, s, watch_s in sorted(watches, key=lambda w: -w[1])]
        shown = [ShownList(ago(100 - at), list(items)) for at, items in enumerate(lists)]
        queries.append(RankingQuery(Viewer(seen, impressions=shown), NOW_MS, item_ids, np.zeros(len(item_ids))))
    values = []
    for few in (0, 1_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranking_batch, "FEW", few)
            values.append(compute_numbers(ranking_batch_of(queries, facts, [known()]), "impression"))
    np.testing.assert_array_equal(values[0], values[1])

import numpy as np
import polars as pl
import pytest

from models.catalogue import Catalogue
from models.features import FEATURES, Statistics, compute_features, read_histories, retrieval_gap
from models.log import log_from_frame
from models.ranker_training import exposure_features
from tests.models.samples import START_MS, Viewer, Watch, small_exposures, small_log, small_source

NOTHING = np.full(1, np.nan, np.float32)


def catalogue() -> Catalogue:
    facts = Catalogue()
    facts.upsert("x", channel="c", topics=["t"], duration_s=40.0, published_ms=START_MS - 7_200_000)
    facts.upsert("y", channel="c", topics=["s"])
    facts.upsert("z", channel="d", topics=["t"])
    facts.upsert("bare")
    return facts


def features_of(item_id: str, viewer: Viewer, now_ms: int = START_MS) -> dict[str, float]:
    facts = catalogue()
    known = Statistics(*(np.array([value]) for value in (10.0, 200.0, 5.0, 100.0, 1000.0, 20.0)))
    histories = read_histories([viewer], facts)
    zero = np.zeros(1, np.int64)
    rows = facts.rows([item_id])
    values = compute_features(
        facts, histories, now_ms=zero + now_ms, request=zero, rows=rows, statistics=known, gap=NOTHING
    )
    return dict(zip(FEATURES, values[0].tolist(), strict=True))


def test_the_past_with_a_channel_and_a_topic_is_counted():
    before = Viewer(
        [
            Watch("x", START_MS - 50_000, 30.0),
            Watch("y", START_MS - 20_000, 5.0, completed=False),
            Watch("z", START_MS - 8_000, 7.0),
        ]
    )
    seen = features_of("x", before)
    assert (seen["channel_watches"], seen["channel_watch_s"], seen["channel_since_s"]) == (2, 35, 20)
    assert (seen["topic_watches"], seen["topic_watch_s"]) == (2, 37)
    assert (seen["item_watches"], seen["since_last_s"], seen["history_watches"]) == (1, 8, 3)
    assert seen["history_mean_s"] == 14


def test_item_statistics_are_smoothed_towards_the_mean():
    seen = features_of("x", Viewer())
    np.testing.assert_allclose(seen["item_mean_s"], (200 + 20 * 10) / 30, rtol=1e-6)
    np.testing.assert_allclose(seen["item_completion"], (5 + 20 * 0.2) / 30, rtol=1e-6)
    np.testing.assert_allclose(seen["item_log_share"], np.log(11 / 105), rtol=1e-6)
    assert (seen["item_duration_s"], seen["item_age_h"]) == (40, 2)


def test_what_is_not_known_is_missing_and_not_zero():
    seen = features_of("nobody-knows", Viewer())
    missing = {name for name, value in seen.items() if np.isnan(value)}
    expected = {"item_duration_s", "item_age_h", "channel_since_s", "since_last_s", "history_mean_s", "retrieval_gap"}
    assert missing == expected


def test_items_without_a_channel_share_no_channel():
    seen = features_of("bare", Viewer([Watch("bare", START_MS - 1000), Watch("unheard", START_MS - 1000)]))
    assert (seen["channel_watches"], seen["topic_watches"], seen["item_watches"]) == (0, 0, 1)


def test_two_unknown_items_are_not_the_same_item():
    assert features_of("unheard-1", Viewer([Watch("unheard-2")]))["item_watches"] == 0


def test_times_ahead_of_now_count_as_now():
    seen = features_of("x", Viewer([Watch("x", START_MS + 5000)]), now_ms=START_MS)
    assert (seen["channel_since_s"], seen["since_last_s"]) == (0, 0)


def test_the_gap_is_measured_from_the_best_score_of_the_request():
    gap = retrieval_gap(np.array([1.0, 3.0, np.nan, 2.5], np.float32))
    np.testing.assert_array_equal(gap, [-2, 0, np.nan, -0.5])
    assert np.isnan(retrieval_gap(np.full(3, np.nan, np.float32))).all()


def features_of_log(frame: pl.DataFrame) -> np.ndarray:
    exposures, facts = small_exposures(frame)
    return exposure_features(exposures, np.arange(frame.height), facts)


@pytest.fixture(scope="module")
def at_rest() -> np.ndarray:
    return features_of_log(small_log(400))


@pytest.mark.parametrize("cut", [1, 57, 200, 399])
def test_no_feature_sees_its_own_outcome_or_the_future(at_rest: np.ndarray, cut: int):
    """Shuffle all outcomes from the cut on, and everything after it: features up to and at the cut stay."""
    frame, rng = small_log(400), np.random.default_rng(cut)
    outcome, after = cut + rng.permutation(400 - cut), cut + 1 + rng.permutation(400 - cut - 1)
    columns = {name: frame[name].to_numpy().copy() for name in frame.columns}
    columns["watch_s"][cut:] = columns["watch_s"][outcome]
    for name in ("user_id", "item_id"):
        columns[name][cut + 1 :] = columns[name][after]
    shuffled = features_of_log(pl.DataFrame(columns))
    np.testing.assert_array_equal(shuffled[: cut + 1], at_rest[: cut + 1])
    if cut == 57:
        assert (np.nan_to_num(shuffled[cut + 1 :]) != np.nan_to_num(at_rest[cut + 1 :])).any()


def test_training_and_serving_compute_the_same_features(at_rest: np.ndarray):
    """The last row of the log, once from the log's columns and once from a viewer as serving has it."""
    log = log_from_frame(small_log(400), 18.0)
    facts = small_source().catalogue
    row = log.frame.row(399, named=True)
    past = log.frame.head(399)
    mine = past.filter(pl.col("user_id") == row["user_id"]).tail(50)
    same = past.filter(pl.col("item_id") == row["item_id"])
    totals = [(frame.height, frame["watch_s"].sum(), frame["completed"].sum()) for frame in (same, past)]
    viewer = Viewer([Watch(w["item_id"], w["event_ms"], w["watch_s"]) for w in mine.iter_rows(named=True)])
    served = compute_features(
        facts,
        read_histories([viewer], facts),
        now_ms=np.array([row["event_ms"]]),
        request=np.array([0]),
        rows=facts.rows([row["item_id"]]),
        statistics=Statistics(*(np.array([float(value)]) for value in (*totals[0], *totals[1]))),
        gap=NOTHING,
    )
    np.testing.assert_allclose(served[0], at_rest[399], rtol=1e-5)

"""What is shown in the simulated world: lists in order, an effect of position, and what was passed over sinks."""

import numpy as np
import polars as pl
import pytest

from infra.simulation.browsing_model import LOOK_ON, MOST_ANSWERS, Memory, first_of, look_down, without_repeats
from infra.simulation.population import HOUR_MS
from infra.simulation.world import World
from models.logs.log import CONTEXT_NAMES, LOG_COLUMNS

START_MS = 1_750_000_000_000
DAY_MS = 24 * HOUR_MS
LENGTH = 20


def past(seed: int, lists: int) -> tuple[World, pl.DataFrame, pl.DataFrame]:
    """A world, its self-chosen watches of a week, and what was shown in the three days after it."""
    world = World(seed=seed, start_ms=START_MS, users=300, channels=40, items=500)
    log = world.past_log(START_MS - 10 * DAY_MS, START_MS - 3 * DAY_MS, 3000)
    return world, log, world.past_exposures(START_MS - 3 * DAY_MS, START_MS, lists, LENGTH)


@pytest.fixture(scope="module")
def shown() -> tuple[World, pl.DataFrame, pl.DataFrame]:
    return past(seed=3, lists=6000)


def test_the_same_seed_shows_the_same_and_draws_from_nothing_else():
    world, log, exposures = past(seed=1, lists=200)
    _, _, again = past(seed=1, lists=200)
    without = World(seed=1, start_ms=START_MS, users=300, channels=40, items=500)
    assert exposures.equals(again)
    assert log.equals(without.past_log(START_MS - 10 * DAY_MS, START_MS - 3 * DAY_MS, 3000))
    assert world.visitors(50) == without.visitors(50)


def test_exposures_are_a_log_of_whole_lists_in_order(shown):
    _, _, exposures = shown
    assert set(LOG_COLUMNS + CONTEXT_NAMES) < set(exposures.columns)
    assert exposures.null_count().sum_horizontal().item() == 0
    assert exposures["event_ms"].is_sorted()
    lists = exposures.group_by("request_id", maintain_order=True).agg(
        pl.col("position"),
        pl.col("item_id").n_unique().alias("items"),
        *(pl.col(name).n_unique() for name in ("user_id", "event_ms", "device", "region")),
        (pl.col("watch_s") > 0).sum().alias("started"),
    )
    assert lists["request_id"].to_list() == [f"sim-r-{n}" for n in range(1, 6001)]
    assert all(positions == list(range(1, LENGTH + 1)) for positions in lists["position"].to_list())
    assert (lists["items"] == LENGTH).all()
    assert (lists.select("user_id", "event_ms", "device", "region") == 1).to_numpy().all()
    assert 1 <= lists["started"].max() <= MOST_ANSWERS


def test_nobody_is_shown_what_is_not_out_or_what_they_have_watched(shown):
    world, log, exposures = shown
    published = dict(world.items_frame(START_MS).select("item_id", "published_ms").iter_rows())
    watched = set(log.select("user_id", "item_id").iter_rows())
    for user_id, item_id, event_ms, watch_s in exposures.select(
        "user_id", "item_id", "event_ms", "watch_s"
    ).iter_rows():
        assert (user_id, item_id) not in watched
        assert published[item_id] <= event_ms
        if watch_s:
            watched.add((user_id, item_id))


def test_what_stands_low_is_started_less_however_good_it_is(shown):
    _, _, exposures = shown
    top, low = (exposures.filter(pl.col("position").is_between(*places)) for places in ((1, 3), (18, 20)))
    assert (top["watch_s"] > 0).mean() > 5 * (low["watch_s"] > 0).mean() > 0
    assert low["true_s"].mean() > 0.6 * top["true_s"].mean()


def test_the_truth_of_an_exposure_is_the_mean_of_what_is_watched(shown):
    _, _, exposures = shown
    first = exposures.filter(pl.col("position") == 1)
    surplus = (first["watch_s"] - LOOK_ON * first["true_s"]).to_numpy()
    assert abs(surplus.mean()) < 4 * surplus.std() / len(surplus) ** 0.5


def test_what_was_passed_over_sinks_in_the_truth_and_no_further_than_its_limit():
    world = World(seed=1, start_ms=START_MS, users=300, channels=40, items=500)
    item_ids = [f"v{row:06d}" for row in range(LENGTH)]
    before = world.start_chance("u00007", item_ids, START_MS)
    watched = {watch.item_id for watch in world.respond("u00007", item_ids, START_MS)}
    after = world.start_chance("u00007", item_ids, START_MS)
    assert after[0] < before[0]  # the first was looked at, with this seed, and so it was watched or passed over
    assert after[-1] == before[-1]  # the last was not
    assert all((chance == 0) == (item in watched) for item, chance in zip(item_ids, after, strict=True))
    for _ in range(100):
        world.respond("u00007", item_ids[:1], START_MS)
    least = world.start_chance("u00007", item_ids[:1], START_MS)[0]
    assert least == 0 or least > before[0] / 25


def test_an_impression_is_worth_the_chance_to_start_times_the_seconds_then_watched():
    world = World(seed=1, start_ms=START_MS, users=300, channels=40, items=500)
    item_ids = ["v000003", "v000400"]
    chance, seconds = (of("u00007", item_ids, START_MS) for of in (world.start_chance, world.expected_watch_s))
    np.testing.assert_allclose(world.expected_seconds("u00007", item_ids, START_MS), chance * seconds)
    world.watch("u00007", "v000003", START_MS)
    assert world.expected_seconds("u00007", item_ids, START_MS)[0] == 0


def test_who_has_started_enough_looks_no_further():
    looked, started = look_down(np.random.default_rng(1), np.ones((500, 10)))
    assert (started == looked).all()
    assert started.sum(axis=1).max() == MOST_ANSWERS
    assert not started[:, MOST_ANSWERS:].any()
    none, nothing = look_down(np.random.default_rng(1), np.zeros((500, 10)))
    assert not nothing.any()
    assert abs(none[:, 0].mean() - LOOK_ON) < 0.05
    assert (np.diff(none.astype(int), axis=1) <= 0).all()


def test_the_memory_counts_by_person_and_video():
    memory = Memory(users=2)
    memory.pass_over(np.array([0, 0, 1]), np.array([5, 5, 6]))
    memory.watch(np.array([1]), np.array([5]))
    users, rows = np.array([0, 1, 0, 1]), np.array([5, 5, 6, 6])
    assert memory.times_passed(users, rows).tolist() == [2, 0, 0, 1]
    assert memory.has_watched(users, rows).tolist() == [False, True, False, False]


def test_runs_without_repeats_cover_everybody_in_order():
    users = np.array([1, 2, 1, 3, 4, 5, 5])
    assert [users[run].tolist() for run in without_repeats(users, most=3)] == [[1, 2], [1, 3, 4], [5], [5]]
    assert list(without_repeats(np.zeros(0, np.int64), most=3)) == []


def test_the_first_of_a_race_are_its_smallest_in_order():
    race = np.array([[3, 1, 2, 9], [7, 8, 5, 6]], np.float32)
    assert first_of(race, 3).tolist() == [[1, 2, 0], [2, 3, 0]]

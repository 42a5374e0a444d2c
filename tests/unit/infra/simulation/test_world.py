"""The simulated world: reproducible, truthful about what it expects, and learnable in the ways the product claims."""

import sys

import numpy as np
import polars as pl
import pytest

from infra.simulation.population import HOUR_MS, affinity, favourites, log_popularity
from infra.simulation.world import NOTICE, World

START_MS = 1_750_000_000_000
DAY_MS = 24 * HOUR_MS


def small_world(seed: int = 1) -> World:
    return World(seed=seed, start_ms=START_MS, users=300, channels=40, items=500)


@pytest.fixture(scope="module")
def lived() -> tuple[World, pl.DataFrame]:
    world = World(seed=2, start_ms=START_MS, users=800, channels=48, items=1500)
    return world, world.past_log(START_MS - 7 * DAY_MS, START_MS, 40_000)


def completed(log: pl.DataFrame) -> pl.DataFrame:
    done = log.filter(pl.col("watch_s") >= pl.min_horizontal("duration_s", pl.lit(18.0)))
    rows = [pl.col(name).str.slice(1).cast(pl.Int64).alias(name[:4]) for name in ("user_id", "item_id")]
    return done.with_columns(rows)


def test_the_same_seed_and_calls_give_the_same_events() -> None:
    one, two, other = small_world(), small_world(), small_world(seed=5)
    logs = [world.past_log(START_MS - DAY_MS, START_MS, 2000) for world in (one, two, other)]
    assert logs[0].equals(logs[1])
    assert not logs[0].equals(logs[2])
    assert one.step(START_MS + 5000) == two.step(START_MS + 5000)
    item_ids = [item.item_id for item in one.catalogue(START_MS)]
    assert one.respond("u00007", item_ids, START_MS) == two.respond("u00007", item_ids, START_MS)


def test_the_past_is_a_log_in_order_of_time_without_repeats(lived: tuple[World, pl.DataFrame]) -> None:
    world, log = lived
    assert 36_000 < len(log) < 44_000
    assert log["event_ms"].is_sorted()
    assert log["event_ms"].min() >= START_MS - 7 * DAY_MS
    assert log["event_ms"].max() < START_MS
    assert log["event_id"].is_unique().all()
    assert log.select("user_id", "item_id").is_unique().all()
    assert (log["watch_s"] >= 0).all()
    assert (log["watch_s"] <= log["duration_s"].clip(8) + 0.01).all()
    published = dict(world.items_frame(START_MS).select("item_id", "published_ms").iter_rows())
    assert all(at >= published[item_id] for item_id, at in log.select("item_id", "event_ms").iter_rows())


def test_messages_of_the_past_say_the_same_as_its_log() -> None:
    log = small_world().past_log(START_MS - DAY_MS, START_MS, 500)
    events = list(small_world().messages(log))
    assert [e.event_id for e in events] == log["event_id"].to_list()
    assert [e.watch_s for e in events] == log["watch_s"].to_list()


def test_a_past_search_tells_something_of_the_next_watch(lived: tuple[World, pl.DataFrame]) -> None:
    world, log = lived
    searches = world.past_searches(log, chance=0.2)
    assert searches["event_ms"].is_sorted() and searches["event_id"].is_unique().all()
    assert 0.18 < len(searches) / len(log) < 0.22
    watches = log.select("user_id", "item_id", watched_ms="event_ms").sort("watched_ms")
    after = searches.join_asof(
        watches, left_on="event_ms", right_on="watched_ms", by="user_id", strategy="forward", check_sortedness=False
    )
    items = {item.item_id: (item.channel or "", item.topics[0]) for item in world.catalogue(START_MS)}
    found = [any(word in query for word in items[item]) for query, item in after.select("query", "item_id").iter_rows()]
    other = [
        any(word in query for word in items[item]) for query, item in zip(after["query"], log["item_id"], strict=False)
    ]
    assert np.mean(found) > 0.9
    assert np.mean(other) < 0.2


def test_the_past_is_the_same_whether_its_searches_are_asked_for_or_not() -> None:
    one, two = small_world(), small_world()
    first = one.past_log(START_MS - DAY_MS, START_MS, 500)
    searches = one.past_searches(first)
    assert first.equals(two.past_log(START_MS - DAY_MS, START_MS, 500))
    assert searches.equals(two.past_searches(first))
    assert one.step(START_MS + 5000).watches == two.step(START_MS + 5000).watches


def test_a_live_search_is_for_what_is_watched_next() -> None:
    world = small_world()
    items = {item.item_id: (item.channel or "", item.topics[0]) for item in world.catalogue(START_MS)}
    happened = world.step(START_MS + 60_000)
    watched = {search.user_id: set() for search in happened.searches}
    for watch in happened.watches:
        watched.get(watch.user_id, set()).update(items.get(watch.item_id, ()))
    assert len(happened.searches) > 100
    assert all(any(word in search.query for word in watched[search.user_id]) for search in happened.searches)


def test_a_step_publishes_an_item_every_minute_and_happens_in_its_own_time() -> None:
    world = small_world()
    happened = [world.step(START_MS + 1000 * second) for second in range(10, 190, 10)]
    items = [item for h in happened for item in h.items]
    assert [item.published_ms for item in items] == [START_MS + 60_000, START_MS + 120_000, START_MS + 180_000]
    assert world.catalogue(START_MS + 180_000)[-3:] == items
    for second, h in zip(range(10, 190, 10), happened, strict=True):
        since = START_MS + 1000 * (second - 10)
        assert all(since < event.event_ms <= since + 10_000 for event in [*h.watches, *h.searches])
    watches = sum(len(h.watches) for h in happened)
    assert 16_000 < watches <= 19_000  # 180 s at 100/s, less the repeats
    assert any(h.searches for h in happened)


def test_time_that_passes_idle_brings_items_but_no_watches() -> None:
    world = small_world()
    world.idle_until(START_MS + 120_000)
    happened = world.step(START_MS + 121_000)
    assert [item.published_ms for item in happened.items] == [START_MS + 60_000, START_MS + 120_000]
    assert 50 < len(happened.watches) < 160
    assert not world.step(START_MS + 122_000).items


def test_a_person_watches_what_is_published_at_once() -> None:
    world = small_world()
    item = world.publish(world.population.channel_names[0], START_MS + 1)
    watched = {watch.item_id for watch in world.step(START_MS + 60_000).watches}
    assert item.item_id in watched


def test_the_expected_seconds_are_the_mean_of_what_is_watched() -> None:
    world = small_world()
    item_ids = [f"v{row:06d}" for row in (3, 80, 200, 400)]
    users = [f"u{row:05d}" for row in (7, 130)]
    for user in users:
        expected = world.expected_watch_s(user, item_ids, START_MS)
        for item_id, mean in zip(item_ids, expected, strict=True):
            drawn = [world.watch(user, item_id, START_MS).watch_s for _ in range(200)]
            assert abs(np.mean(drawn) - mean) < 4 * np.std(drawn) / 200**0.5


def test_what_is_liked_more_is_started_more_and_watched_longer() -> None:
    world = small_world()
    loved, ignored = [], []
    for user in world.visitors(40):
        mine = set(world.favourites(user, START_MS))
        ids = [(item.item_id, item.channel in mine) for item in world.catalogue(START_MS)]
        chance = world.start_chance(user, [item_id for item_id, _ in ids], START_MS)
        expected = world.expected_watch_s(user, [item_id for item_id, _ in ids], START_MS)
        is_mine = np.array([flag for _, flag in ids])
        loved.append((chance[is_mine].mean(), expected[is_mine].mean()))
        ignored.append((chance[~is_mine].mean(), expected[~is_mine].mean()))
    assert np.mean(loved, axis=0)[0] > 2 * np.mean(ignored, axis=0)[0]
    assert np.mean(loved, axis=0)[1] > 1.2 * np.mean(ignored, axis=0)[1]


def test_a_good_list_is_answered_by_more_watches_than_a_random_one() -> None:
    world, rng = small_world(), np.random.default_rng(3)
    item_ids = [item.item_id for item in world.catalogue(START_MS)]
    good = bad = 0
    for n, user in enumerate(world.user_ids[:200]):
        chance = world.start_chance(user, item_ids, START_MS)
        good += len(world.respond(user, [item_ids[i] for i in np.argsort(-chance)[:20]], START_MS, f"r{n}"))
        bad += len(world.respond(user, list(rng.permutation(item_ids)[:20]), START_MS, f"r{n}"))
    assert good > 1.6 * bad > 0


def test_an_answer_names_its_request_and_passes_over_strangers_and_repeats() -> None:
    world = small_world()
    answers = [
        a for _ in range(60) for a in world.respond("u00001", ["elsewhere", "v000010", "v000011"], START_MS, "r1")
    ]
    assert 0 < len(answers) <= 2
    assert {answer.request_id for answer in answers} == {"r1"}
    assert {answer.item_id for answer in answers} <= {"v000010", "v000011"}


def test_a_name_that_the_world_does_not_have_is_refused_by_name() -> None:
    world = small_world()
    with pytest.raises(ValueError, match="no user 'u99999'"):
        world.watch("u99999", "v000001", START_MS)
    with pytest.raises(ValueError, match="no item 'v999999'"):
        world.expected_watch_s("u00001", ["v000001", "v999999"], START_MS)
    with pytest.raises(ValueError, match="no channel 'Nothing'"):
        world.publish("Nothing", START_MS)


def test_tastes_drift_but_the_first_favourite_stays() -> None:
    world = small_world()
    users = np.arange(300)
    now, later = (favourites(world.population, users, np.full(300, at)) for at in (START_MS, START_MS + 10 * DAY_MS))
    assert (now[:, 0] == later[:, 0]).all()
    assert (now[:, 1:] != later[:, 1:]).mean() > 0.5


def test_popularity_rises_and_decays() -> None:
    world = small_world()
    column = world.videos
    born = int(column.published_ms[100])
    before, first, later = (log_popularity(column, at)[100] for at in (born - 1, born + HOUR_MS, born + 3 * DAY_MS))
    assert before == -np.inf
    ages = [
        np.mean(log_popularity(column, START_MS)[START_MS - column.published_ms > days * DAY_MS]) for days in (0, 2, 5)
    ]
    assert ages[0] > ages[1] > ages[2]
    assert np.isfinite([first, later]).all()


def test_three_completed_watches_of_a_channel_imply_taste_for_it(lived: tuple[World, pl.DataFrame]) -> None:
    world, log = lived
    done = completed(log).tail(10_000)
    loved = total = 0
    for (user,), watches in done.group_by("user"):
        channels = world.videos.channel[watches["item"].tail(10).to_numpy()]
        often = np.flatnonzero(np.bincount(channels) >= 3)
        mine = favourites(world.population, np.array([user]), watches["event_ms"].tail(1).to_numpy())[0]
        loved, total = loved + np.isin(often, mine).sum(), total + len(often)
    assert total > 100
    assert loved / total > 0.6  # by chance: 4 of 48


def test_taste_and_popularity_both_matter_for_the_next_watch(lived: tuple[World, pl.DataFrame]) -> None:
    """Recall@10 of two predictors that see the log only, and of the truth with and without each of its halves."""
    world, log = lived
    done = completed(log)
    train, test = done.head(len(done) - 600), done.tail(600)
    channel, size = world.videos.channel, len(world.videos)
    recent = np.bincount(train["item"].tail(3000), minlength=size) + 1.0
    liked = np.full((800, 48), 0.1)
    np.add.at(liked, (train["user"].to_numpy(), channel[train["item"].to_numpy()]), 1)
    seen = {user: watches["item_id"].str.slice(1).cast(pl.Int64) for (user,), watches in log.group_by("user_id")}
    hits = dict.fromkeys(("popular", "personal", "true taste", "true popularity", "truth"), 0)
    for user, item, at in test.select("user", "item", "event_ms").iter_rows():
        taste = affinity(world.videos, np.array([user]), np.array([at]))[0]
        popularity = log_popularity(world.videos, at)
        personal = liked[user][channel] * recent**0.5
        others = np.setdiff1d(seen[f"u{user:05d}"], [item])
        for name, score in zip(hits, (recent, personal, taste, popularity, taste + popularity), strict=True):
            hits[name] += int((np.delete(score, others) > score[item]).sum() < 10)
    assert hits["personal"] > 1.3 * hits["popular"]
    assert hits["popular"] > 3 * 600 * 10 / size
    assert hits["truth"] > 1.3 * max(hits["true taste"], hits["true popularity"])


def test_it_says_that_it_is_simulated() -> None:
    assert "SIMULATED" in (World.__doc__ or "") + (sys.modules[World.__module__].__doc__ or "")
    assert "simulated" in NOTICE

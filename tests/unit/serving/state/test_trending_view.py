"""The lists of what is trending: partitions added up, regions beside the world, and what is made again when."""

import numpy as np
import pytest

from serving.state.trending_view import WORLDWIDE, TrendingList, TrendingView, add_up
from streams.messages import Trending, encode
from streams.trending.back_off import BACK_OFF, EVER
from streams.trending.rules import GLOBAL, DecayedCounts

DAY_MS = 86_400_000
MANY = 1000 * BACK_OFF


def trending(
    scope: str, partition: int, *items: tuple[str, float], as_of_ms: int = 0, old: bool = True
) -> tuple[bytes, bytes]:
    """Counts that are the same by each half-life; `old`: as they were told when there was one."""
    slower_s = () if old else (100.0,)
    slower = () if old else tuple((count, count) for _, count in items)
    totals = () if old else (sum(count for _, count in items),) * 3
    message = Trending(scope, partition, as_of_ms, 10.0, items, 0, slower_s, slower, totals)
    return f"{scope}/{partition}".encode(), encode(message)


def watches_of(view: TrendingView, region: str | None = None) -> dict[str, float]:
    found = view.best(region)
    return dict(zip(found.item_ids, found.watches.tolist(), strict=True))


def test_partitions_are_added_up_at_the_same_time() -> None:
    older = Trending(
        GLOBAL, 0, 0, 10.0, (("a", 8.0), ("b", 1.0)), 0, (20.0,), ((8.0, 9.0), (2.0, 4.0)), (9.0, 10.0, 13.0)
    )
    newer = Trending(
        GLOBAL, 1, 20_000, 10.0, (("b", 3.0), ("c", 4.0)), 0, (20.0,), ((3.0, 3.0), (4.0, 4.0)), (7.0, 7.0, 7.0)
    )
    sums = add_up([older, newer])
    assert dict(zip(sums.item_ids, sums.counts.tolist(), strict=True)) == {
        "a": [2.0, 4.0, 9.0],
        "b": [3.25, 4.0, 7.0],
        "c": [4.0, 4.0, 4.0],
    }
    assert sums.totals.tolist() == [9.25, 12.0, 20.0] and sums.as_of_ms == 20_000


def test_a_partition_of_before_there_were_several_half_lives_counts_beside_the_others() -> None:
    older = Trending(GLOBAL, 0, 0, 10.0, (("a", 8.0),))
    newer = Trending(GLOBAL, 1, 20_000, 10.0, (("b", 3.0),), 0, (20.0,), ((3.0, 5.0),), (3.0, 3.0, 5.0))
    sums = add_up([older, newer])
    assert sums.counts.tolist() == [[2.0, 4.0, 8.0], [3.0, 3.0, 5.0]]


@pytest.mark.parametrize("old", [True, False])
def test_a_partitions_newer_list_replaces_its_older_one(old: bool) -> None:
    view = TrendingView()
    for newer in ((("a", 8.0),), (("b", 2.0),)):
        view.apply(*trending(GLOBAL, 0, *newer, old=old))
        assert watches_of(view) == dict(newer)
    view.apply(b"global/0", None)
    assert not view.best().item_ids and not view.best("de").item_ids


def test_items_of_an_old_log_are_told_apart_by_all_time_and_by_when_they_were_watched() -> None:
    """All that was watched lies years before the newest watch, on another partition: no count of now is left."""
    view = TrendingView()
    slower = ((0.0, 3.0), (1e-30, 2.0), (1e-20, 2.0), (0.0, 1.0))
    items = tuple((item_id, 0.0) for item_id in ("m", "a", "z", "b"))
    old = Trending(GLOBAL, 0, 0, 3600.0, items, 0, (86_400.0,), slower, (0.0, 1e-20, 8.0))
    new = Trending(GLOBAL, 1, 400 * DAY_MS, 3600.0, (("new", 1.0),), 0, (86_400.0,), ((1.0, 1.0),), (1.0, 1.0, 1.0))
    view.apply(b"global/0", encode(old))
    view.apply(b"global/1", encode(new))
    found = view.best()
    assert found.item_ids == ["m", "z", "a", "new", "b"]
    assert (found.shares > 0).all() and (np.diff(found.shares) <= 0).all()


def test_the_list_of_an_old_log_is_what_was_watched_towards_its_end() -> None:
    """A film a day over the years 2013 to 2015, on two partitions: by the worker's counts, and by the formula."""
    half_lives_s = (6 * 3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
    start_ms, rng = 1_360_000_000_000, np.random.default_rng(1)
    days = np.sort(rng.uniform(0, 1000, 3000))
    films = ((0.04 * days).astype(int) + rng.zipf(1.5, 3000) % 40) % 60  # what is watched changes
    view, workers = TrendingView(), [DecayedCounts(half_lives_s, room=100) for _ in range(2)]
    for offset, (day, film) in enumerate(zip(days.tolist(), films.tolist(), strict=True)):
        workers[film % 2 if day < 999 else 0].add(f"film-{film}", start_ms + round(day * DAY_MS), offset)
    for partition, worker in enumerate(workers):
        view.apply(f"global/{partition}".encode(), encode(worker.message(GLOBAL, partition, 100)))
    ages_s = np.round((days[-1] - days) * DAY_MS) / 1000
    share = ever = np.bincount(films, minlength=60) / len(films)
    for half_life_s in half_lives_s[::-1]:
        weights = 0.5 ** (ages_s / half_life_s)
        share = (np.bincount(films, weights, minlength=60) + BACK_OFF * share) / (weights.sum() + BACK_OFF)
    share = EVER * ever + (1 - EVER) * share
    found = view.best()
    assert found.shares.tolist() == pytest.approx([share[int(name.removeprefix("film-"))] for name in found.item_ids])
    assert (np.diff(found.shares) < 0).all(), "no two films are alike"
    assert len(found.item_ids) == len(np.unique(films))


def test_a_region_has_its_own_order_as_far_as_enough_is_watched_there() -> None:
    view = TrendingView()
    view.apply(*trending(GLOBAL, 0, ("a", 8.0), ("b", 4.0), ("c", 1.0), old=False))
    for own, first in ((2.0, ["a", "b"]), (MANY, ["c", "a"])):
        view.apply(*trending("region/de", 0, ("c", own), old=False))
        found = view.best("de")
        assert found.item_ids[:2] == first and sorted(found.item_ids) == ["a", "b", "c"]
        assert watches_of(view, "de") == {"a": 8.0, "b": 4.0, "c": own}, "the region's own where it knows an item"
    assert view.best("fr") is view.best()


def test_a_regions_watches_are_those_of_now() -> None:
    view = TrendingView()
    view.apply(*trending("region/de", 0, ("c", 8.0)))
    view.apply(*trending(GLOBAL, 0, ("c", 4.0), as_of_ms=20_000))
    assert watches_of(view, "de") == {"c": 2.0}


def test_a_region_that_has_lost_its_place_on_a_partition_counts_on_the_others() -> None:
    view = TrendingView()
    view.apply(*trending(GLOBAL, 0, ("a", 1.0)))
    view.apply(*trending("region/de", 0, ("b", 8.0)))
    view.apply(*trending("region/de", 1, ("c", 9.0)))
    assert watches_of(view, "de") == {"a": 1.0, "b": 8.0, "c": 9.0}
    view.apply(b"region/de/1", None)
    assert watches_of(view, "de") == {"a": 1.0, "b": 8.0}
    view.apply(b"region/de/0", None)
    view.apply(b"region/fr/0", None)
    assert view.best("de") is view.best("fr") is view.best()


def test_of_a_long_list_of_the_world_a_region_takes_the_best() -> None:
    view = TrendingView()
    view.apply(*trending(GLOBAL, 0, *((f"i{at:04}", 5000.0 - at) for at in range(1000))))
    view.apply(*trending("region/de", 0, ("i0999", 1.0), ("own", 1.0)))
    found = view.best("de")
    assert len(found.item_ids) == WORLDWIDE + 2 and {"i0000", "i0499", "i0999", "own"} <= set(found.item_ids)


def test_what_is_asked_for_and_unknown_is_not_remembered() -> None:
    view = TrendingView()
    for number in range(100):
        assert not view.best(f"{number}").item_ids
    assert len(view._lists) == 1 and not view._parts


def test_a_list_is_made_again_only_when_its_scope_or_everybodys_has_changed() -> None:
    """With a thousand regions that change each second, a list costs what it is asked for."""
    view = TrendingView()
    view.apply(*trending(GLOBAL, 0, ("a", 8.0)))
    view.apply(*trending("region/de", 0, ("b", 8.0)))

    def lists() -> tuple[TrendingList, TrendingList]:
        return view.best(), view.best("de")

    world, region = lists()
    view.apply(*trending("region/fr", 0, ("c", 8.0)))
    assert lists()[0] is world and lists()[1] is region
    view.apply(*trending("region/de", 0, ("c", 8.0)))
    assert lists()[0] is world and lists()[1] is not region
    region = lists()[1]
    view.apply(*trending(GLOBAL, 0, ("a", 9.0)))
    assert lists()[0] is not world and watches_of(view, "de")["a"] == 9.0

"""Item statistics: by hand, and that a repeat after a crash counts nothing twice."""

import pytest

from models.ranking.features import SCHEMA_HASH
from streams.join.item_statistics import ItemStatistics
from streams.join.rules import Tally
from streams.messages import Impression, ImpressionOutline, Outcome, Shown, StatisticsRow, decode, encode

HOUR_MS = 3_600_000
HALF_LIFE_H = 10.0
START_MS = 1_700_000_000_000


def impression(at_h: float, *items: Shown, **change: object) -> ImpressionOutline:
    whole = Impression("r", "u", START_MS + round(at_h * HOUR_MS), "server", "v1", items, **change)  # type: ignore[arg-type]
    return decode(ImpressionOutline, encode(whole))


def shown(item_id: str, expected_s: float | None = None, **ids: tuple[str, ...]) -> Shown:
    return Shown(item_id, 1, "retrieval", expected_watch_s=expected_s, ids=ids)


def closing(each: ImpressionOutline, *watched_s: float, due_ms: int = 100, pushed_by: int | None = None) -> Tally:
    """An impression that has closed; a watch is completed from 18 s on."""
    outcomes = tuple(Outcome(item.item_id, s, s >= 18) for item, s in zip(each.items, watched_s, strict=True))
    return Tally(each, outcomes, None, due_ms, pushed_by)


def fresh() -> ItemStatistics:
    return ItemStatistics(2, HALF_LIFE_H)


def published(statistics: ItemStatistics, **mark: int) -> dict[tuple[str, str], StatisticsRow]:
    return {(row.scope, row.id): row for row in statistics.publish(**mark)}


def sums(row: StatisticsRow) -> tuple[float, ...]:
    return row.impressions, row.watches, row.seconds, row.completions, row.expected_s


def test_an_impression_is_counted_by_item_by_its_channels_and_topics_and_over_all():
    statistics = fresh()
    first = shown("a", channel=("c",), topics=("t1", "t2"))
    statistics.count(closing(impression(0, first, shown("b", channel=("c",))), 20.0, 0.0))
    rows = published(statistics, closed_ms=100)
    assert {key: sums(row)[:4] for key, row in rows.items()} == {
        ("item", "a"): (1, 1, 20, 1),
        ("item", "b"): (1, 0, 0, 0),
        ("channel", "c"): (2, 1, 20, 1),
        ("topic", "t1"): (1, 1, 20, 1),
        ("topic", "t2"): (1, 1, 20, 1),
        ("all", ""): (2, 1, 20, 1),
    }
    assert rows["item", "a"] == StatisticsRow("item", "a", 2, START_MS, 1, 1, 20, 1, 0, (100, -1))
    assert published(statistics, closed_ms=200) == {}, "only what was touched"


def test_sums_are_halved_with_each_half_life_and_an_older_impression_weighs_as_much_less():
    statistics = fresh()
    for at_h, watched_s in ((0.0, 8.0), (10.0, 20.0), (0.0, 4.0)):
        statistics.count(closing(impression(at_h, shown("a")), watched_s))
    row = published(statistics)["item", "a"]
    assert sums(row)[:4] == (0.5 + 1 + 0.5, 0.5 + 1 + 0.5, 4 + 20 + 2, 1)
    assert row.as_of_ms == START_MS + 10 * HOUR_MS, "the older one does not turn the time back"


def test_no_video_counts_for_more_than_the_cap():
    statistics = fresh()
    statistics.count(closing(impression(0, shown("a")), 7200.0))
    assert published(statistics)["item", "a"].seconds == 600.0
    statistics.count(closing(impression(0, shown("a"), cap_s=5400.0), 7200.0))
    assert published(statistics)["item", "a"].seconds == 600.0 + 5400.0, "each by the cap of the ranker that showed it"


def test_calibration_is_by_version_of_what_was_ranked_without_the_factor():
    statistics = fresh()
    ranked = impression(0, shown("a", 30.0), shown("b", 10.0), shown("c"), schema_hash=SCHEMA_HASH, factor=2.0)
    statistics.count(closing(ranked, 20.0, 0.0, 50.0))
    statistics.count(closing(impression(0, shown("a", 30.0)), 20.0))  # somebody else's ranker
    assert sums(published(statistics)["calibration", "v1"]) == (2, 1, 20, 1, 20.0)


def test_what_a_rival_ranked_calibrates_the_rival():
    statistics = fresh()
    statistics.count(closing(impression(0, shown("a", 30.0), schema_hash=SCHEMA_HASH), 20.0))
    statistics.count(closing(impression(0, shown("a", 9.0), schema_hash=SCHEMA_HASH, ranked_by="v2"), 5.0))
    rows = published(statistics)
    assert sums(rows["calibration", "v1"]) == (1, 1, 20, 1, 30.0)
    assert sums(rows["calibration", "v2"]) == (1, 1, 5, 0, 9.0)
    assert rows["item", "a"].impressions == 2, "what became of an item is so whoever has ranked it"


def test_a_correction_adds_the_difference_without_another_impression():
    statistics = fresh()
    each = impression(0, shown("a", 5.0), shown("b", 5.0), schema_hash=SCHEMA_HASH)
    statistics.count(closing(each, 20.0, 0.0))
    outcomes = (Outcome("a", 3.0, False), Outcome("b", 700.0, True))
    statistics.count(Tally(each, outcomes, (Outcome("a", 20.0, True),), 200))
    rows = published(statistics, closed_ms=200)
    assert sums(rows["item", "a"])[:4] == (1, 1, 3, 0) and sums(rows["item", "b"])[:4] == (1, 1, 600, 1)
    assert sums(rows["calibration", "v1"]) == (2, 2, 603, 1, 10)


def test_a_repeat_after_a_crash_is_counted_only_in_the_rows_that_do_not_hold_it_yet():
    tallies = [closing(impression(0, shown("a")), 20.0, due_ms=90), closing(impression(0, shown("b")), 20.0)]
    before = fresh()
    for tally in tallies:
        before.count(tally)
    rows = published(before, closed_ms=100)
    restored = fresh()
    restored.restore(rows["item", "a"])
    restored.restore(rows["all", ""])  # that of b was not acknowledged
    assert restored.closed_ms == 100
    for tally in tallies:
        restored.count(tally)
    assert published(restored, closed_ms=100) == {("item", "b"): rows["item", "b"]}
    restored.count(closing(impression(0, shown("a")), 1.0, due_ms=101))
    assert sums(published(restored, closed_ms=101)["all", ""])[:3] == (3, 3, 41)


def test_what_was_pushed_out_has_a_mark_of_its_own():
    statistics = fresh()
    pushed = closing(impression(0, shown("a")), 20.0, due_ms=5000, pushed_by=7)
    statistics.count(pushed)
    assert published(statistics, pushed_by=7)["item", "a"].mark == (-1, 7)
    statistics.count(pushed)
    assert published(statistics) == {}
    statistics.count(closing(impression(0, shown("a")), 1.0, due_ms=100))
    row = published(statistics, closed_ms=100)["item", "a"]
    assert row.mark == (100, 7) and row.seconds == 21.0, "windows before its own end are not behind it"


def test_rows_that_decayed_to_nothing_are_dropped_some_at_a_time_but_the_sum_of_all():
    statistics = fresh()
    statistics.count(closing(impression(0, *(shown(f"i{n}") for n in range(10))), *[0.0] * 10))
    statistics.publish()
    gone_h = 67  # 2^-6.7 = .0096
    statistics.count(closing(impression(gone_h, shown("new")), 1.0))
    now_ms = START_MS + gone_h * HOUR_MS
    assert statistics.sweep(START_MS + 66 * HOUR_MS, 100) == []
    looks = [statistics.sweep(now_ms, 4) for _ in range(4)]
    assert max(map(len, looks)) <= 4 and sum(map(len, looks)) == 10
    assert len(statistics) == 2 and set(published(statistics)) == {("item", "new"), ("all", "")}
    assert statistics.key_of("item", "new") == b"item/2/new"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_impressions_does_not_matter(order):
    at_h, watched_s = (0.0, 3.0, 7.0), (10.0, 20.0, 30.0)
    statistics = fresh()
    for n in order:
        statistics.count(closing(impression(at_h[n], shown("a")), watched_s[n]))
    naive = sum(s * 2 ** -((7 - h) / HALF_LIFE_H) for h, s in zip(at_h, watched_s, strict=True))
    assert published(statistics)["item", "a"].seconds == pytest.approx(naive)


def test_what_a_reporter_of_other_features_expected_calibrates_nothing():
    statistics = fresh()
    statistics.count(closing(impression(0, shown("a", 600.0), schema_hash="theirs"), 20.0))
    assert ("calibration", "v1") not in published(statistics)

"""Trending per region: who gets a place, what the topic is told, and that each watch counts once whatever crashes."""

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.platform.settings import Settings
from streams.kafka.intake import Raw
from streams.messages import Context, Trending, WatchEvent, decode, encode
from streams.topics import TRENDING, WATCH_EVENTS, partition_of
from streams.trending.app import count, publish, start, take_over
from streams.trending.rules import GLOBAL, PartitionCounts, region_scope
from tests.unit.streams.kafka.test_intake import Waiting

HALF_LIFE_S = 10.0
HALF_LIFE_MS = 10_000
START_MS = 1_700_000_000_000
SETTINGS = Settings.model_validate({"trending": {"half_life_s": HALF_LIFE_S, "regions": 3}})
HOME = partition_of("u", SETTINGS.kafka.partitions)

Watched = tuple[str, str | None, int]  # item, region, ms after the start


def counts_of(regions: int, *watches: Watched) -> PartitionCounts:
    counts = PartitionCounts((HALF_LIFE_S,), items=50, regions=regions, region_items=50)
    add(counts, *watches)
    return counts


def add(counts: PartitionCounts, *watches: Watched, first: int = 0) -> None:
    for offset, (item_id, region, after_ms) in enumerate(watches, start=first):
        counts.add(item_id, region, START_MS + after_ms, offset)


def told(counts: PartitionCounts) -> dict[str, dict[str, float] | None]:
    """What `counts` tells the topic: items and counts by scope."""
    return {scope: message and dict(message.items) for scope, message in counts.changes(0).items()}


def test_a_watch_counts_for_everybody_and_for_its_region():
    counts = counts_of(3, ("a", "de", 0), ("a", "fr", 0), ("b", None, 0), ("b", "", 0))
    assert told(counts) == {GLOBAL: {"a": 2.0, "b": 2.0}, "region/de": {"a": 1.0}, "region/fr": {"a": 1.0}}


def test_only_what_was_touched_is_told():
    counts = counts_of(3, ("a", "de", 0), ("a", "fr", 0))
    told(counts)
    assert told(counts) == {}
    add(counts, ("b", "fr", 0), first=2)
    assert told(counts) == {GLOBAL: {"a": 2.0, "b": 1.0}, "region/fr": {"a": 1.0, "b": 1.0}}
    add(counts, ("b", "fr", 0), first=2)
    assert told(counts) == {}, "a replay touches nothing"


def test_without_places_there_are_no_regions():
    counts = counts_of(0, ("a", "de", 0))
    assert told(counts) == {GLOBAL: {"a": 1.0}} and not counts._waiting


def test_a_place_goes_to_the_region_that_is_watched_twice_as_much_and_the_other_gets_a_tombstone():
    counts = counts_of(2, *[("a", "de", 0)] * 4, ("a", "fr", 0), ("a", "it", 0))
    assert told(counts).keys() == {GLOBAL, "region/de", "region/fr"}
    add(counts, ("b", "it", 0), first=6)
    assert told(counts) == {GLOBAL: {"a": 6.0, "b": 1.0}, "region/fr": None, "region/it": {"a": 1.0, "b": 1.0}}
    add(counts, *[("c", "fr", 0)] * 3, first=7)
    assert told(counts)["region/fr"] == {"a": 1.0, "c": 3.0}, "what was counted before it left counts when it is back"


def test_a_region_of_old_watches_gets_no_place():
    counts = counts_of(2, ("a", "de", 0), ("a", "fr", 11_000), ("a", "it", -20_000))
    assert told(counts).keys() == {GLOBAL, "region/fr"}


def test_lists_of_regions_are_cut_to_their_own_length():
    counts = PartitionCounts((HALF_LIFE_S,), items=3, regions=1, region_items=2)
    add(counts, *[(item, "de", 0) for item in "aaabbc"])
    assert told(counts) == {GLOBAL: {"a": 3.0, "b": 2.0, "c": 1.0}, "region/de": {"a": 3.0, "b": 2.0}}


def test_with_fewer_places_than_were_published_the_most_watched_stay():
    published = counts_of(3, *[("a", "de", 0)] * 3, ("a", "fr", 0), *[("a", "it", 0)] * 2).changes(0)
    for places, left in ((1, ["region/fr", "region/it"]), (0, ["region/de", "region/fr", "region/it"])):
        counts = counts_of(places)
        for message in published.values():
            assert message is not None
            counts.restore(message)
        assert told(counts) == dict.fromkeys(left)
        assert len(counts._waiting) <= 2 * places


@pytest.mark.parametrize(
    ("region", "scope"),
    [
        ("de", "region/de"),
        ("US-CA", "region/US-CA"),
        ("a/b c", "region/a%2Fb%20c"),
        ("ü", "region/%C3%BC"),
        ("#1", "region/%231"),
        ("x" * 64, "region/" + "x" * 64),
    ],
)
def test_a_regions_scope_is_a_safe_key(region: str, scope: str):
    assert region_scope(region) == scope


def test_long_names_become_short_keys_and_stay_apart():
    names = ["x" * 65, "x" * 66, "é" * 40, "/" * 1_000_000]
    scopes = {region_scope(name) for name in names}
    assert len(scopes) == 4
    assert all(len(scope) <= 71 and scope.startswith("region/#") and scope.count("/") == 1 for scope in scopes)


def test_who_sends_regions_at_random_grows_neither_memory_nor_the_topic_and_the_watched_regions_stay():
    """Nine of ten watches are of a region that was never heard of; the others of three that people watch in."""
    regions, half_lives, watches = 10, 4, 20_000
    rng = random.Random(1)
    counts, keys = counts_of(regions), set()
    for offset in range(watches):
        region = rng.choice(["de", "fr", "it"]) if rng.random() < 0.1 else rng.randbytes(8).hex()
        after_ms = offset * half_lives * HALF_LIFE_MS // watches
        counts.add(f"i{rng.randrange(1000)}", region, START_MS + after_ms, offset)
        assert len(counts._listed) <= regions and len(counts._waiting) <= 2 * regions + 1
        if offset % 50 == 49:
            changes = counts.changes(0)
            assert len(changes) <= 2 * regions + 1
            keys |= changes.keys()
    assert {"region/de", "region/fr", "region/it"} <= counts._listed.keys()
    assert len(keys) <= 1 + regions * (half_lives + 2), f"{len(keys)} keys on the topic"


def test_old_watches_do_not_help_who_sends_regions_at_random():
    """Times in steps of a half-life, from long ago: each region is twice the one before."""
    counts, keys = counts_of(2, ("a", None, 0)), set()
    for step in range(-1000, 0):
        counts.add("a", f"r{step}", START_MS + step * HALF_LIFE_MS, 1001 + step)
        keys |= counts.changes(0).keys()
    assert keys == {GLOBAL, "region/r-1"}


drawn_watches = st.lists(
    st.tuples(st.integers(0, 19), st.sampled_from(["de", "fr", "it", "es", "pl", None]), st.integers(0, 60_000)),
    max_size=60,
).map(lambda watches: [(f"i{item}", region, after_ms) for item, region, after_ms in watches])


@settings(max_examples=200, deadline=None)
@given(drawn_watches, st.integers(1, 3), st.integers(1, 7))
@example([("i0", "de", 0), ("i0", "fr", 0), ("i0", "it", 1), ("i0", "de", 20001), ("i0", "it", 0)], 2, 1)
def test_what_the_topic_says_is_what_the_places_hold(watches, regions, size):
    """After every publish: one record per listed region, at most `regions`, each as it is counted."""
    counts, topic = counts_of(regions), {}
    for first in range(0, len(watches), size):
        add(counts, *watches[first : first + size], first=first)
        for scope, message in counts.changes(0).items():
            topic[scope] = message
        kept = {scope for scope, message in topic.items() if message is not None} - {GLOBAL}
        assert kept == counts._listed.keys() and len(kept) <= regions
        for scope in kept:
            assert topic[scope] == counts._listed[scope].message(scope, 0, 50)
        least = min((each.level for each in counts._listed.values()), default=0)
        full = len(kept) == regions
        most = max(least + 1, counts._least_level) + 1e-6  # old watches win no place
        assert not full or all(each.level < most for each in counts._waiting.values())


# --- crashes ---------------------------------------------------------------------------------------------------------


class Worker:
    """A trending worker that dies: a batch's records reach the topic in any part, and its offsets are not committed."""

    def __init__(self, watches: Sequence[Watched], settings: Settings) -> None:
        self._settings = settings
        self._log = [self._raw(offset, *watched) for offset, watched in enumerate(watches)]
        self._committed = 0
        self.topic: dict[bytes, Trending] = {}
        self._restart()

    @staticmethod
    def _raw(offset: int, item_id: str, region: str | None, after_ms: int) -> Raw:
        event = WatchEvent(f"e{offset}", "u", item_id, START_MS + after_ms, 30.0, context=Context(region=region))
        return Raw(WATCH_EVENTS, HOME, offset, START_MS, b"u", encode(event), ())

    @property
    def is_done(self) -> bool:
        return self._committed == len(self._log)

    def work(self, size: int, lost: Sequence[bool] | None = None) -> None:
        """One batch; with `lost` a crash: the records that are lost of those that were sent, in turn."""
        batch = self._log[self._committed : self._committed + size]
        outbox = Waiting()
        assert count(batch, self._counts, outbox, self._settings, now_ms=START_MS) is None  # type: ignore[arg-type]
        publish(HOME, self._counts[HOME], outbox)  # type: ignore[arg-type]
        for number, (topic, _, key, value, *_) in enumerate(outbox):
            if lost is None or not lost[number % len(lost)]:
                assert topic == TRENDING
                take_over(self.topic, key, value, max_bytes=1_000_000)
        if lost is None:
            self._committed += len(batch)
        else:
            self._restart()

    def _restart(self) -> None:
        self._counts = {HOME: start(HOME, self.topic.values(), self._settings)}

    def totals(self) -> dict[str, dict[str, float]]:
        """The published counts by scope, all as of the newest watch."""
        now_ms = max((message.as_of_ms for message in self.topic.values()), default=0)
        return {
            message.scope: {
                item_id: watched * 0.5 ** ((now_ms - message.as_of_ms) / HALF_LIFE_MS)
                for item_id, watched in message.items
            }
            for message in self.topic.values()
        }


steps = st.lists(
    st.tuples(st.integers(1, 8), st.none() | st.lists(st.booleans(), min_size=1, max_size=5)), min_size=1, max_size=20
)


def worked(
    watches: Sequence[Watched], drawn: Sequence[tuple[int, Sequence[bool] | None]], settings: Settings
) -> Worker:
    worker = Worker(watches, settings)
    for size, lost in drawn:
        worker.work(size, lost)
    while not worker.is_done:
        worker.work(3)
    return worker


def naive(watches: Sequence[Watched]) -> dict[str, dict[str, float]]:
    """All watches by scope and item, as of the newest."""
    now = max((after_ms for *_, after_ms in watches), default=0)
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for item_id, region, after_ms in watches:
        for scope in [GLOBAL] + ([f"region/{region}"] if region else []):
            sums[scope][item_id] += 0.5 ** ((now - after_ms) / HALF_LIFE_MS)
    return sums


young = drawn_watches.map(lambda watches: [(item, region, after_ms // 7) for item, region, after_ms in watches])


@settings(max_examples=300, deadline=None)
@given(young, steps)
def test_each_watch_counts_once_in_each_scope_whatever_part_of_a_batch_was_published_before_a_crash(watches, drawn):
    roomy = Settings.model_validate({"trending": {"half_life_s": HALF_LIFE_S, "regions": 5}})
    totals = worked(watches, drawn, roomy).totals()
    assert totals.keys() == naive(watches).keys()
    for scope, sums in naive(watches).items():
        assert totals[scope] == {item_id: pytest.approx(value) for item_id, value in sums.items()}


@settings(max_examples=300, deadline=None)
@given(drawn_watches, steps)
def test_no_watch_counts_twice_where_regions_come_and_go_and_everybodys_counts_miss_none(watches, drawn):
    worker = worked(watches, drawn, SETTINGS)
    sums = naive(watches)
    totals = worker.totals()
    for scope, items in totals.items():
        for item_id, value in items.items():
            assert value <= sums[scope][item_id] * (1 + 1e-9) + 1e-12
    if watches:
        assert totals[GLOBAL] == {item_id: pytest.approx(value) for item_id, value in sums[GLOBAL].items()}
    assert len(worker.topic) <= 1 + SETTINGS.trending.regions, "also when a tombstone was lost in a crash"


def test_a_topic_of_before_there_were_regions_is_taken_up():
    topic: dict[bytes, Trending] = {}
    old = Trending(GLOBAL, HOME, START_MS, HALF_LIFE_S, (("a", 2.0),), 7)
    take_over(topic, b"global/%d" % HOME, encode(old), max_bytes=1000)
    take_over(
        topic, b"global/%d" % (HOME + 1), encode(Trending(GLOBAL, HOME + 1, START_MS, 1.0, (), 9)), max_bytes=1000
    )
    take_over(
        topic, b"other/0", encode(Trending("other", HOME, START_MS, HALF_LIFE_S, (("b", 1.0),), 8)), max_bytes=1000
    )
    take_over(topic, b"global/%d" % HOME, b"{", max_bytes=1000)
    counts = start(HOME, topic.values(), SETTINGS)
    counts.add("a", "de", START_MS, 7)
    counts.add("a", "de", START_MS, 8)
    assert told(counts) == {GLOBAL: {"a": 3.0}, "region/de": {"a": 2.0}}


def test_what_is_published_can_be_read_and_a_tombstone_has_no_value():
    outbox = Waiting()
    counts = counts_of(1, ("a", "de/x", 0), ("a", "fr", 0))
    publish(0, counts, outbox)  # type: ignore[arg-type]
    add(counts, *[("a", "fr", 0)] * 3, first=2)
    publish(0, counts, outbox)  # type: ignore[arg-type]
    records = [(key, value and decode(Trending, value).scope) for _, _, key, value, *_ in outbox]
    assert records == [
        (b"region/de%2Fx/0", "region/de%2Fx"),
        (b"global/0", GLOBAL),
        (b"region/de%2Fx/0", None),
        (b"region/fr/0", "region/fr"),
        (b"global/0", GLOBAL),
    ]
    topic: dict[bytes, Trending] = {}
    for _, _, key, value, *_ in outbox:
        take_over(topic, key, value, max_bytes=1000)
    assert topic.keys() == {b"region/fr/0", b"global/0"}

"""What the join worker does with a batch and with time that passes: the order of effects, and crashes between them."""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.platform.settings import Join, Kafka, Settings
from streams import topics
from streams.clock import LEAP_MS
from streams.join import worker
from streams.join.worker import JoinWorker
from streams.kafka.intake import Raw
from streams.messages import (
    COMPACT,
    DeadLetter,
    Impression,
    JoinState,
    RankingExample,
    Shown,
    StatisticsRow,
    WatchEvent,
    decode,
    encode,
)
from tests.harness.system import with_section

START_MS = 1_700_000_000_000
PARTITIONS = 2
USERS = [user for user in (f"user-{n}" for n in range(20)) if topics.partition_of(user, PARTITIONS) == 0][:3]
USER = USERS[0]
SETTINGS = Settings(
    kafka=Kafka(partitions=PARTITIONS), join=Join(window_s=100, grace_s=50, early_s=10, half_life_h=1e9)
)


class Crash(Exception):
    """The process is killed here."""


class World:
    """The brokers, as far as the worker can tell: what lies in topics outlives it, all else is lost in a crash."""

    def __init__(self) -> None:
        self.logs: dict[str, list[Raw]] = defaultdict(list)  # of partition 0
        self.sent: list[tuple[str, bytes, bytes | None]] = []
        self.flushes: list[list[str]] = []
        self.now_ms = START_MS
        self.crash_in: int | None = None  # records until the crash
        self.commits = {topics.IMPRESSIONS: 0, topics.WATCH_EVENTS: 0}
        self._waiting: list[tuple[str, bytes, bytes | None]] = []
        self.start()

    # the outbox
    def add(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = ()) -> None:
        self._waiting.append((topic, key or b"", value))

    async def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for record in waiting:
            if self.crash_in == 0:
                raise Crash
            self.crash_in = self.crash_in and self.crash_in - 1
            self.sent.append(record)
        if waiting:
            self.flushes.append(sorted({topic for topic, *_ in waiting}))

    # how far reading and committing have come
    def assigned(self) -> set[int]:
        return {0}

    def end(self, topic: str, partition: int) -> int:
        return len(self.logs[topic])

    def committed(self, topic: str, partition: int) -> int:
        return self.commits[topic]

    # what happens
    def start(self) -> None:
        """A new process: the table from its changelog, the offsets from the last commit."""
        self._waiting = []
        self.crash_in = None
        newest = {key.decode(): value for topic, key, value in self.sent if topic == topics.JOIN_STATE}
        self.table = {user: value for user, value in newest.items() if value is not None}
        self.read = dict(self.commits)
        self.worker = JoinWorker(SETTINGS, self.table, self, lambda _: {0: list(self.rows().values())})

    def put(self, topic: str, value: Any, user: str = USER) -> None:
        raw = value if isinstance(value, bytes) else encode(value)
        self.logs[topic].append(Raw(topic, 0, len(self.logs[topic]), self.now_ms, user.encode(), raw, ()))

    def handle(self, most: int = 99, *names: str) -> None:
        batch = []
        for topic in names or (topics.WATCH_EVENTS, topics.IMPRESSIONS):
            new = self.logs[topic][self.read[topic] :][:most]
            self.read[topic] += len(new)
            batch += new
        if batch:
            bug = asyncio.run(self.worker.handle(batch, self))  # type: ignore[arg-type]
            assert bug is None

    def tick(self) -> None:
        asyncio.run(self.worker.advance_all(self))  # type: ignore[arg-type]

    def pass_s(self, seconds: float) -> None:
        """Time passes in which the worker looks at the clock now and then: else it would be a clock that jumps."""
        until_ms = self.now_ms + round(1000 * seconds)
        while self.now_ms < until_ms:
            self.now_ms = min(self.now_ms + LEAP_MS, until_ms)
            self.tick()
        if not seconds:
            self.tick()

    def commit(self) -> None:
        self.commits = dict(self.read)

    # what there is to see
    def of(self, topic: str) -> list[bytes | None]:
        return [value for name, _, value in self.sent if name == topic]

    def examples(self) -> list[RankingExample]:
        return [decode(RankingExample, value) for value in self.of(topics.RANKING_EXAMPLES)]

    def outcomes(self) -> dict[str, list[float]]:
        """Seconds by request id, of the examples that hold: the highest revision, of equal ones the last."""
        held: dict[str, RankingExample] = {}
        for example in self.examples():
            before = held.get(example.impression.request_id)
            if before is None or example.revision >= before.revision:
                held[example.impression.request_id] = example
        return {request_id: [each.watched_s for each in example.outcomes] for request_id, example in held.items()}

    def rows(self) -> dict[bytes, StatisticsRow]:
        newest = {key: value for topic, key, value in self.sent if topic == topics.ITEM_STATISTICS}
        return {key: decode(StatisticsRow, value) for key, value in newest.items() if value is not None}

    def letters(self) -> list[DeadLetter]:
        return [decode(DeadLetter, value) for value in self.of(topics.DEAD_LETTERS)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    monkeypatch.setattr(worker, "now_ms", lambda: world.now_ms)
    yield world


def impression(request_id: str, at_s: float, items: str, user: str = USER, **change: Any) -> Impression:
    shown = tuple(Shown(item, place, "retrieval") for place, item in enumerate(items, 1))
    return Impression(request_id, user, START_MS + round(1000 * at_s), "server", "v1", shown, **change)


def watch(item: str, at_s: float, request_id: str | None = None, user: str = USER, event_id: str = "") -> WatchEvent:
    event_ms = START_MS + round(1000 * at_s)
    return WatchEvent(event_id or f"{user}/{item}@{at_s}", user, item, event_ms, 20.0, 60.0, request_id)


def test_the_effects_are_acknowledged_in_the_order_that_the_module_promises(world: World):
    world.put(topics.IMPRESSIONS, impression("r", 0, "ab"))
    world.put(topics.IMPRESSIONS, b"{}")
    world.put(topics.WATCH_EVENTS, watch("a", 5, "r"))
    world.handle()
    assert world.flushes == [[topics.DEAD_LETTERS], [topics.JOIN_STATE]]
    world.pass_s(200)
    assert world.flushes[2:] == [[topics.ITEM_STATISTICS, topics.RANKING_EXAMPLES], [topics.JOIN_STATE]]
    assert world.outcomes() == {"r": [20.0, 0.0]}


def test_windows_close_when_nothing_comes_any_more(world: World):
    world.put(topics.IMPRESSIONS, impression("r", 0, "ab"))
    world.handle()
    world.pass_s(99)
    assert not world.examples()
    world.pass_s(1)
    assert world.outcomes() == {"r": [0.0, 0.0]}


def test_windows_close_by_the_time_of_the_events_not_by_the_clock(world: World):
    for n in range(6):
        world.put(topics.IMPRESSIONS, impression(f"r{n}", 40 * n - 5000, "a"))
        world.put(topics.WATCH_EVENTS, watch("a", 40 * n - 4999, f"r{n}"))
    world.handle()
    world.tick()
    assert world.outcomes() == {f"r{n}": [20.0] for n in range(3)}, "those that were shown 100 s before the newest"


def test_a_topic_that_lags_keeps_windows_open(world: World):
    world.put(topics.IMPRESSIONS, impression("r", -1000, "a"))
    world.put(topics.IMPRESSIONS, impression("s", 0, "a"))
    world.put(topics.WATCH_EVENTS, watch("a", -990, "r"))
    world.handle(99, topics.IMPRESSIONS)
    world.pass_s(30)
    assert not world.examples(), "the watches are not read to their end"
    world.handle()
    world.pass_s(30)
    assert world.outcomes() == {"r": [20.0]}


def test_a_late_watch_corrects_the_example_and_the_statistics(world: World):
    world.put(topics.IMPRESSIONS, impression("r", 0, "ab"))
    world.handle()
    world.pass_s(110)
    world.put(topics.WATCH_EVENTS, watch("b", 20, "r"))
    world.handle()
    assert world.outcomes() == {"r": [0.0, 20.0]}
    assert world.rows()[b"item/0/b"].seconds == 0, "counted when the grace is over"
    world.pass_s(60)
    assert (world.rows()[b"item/0/b"].seconds, world.rows()[b"item/0/b"].impressions) == (20, 1)


def test_a_watch_without_an_impression_is_no_example_and_leaves_nothing(world: World):
    world.put(topics.WATCH_EVENTS, watch("a", 0))
    world.handle()
    assert USER in world.table
    world.commit()
    world.pass_s(20)
    assert world.examples() == [] and world.table == {}
    assert world.of(topics.JOIN_STATE)[-1] is None, "a tombstone"


def test_a_state_is_deleted_only_when_its_events_cannot_come_again(world: World):
    world.put(topics.IMPRESSIONS, impression("r", 0, "a"))
    world.handle()
    world.pass_s(500)
    assert len(world.examples()) == 1 and USER in world.table
    world.start()
    world.handle()
    world.pass_s(500)
    assert len(world.examples()) == 1, "read again, and known"
    world.commit()
    world.pass_s(10)
    assert world.table == {}


def test_an_external_reporters_impression_without_features_is_an_example_as_any_other(world: World):
    shown = b'{"request_id":"r","user_id":"%b","at_ms":%d,"served_by":"their-app","version":"","items":' % (
        USER.encode(),
        START_MS,
    )
    world.put(topics.IMPRESSIONS, shown + b'[{"item_id":"a","position":1,"source":"editors","slot":"hero"}]}')
    world.put(topics.WATCH_EVENTS, watch("a", 5))
    world.handle()
    world.pass_s(200)
    (example,) = world.examples()
    assert example.impression.served_by == "their-app" and example.outcomes[0].watched_s == 20.0
    assert set(world.rows()) == {b"item/0/a", b"all/0/"}, "no calibration of a ranker that is not ours"


def test_a_bad_impression_is_reported_here_and_a_bad_watch_by_the_history_worker(world: World):
    world.put(topics.IMPRESSIONS, impression("r", 3600, "a"))
    world.put(topics.WATCH_EVENTS, b"junk")
    world.handle()
    (letter,) = world.letters()
    assert (letter.topic, letter.offset, letter.code) == (topics.IMPRESSIONS, 0, "future")


def test_impressions_on_another_partition_than_their_users_are_forwarded_and_watches_left_to_the_history_worker(
    world: World,
):
    stranger = next(user for user in map(str, range(99)) if topics.partition_of(user, PARTITIONS) == 1)
    world.put(topics.IMPRESSIONS, impression("r", 0, "a", user=stranger))
    world.put(topics.WATCH_EVENTS, watch("a", 0, user=stranger))
    world.handle()
    assert [(topic, key) for topic, key, _ in world.sent] == [(topics.IMPRESSIONS, stranger.encode())]
    assert world.table == {}


def test_an_event_that_shows_a_bug_is_set_aside_and_the_others_are_handled(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    good = worker.apply_watch

    def broken(state: JoinState, event: WatchEvent, *args: Any, **rules: Any) -> Any:
        return 1 / 0 if event.item_id == "b" else good(state, event, *args, **rules)

    monkeypatch.setattr(worker, "apply_watch", broken)
    world.put(topics.IMPRESSIONS, impression("r", 0, "ab"))
    for item in "ba":
        world.put(topics.WATCH_EVENTS, watch(item, 5, "r"))
    bug = asyncio.run(world.worker.handle(world.logs[topics.IMPRESSIONS] + world.logs[topics.WATCH_EVENTS], world))  # type: ignore[arg-type]
    assert isinstance(bug, ZeroDivisionError)
    world.pass_s(200)
    assert [letter.code for letter in world.letters()] == ["bug"] and world.outcomes() == {"r": [20.0, 0.0]}


def test_what_waits_in_a_state_that_was_written_in_json_is_joined(world: World):
    """By the version before: a worker that is replaced loses nothing that its predecessor had open."""
    shown = impression("r", 0, "ab")
    opened = {"impression": shown, "offset": 0, "closes_ms": START_MS + 100_000}
    world.table[USER] = msgspec.json.encode({"user_id": USER, "impressions": [opened], "impression_offset": 0})
    world.put(topics.IMPRESSIONS, shown)  # read again: it is in the state
    world.put(topics.WATCH_EVENTS, watch("a", 5, "r"))
    world.handle()
    world.pass_s(200)
    assert world.outcomes() == {"r": [20.0, 0.0]} and [each.impression for each in world.examples()] == [shown]


@pytest.mark.parametrize("compact", [True, False])
def test_states_are_written_in_the_form_that_is_set_and_read_in_both(world: World, compact: bool):
    other = with_section(SETTINGS, "join", compact=compact)
    world.worker = JoinWorker(other, world.table, world, lambda _: {})
    world.put(topics.IMPRESSIONS, impression("r", 0, "ab"))
    world.handle()
    (written,) = world.table.values()
    assert written.startswith(COMPACT if compact else b"{")
    world.start()
    world.put(topics.WATCH_EVENTS, watch("a", 5, "r"))
    world.handle()
    world.pass_s(200)
    assert world.outcomes() == {"r": [20.0, 0.0]}


def test_features_are_nobodys_reason_here_to_refuse_an_impression_and_bytes_that_are_no_json_are(world: World):
    good = encode(impression("r", 0, "a"))[:-1]
    for unread in (b'"values":7', b'"marks":[1]', b'"values":"\xff"'):
        world.put(topics.IMPRESSIONS, good.replace(b'"r"', b'"r%d"' % len(unread)) + b"," + unread + b"}")
    world.handle()
    world.pass_s(200)
    assert [(letter.offset, letter.code) for letter in world.letters()] == [(2, "malformed")]
    assert [json.loads(value)["offset"] for value in world.of(topics.RANKING_EXAMPLES) if value] == [0, 1]


def test_a_partition_that_was_given_up_is_taken_from_the_topics_again(world: World):
    world.put(topics.IMPRESSIONS, impression("r", 0, "ab"))
    world.handle()
    asyncio.run(world.worker.give_up({0, 1}))
    assert world.worker.partitions == {}
    world.pass_s(200)
    world.pass_s(200)
    assert world.outcomes() == {"r": [0.0, 0.0]}


def test_closings_that_a_crash_cut_off_are_finished_before_anything_new_is_read(world: World):
    """Else a watch that comes after the crash would be in the example and, behind their marks, in no row."""
    world.put(topics.IMPRESSIONS, impression("r", 0, "ab"))
    world.handle()
    world.commit()
    world.crash_in = 4  # after the example and three rows, before the state
    with pytest.raises(Crash):
        world.pass_s(110)
    assert len(world.examples()) == 1 and len(world.rows()) == 3
    world.start()
    world.put(topics.WATCH_EVENTS, watch("b", 20, "r"))
    world.handle()
    first, again, corrected = world.examples()
    assert first.revision == again.revision < corrected.revision
    assert world.of(topics.RANKING_EXAMPLES)[0] == world.of(topics.RANKING_EXAMPLES)[1], "the same, byte for byte"
    world.pass_s(100)
    assert world.rows()[b"item/0/b"].seconds == world.rows()[b"all/0/"].seconds == 20
    assert world.rows()[b"all/0/"].impressions == 2


def test_the_worker_needs_no_torch():
    code = "import sys, streams.join.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- a crash is an element of the input -------------------------------------------------------------------------------

impressions = st.tuples(st.sampled_from(USERS), st.integers(0, 60), st.sampled_from(["a", "ab", "ba", "abc", "c"]))
watches = st.tuples(
    st.sampled_from(USERS), st.integers(0, 90), st.sampled_from("abc"), st.sampled_from([None, *range(6)])
)


@settings(max_examples=300, deadline=None)
@given(st.lists(impressions, max_size=6), st.lists(watches, max_size=8), st.data())
def test_crashes_anywhere_neither_lose_nor_double_an_example_nor_a_count(drawn, watched, data):
    """The worker is killed between any two records of any flush, also in the middle of closing windows; the watches
    come late, early and twice. At the end every impression has one example, and the rows add up to the examples."""
    world = World()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(worker, "now_ms", lambda: world.now_ms)
        for n, (user, at_s, items) in enumerate(drawn):
            world.put(topics.IMPRESSIONS, impression(f"r{n}", at_s - 100, items, user=user), user)
        for n, (user, at_s, item, named) in enumerate(watched):
            request_id = None if named is None else f"r{named}"
            world.put(topics.WATCH_EVENTS, watch(item, at_s - 100, request_id, user, f"e{n}"), user)
        for choice in data.draw(st.lists(st.sampled_from(["iw", "w", "i", "tick", "commit", "kill"]), max_size=25)):
            if data.draw(st.booleans()):
                world.crash_in = data.draw(st.integers(0, 4))
            try:
                _do(world, choice, data)
            except Crash:
                world.start()
            world.crash_in = None
        world.handle()
        world.commit()
        for _ in range(3):
            world.pass_s(1000)
    assert world.outcomes().keys() == {f"r{n}" for n in range(len(drawn))}, "none is lost"
    assert len({example.offset for example in world.examples()}) == len(drawn), "none is doubled"
    assert world.table == {}
    held = world.outcomes()
    counted = world.rows()[b"all/0/"] if drawn else StatisticsRow("all", "", 0, 0, 0, 0, 0, 0, 0, (0, 0))
    assert counted.impressions == pytest.approx(sum(map(len, held.values())))
    assert counted.seconds == pytest.approx(sum(map(sum, held.values())))
    rows = {key: row.seconds for key, row in world.rows().items() if row.scope == "item"}
    assert sum(rows.values()) == pytest.approx(counted.seconds)


def _do(world: World, choice: str, data: st.DataObject) -> None:
    if choice == "kill":
        world.start()
    elif choice == "commit":
        world.commit()
    elif choice == "tick":
        world.pass_s(data.draw(st.sampled_from([0, 1, 20, 60])))
    else:
        names = [{"i": topics.IMPRESSIONS, "w": topics.WATCH_EVENTS}[letter] for letter in choice]
        world.handle(data.draw(st.integers(1, 3)), *names)

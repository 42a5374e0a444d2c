"""The join worker as a process, against both brokers: each impression has one example that holds, whatever dies."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.broker import Broker
from infra.platform.settings import Join, Settings
from streams.messages import DeadLetter, Impression, RankingExample, Shown, UserHistory, WatchEvent, decode, encode
from streams.topics import DEAD_LETTERS, IMPRESSIONS, JOIN_STATE, RANKING_EXAMPLES, WATCH_EVENTS, partition_of
from tests.harness.crash import replay, verdict
from tests.harness.needs import require_kafka
from tests.harness.system import cli, own_settings, process, read_metrics, running, wait_for_health, wait_for_work
from tests.harness.traffic import Histories, Load, Reader, Traffic, now_ms

PARTITIONS = 2
WINDOW_S, GRACE_S, EARLY_S = 20.0, 60.0, 30.0
LATE_S = 8.0  # most that anything comes late under load
SENTINEL_S = 300.0  # after the load: whose events close its windows


def settings_for(bootstrap: str, data_dir: Path, **join: Any) -> Settings:
    values: dict[str, Any] = {"window_s": WINDOW_S, "grace_s": GRACE_S, "early_s": EARLY_S, "publish_s": 0.2} | join
    return own_settings(bootstrap, data_dir, join=Join(**values))


class System:
    """What goes into a system, and what comes out of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, kafka = settings, settings.kafka
        self.traffic, self.examples = Traffic(kafka), Reader(kafka, RANKING_EXAMPLES)
        self.letters, self.states = Reader(kafka, DEAD_LETTERS), Reader(kafka, JOIN_STATE)

    def close(self) -> None:
        for part in (self.traffic, self.examples, self.letters, self.states):
            part.close()

    def show(self, user: str, items: str, at_ms: int | None = None, **how: Any) -> Impression:
        shown = tuple(Shown(item, place, "retrieval") for place, item in enumerate(items, 1))
        at_ms = now_ms() if at_ms is None else at_ms
        impression = Impression(uuid.uuid4().hex, user, at_ms, "server", "v1", shown)
        self.traffic.send(IMPRESSIONS, user, encode(impression), **how)
        return impression

    def outcomes(self, request_id: str, seconds: list[float]) -> RankingExample:
        """The example that holds of a request, once these seconds are in it."""

        def look(records: list[Any]) -> RankingExample | None:
            own = [decode(RankingExample, record.value) for record in records if request_id.encode() in record.value]
            held = max(reversed(own), key=lambda example: example.revision, default=None)
            return held if held and [each.watched_s for each in held.outcomes] == seconds else None

        found = self.examples.until(look, f"{seconds} in the example of {request_id}")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A history and a join worker on each broker, with windows of two seconds. Tests use users of their own."""
    settings = settings_for(kafka, tmp_path_factory.mktemp("join"), window_s=2.0, grace_s=15.0, early_s=2.0)
    with running(settings, ["history", "join"]), contextlib.closing(System(settings)) as system:
        yield system


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def test_an_impression_becomes_an_example_when_its_window_has_passed_and_a_late_watch_corrects_it(system, user):
    shown = system.show(user, "abc")
    system.traffic.watch(user, "b", request_id=shown.request_id)
    first = system.outcomes(shown.request_id, [0.0, 60.0, 0.0])
    assert first.impression == shown and first.partition == partition_of(user, PARTITIONS)
    system.traffic.watch(user, "c", shown.at_ms + 1000)
    assert system.outcomes(shown.request_id, [0.0, 60.0, 60.0]).revision > first.revision


def test_the_history_holds_what_was_shown(system, user):
    shown = system.show(user, "abc")
    histories = Histories(system.settings.kafka)

    def look(history: UserHistory) -> bool:
        return [(each.request_id, each.item_ids) for each in history.impressions] == [
            (shown.request_id, ("a", "b", "c"))
        ]

    histories.of(user, look, "the list that was shown")
    histories.close()


def test_a_watch_without_an_impression_is_no_example_and_its_state_goes(system, user):
    system.traffic.watch(user, "a")

    def gone(records: list[Any]) -> bool:
        values = [record.value for record in records if record.key == user.encode()]
        return len(values) >= 2 and values[-1] is None

    system.states.until(gone, "a tombstone")
    assert not [record for record in system.examples.to_the_end() if record.key == user.encode()]


def test_an_impression_on_the_wrong_partition_is_forwarded_once_and_joined_at_home(system, user):
    shown = system.show(user, "ab", partition=1 - partition_of(user, PARTITIONS))
    system.traffic.watch(user, "a", request_id=shown.request_id)
    example = system.outcomes(shown.request_id, [60.0, 0.0])
    assert example.partition == partition_of(user, PARTITIONS)


def test_a_bad_impression_is_one_dead_letter_though_two_workers_read_it(system, user):
    sent = system.traffic.send(IMPRESSIONS, user, b'{"request_id":"r"}')
    system.show(user, "a")

    place = sent.partition, sent.offset

    def of_it(records: list[Any]) -> list[DeadLetter]:
        letters = [decode(DeadLetter, record.value) for record in records]
        return [each for each in letters if each.topic == IMPRESSIONS and (each.partition, each.offset) == place]

    system.letters.until(of_it, "its dead letter")
    time.sleep(1.0)
    (letter,) = of_it(system.letters.to_the_end())
    assert letter.code == "invalid"


def test_an_impression_that_somebody_else_reports_is_joined(system, user):
    body = '{"request_id":"%s","user_id":"%s","at_ms":%d,"served_by":"app","version":"","items":[%s]}'
    item = '{"item_id":"a","position":1,"source":"editors"}'
    request_id = uuid.uuid4().hex
    system.traffic.send(IMPRESSIONS, user, (body % (request_id, user, now_ms(), item)).encode())
    system.traffic.watch(user, "a")
    assert system.outcomes(request_id, [60.0]).impression.served_by == "app"
    counted = read_metrics(system.settings, "join")
    assert counted['nextwatch_join_watches_total{outcome="joined"}'] >= 1
    assert counted['nextwatch_impressions_closed_total{how="window"}'] >= 1


# --- restarts: each with a worker of its own --------------------------------------------------------------------------


class ListsAndWatches(Load):
    """Impressions of some users and their watches, some late, some without a request id, some sent twice."""

    def close_windows(self) -> None:
        """On each partition somebody is shown something, and watches, much later."""
        at_ms = self._start_ms + 100 * self._number + round(1000 * SENTINEL_S)
        for user in (next(u for u in map(str, range(99)) if partition_of(u, PARTITIONS) == n) for n in (0, 1)):
            last = Impression(f"last of {user}", user, at_ms, "server", "v1", ())
            self._traffic.send(IMPRESSIONS, user, encode(last))
            self._traffic.watch(user, "a", at_ms)

    def send_one(self) -> None:
        rng, number, user = self._rng, self._number, self._user()
        self._number += 1
        at_ms = self._start_ms + 100 * number - round(1000 * min(LATE_S, rng.exponential(2.0)))
        items = rng.permutation(12)[: int(rng.integers(1, 6))]
        shown = tuple(Shown(f"i{item}", place, "retrieval", 1.0, 30.0) for place, item in enumerate(items, 1))
        impression = Impression(f"r{number}", user, at_ms, "server", "v1", shown, schema_hash="h", values=b"x" * 400)
        messages = [(IMPRESSIONS, encode(impression))] * (1 + (rng.random() < 0.05))
        for n in range(int(rng.integers(0, 3))):
            event_ms = at_ms + int(rng.integers(0, 15_000))
            request_id = f"r{number}" if rng.random() < 0.6 else None
            item = f"i{items[0] if rng.random() < 0.8 else 11}"
            watch = WatchEvent(f"e{number}-{n}", user, item, event_ms, float(rng.integers(1, 60)), 60.0, request_id)
            messages += [(WATCH_EVENTS, encode(watch))] * (1 + (rng.random() < 0.05))
        for place in rng.permutation(len(messages)):
            self._traffic.send_later(messages[place][0], user, messages[place][1])


def check_against_everything_at_once(system: System) -> None:
    """Each impression of the load has one example that holds, with the seconds of an independent join; no state is left
    of its users; and the statistics add up to the examples."""
    wanted = replay.outcomes(replay.read_events(system.settings), system.settings)

    def seconds(records: list[Any]) -> dict[tuple[int, int], list[float]]:
        in_order = sorted(records, key=lambda record: (record.partition, record.offset))
        return {
            place: [each.watched_s for each in example.outcomes]
            for place, example in verdict.held(in_order, Counter()).items()
        }

    with contextlib.suppress(TimeoutError):  # what is wrong says more than that something is
        system.examples.until(lambda records: seconds(records) == wanted, "every example", 60)
    made = seconds(system.examples.records)
    assert made.keys() == wanted.keys(), "no example is missing, none is of an impression that there is not"
    assert made == wanted
    system.states.until(lambda _: all(each.value is None for each in system.states.newest().values()), "tombstones")
    both = [row for row in verdict.statistics_of(system.settings).values() if row.scope == "all"]
    totals = [sum(row.impressions for row in both), sum(row.seconds for row in both)]
    assert totals == pytest.approx([sum(map(len, wanted.values())), sum(map(sum, wanted.values()))])


@pytest.fixture
def alone(kafka: str, tmp_path: Path) -> Iterator[System]:
    """Topics of their own, without a worker."""
    with contextlib.closing(System(settings_for(kafka, tmp_path, half_life_h=1e9))) as system:
        yield system


def worker(settings: Settings, name: str = "join") -> Any:
    return process(settings, name, cli("worker", "join"))


def test_a_join_killed_twice_under_load_has_one_example_of_each_impression(alone, broker: Broker):
    require_kafka(broker.kind, "noida 0.2.3 never expires a dead member: a killed worker's successor waits for ever")
    load = ListsAndWatches(alone.traffic, seed=1)
    sending = threading.Thread(daemon=True, target=load.send, args=(4000, 300))
    examples = 0
    for round_ in range(2):
        with worker(alone.settings) as killed:
            wait_for_health(alone.settings, killed)
            if round_ == 0:
                sending.start()
            alone.examples.until(lambda records, some=examples + 300: len(records) > some, "examples under load")
            killed.kill()
        examples = len(alone.examples.to_the_end())
    with worker(alone.settings) as last:
        sending.join()
        wait_for_health(alone.settings, last)
        load.close_windows()
        check_against_everything_at_once(alone)
        assert last.poll() is None


def test_a_join_that_starts_with_a_backlog_comes_to_the_same(alone):
    load = ListsAndWatches(alone.traffic, seed=2)
    load.send(1500, per_s=1e6)  # while nobody reads
    with worker(alone.settings) as first:
        wait_for_health(alone.settings, first)
        alone.examples.until(lambda records: len(records) > 300, "examples of the backlog")
        assert first.stop() == 0, "SIGTERM ends it cleanly"
    with worker(alone.settings) as second:
        wait_for_health(alone.settings, second)
        load.send(300, per_s=300.0)
        load.close_windows()
        check_against_everything_at_once(alone)
        assert second.poll() is None


def test_a_second_join_that_comes_and_goes_under_load_changes_nothing(alone, broker: Broker):
    require_kafka(broker.kind, "noida 0.2.3 tells no aiokafka member of a rebalance: a second one waits for ever")
    load = ListsAndWatches(alone.traffic, seed=3)
    with worker(alone.settings) as first:
        wait_for_health(alone.settings, first)
        with load.flowing(150), worker(alone.settings, "join-2") as second:
            wait_for_health(alone.settings, second)
            wait_for_work(alone.settings, "join", workers=2)
            assert second.stop() == 0
        load.close_windows()
        check_against_everything_at_once(alone)
        assert first.poll() is None

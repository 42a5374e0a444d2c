"""The history worker as a process, against both brokers: every watch counts once, whatever comes and whatever dies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from infra.local.broker import Broker
from infra.platform.fault_points import DIED, VARIABLE
from infra.platform.settings import History, Settings
from streams.kafka.faust_app import EXIT_AGAIN
from streams.messages import DeadLetter, SearchEvent, SignalEvent, TrainingExample, WatchEvent, decode, encode
from streams.topics import (
    DEAD_LETTERS,
    FORWARDED,
    SEARCH_EVENTS,
    SIGNALS,
    TRAINING_EXAMPLES,
    WATCH_EVENTS,
    partition_of,
)
from tests.harness.crash import replay
from tests.harness.needs import require_kafka
from tests.harness.system import (
    cli,
    own_settings,
    process,
    read_metrics,
    running,
    wait_for_health,
    wait_for_work,
    wait_until,
)
from tests.harness.traffic import Histories, Load, Reader, Traffic, now_ms, users_by_crc

PARTITIONS = 2
KEEP = 10
FUTURE_S = 300.0


def settings_for(bootstrap: str, data_dir: Path) -> Settings:
    return own_settings(bootstrap, data_dir, history=History(watches=KEEP, future_s=FUTURE_S))


class System:
    """What goes into a system, and what comes out of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, kafka = settings, settings.kafka
        self.traffic, self.histories = Traffic(kafka), Histories(kafka)
        self.examples, self.letters = Reader(kafka, TRAINING_EXAMPLES), Reader(kafka, DEAD_LETTERS)

    def close(self) -> None:
        for part in (self.traffic, self.histories, self.examples, self.letters):
            part.close()

    def items(self, user_id: str, count: int) -> list[str]:
        """The items of a user's history, once it has `count` watches or more."""
        history = self.histories.of(user_id, lambda history: len(history.watches) >= count, f"{count} watches")
        return [watch.item_id for watch in history.watches]

    def examples_of(self, user_id: str, count: int) -> list[TrainingExample]:
        """The user's training examples, once there are `count` or more."""

        def look(records: list[Any]) -> list[TrainingExample]:
            own = [decode(TrainingExample, record.value) for record in records if record.key == user_id.encode()]
            return own if len(own) >= count else []

        return self.examples.until(look, f"{count} examples of {user_id}")

    def letters_at(self, places: list[tuple[int, int]]) -> list[DeadLetter]:
        """The dead letters of these (partition, offset) of watch-events, once all are there."""

        def look(records: list[Any]) -> list[DeadLetter]:
            letters = [decode(DeadLetter, record.value) for record in records]
            of = {(each.partition, each.offset): each for each in letters if each.topic == WATCH_EVENTS}
            return [of[place] for place in places] if all(place in of for place in places) else []

        return self.letters.until(look, f"dead letters of {places}")


@pytest.fixture(scope="module")
def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One history worker on each broker. Tests share it and use users of their own."""
    settings = settings_for(kafka, tmp_path_factory.mktemp("history"))
    with running(settings, ["history"]), contextlib.closing(System(settings)) as system:
        yield system


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def test_a_watch_is_in_the_history_and_makes_an_example_of_what_was_before(system, user):
    first, second = system.traffic.watch(user, "a"), system.traffic.watch(user, "b")
    history = system.histories.of(user, lambda history: len(history.watches) == 2)
    assert [(watch.item_id, watch.event_id, watch.completed) for watch in history.watches] == [
        ("a", first.event_id, True),
        ("b", second.event_id, True),
    ]
    examples = system.examples_of(user, 2)
    assert [(each.item_id, [watch.item_id for watch in each.watches]) for each in examples] == [("a", []), ("b", ["a"])]


def test_a_watch_that_was_not_completed_is_history_and_no_example(system, user):
    system.traffic.watch(user, "glimpsed", watch_s=3.0)
    system.traffic.watch(user, "watched")
    assert system.items(user, 2) == ["glimpsed", "watched"]
    assert [example.item_id for example in system.examples_of(user, 1)] == ["watched"]


def test_a_late_watch_is_sorted_in(system, user):
    start = now_ms() - 100_000
    for item, after_ms in (("first", 0), ("third", 20_000), ("second", 10_000)):
        system.traffic.watch(user, item, start + after_ms)
    assert system.items(user, 3) == ["first", "second", "third"]
    late = system.examples_of(user, 3)[-1]
    assert late.item_id == "second" and [watch.item_id for watch in late.watches] == ["first"]


def test_a_duplicate_event_id_counts_once(system, user):
    event = system.traffic.watch(user, "a")
    system.traffic.watch(user, "a", event.event_ms, event_id=event.event_id)
    system.traffic.watch(user, "b")
    assert system.items(user, 2) == ["a", "b"]
    assert [example.item_id for example in system.examples_of(user, 2)] == ["a", "b"]


def test_only_the_newest_watches_are_kept(system, user):
    start = now_ms() - 100_000
    for number in range(KEEP + 3):
        system.traffic.watch(user, f"i{number}", start + number)
    system.histories.of(user, lambda history: history.watches[-1].item_id == f"i{KEEP + 2}")
    assert system.items(user, KEEP) == [f"i{number}" for number in range(3, KEEP + 3)]


def test_a_search_is_in_the_history(system, user):
    search = SearchEvent(uuid.uuid4().hex, user, "red cars", now_ms())
    system.traffic.send(SEARCH_EVENTS, user, encode(search))
    history = system.histories.of(user, lambda history: history.searches)
    assert [each.query for each in history.searches] == ["red cars"]


def test_a_dislike_is_in_the_history_until_a_like_takes_its_place_and_a_bad_signal_is_a_dead_letter(system, user):
    start_ms = now_ms()
    dislike = SignalEvent("s1", user, "dislike", start_ms, "a"), SignalEvent("s2", user, "dislike", start_ms, "b")
    for event in (*dislike, SignalEvent("s3", user, "like", start_ms + 1, "b"), dislike[1]):
        system.traffic.send(SIGNALS, user, encode(event))
    sent = system.traffic.send(SIGNALS, user, b'{"event_id": "s4"}', partition=partition_of(user, PARTITIONS))
    history = system.histories.of(user, lambda history: history.signal_offset >= sent.offset - 1)
    assert [(each.kind, each.item_id) for each in history.signals] == [("dislike", "a"), ("like", "b")]

    def look(records: list[Any]) -> list[DeadLetter]:
        letters = [decode(DeadLetter, record.value) for record in records]
        place = SIGNALS, sent.partition, sent.offset
        return [letter for letter in letters if (letter.topic, letter.partition, letter.offset) == place]

    assert [letter.code for letter in system.letters.until(look, "the dead letter")] == ["invalid"]


def bad_messages(user: str) -> dict[str, tuple[bytes | None, str, str]]:
    """Each kind of message that cannot be used: its value, the code, and what the reason must say."""
    good: dict[str, Any] = {"event_id": "e", "user_id": user, "item_id": "i", "event_ms": now_ms(), "watch_s": 20.0}

    def but(**change: Any) -> bytes:
        return json.dumps({name: value for name, value in (good | change).items() if value is not ...}).encode()

    ahead_ms = now_ms() + int(1000 * (FUTURE_S + 3600))
    return {
        "a wrong type": (but(watch_s="20"), "invalid", "$.watch_s"),
        "a missing field": (but(item_id=...), "invalid", "item_id"),
        "a negative number": (but(watch_s=-1), "invalid", "$.watch_s"),
        "a number that is none": (but(watch_s=float("nan")), "malformed", "JSON"),
        "an empty id": (but(user_id=""), "invalid", "$.user_id"),
        "the far future": (but(event_ms=ahead_ms), "future", "event_ms"),
        "too large": (but(padding="x" * 1_000_000), "too_large", "over the limit of 1000000 bytes"),
        "no value": (None, "empty", "no value"),
        "junk": (b"\x80\x04junk\xff", "malformed", "JSON"),
    }


def test_a_bad_message_of_each_kind_is_set_aside_with_its_reason_and_does_not_stop_the_stream(system, user):
    kinds = bad_messages(user)
    home = partition_of(user, PARTITIONS)
    places = []
    for number, (value, _, _) in enumerate(kinds.values()):
        sent = system.traffic.send(WATCH_EVENTS, user, value, partition=home)
        places.append((sent.partition, sent.offset))
        system.traffic.watch(user, f"good-{number}")
    for letter, (kind, (value, code, says)) in zip(system.letters_at(places), kinds.items(), strict=True):
        assert letter.code == code and says in letter.reason, kind
        assert letter.value == value or (code == "too_large" and value.startswith(letter.value)), kind
        assert letter.key == user.encode()
    assert system.items(user, len(kinds)) == [f"good-{number}" for number in range(len(kinds))]
    counted = read_metrics(system.settings, "history")
    for code in {code for _, code, _ in kinds.values()}:
        assert counted[f'nextwatch_messages_rejected_total{{code="{code}",topic="watch-events"}}'] >= 1


def test_a_producer_with_librdkafkas_partitioner_gets_its_users_histories(system):
    """CRC32 puts half of the users on the other of two partitions; all histories are at home, in order."""
    kafka = system.settings.kafka
    users = users_by_crc(at_home=3, astray=5, partitions=PARTITIONS)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    astray: list[str] = []

    def delivered(_: object, message: Any) -> None:
        if message.partition() != partition_of(message.key().decode(), PARTITIONS):
            astray.append(message.key().decode())

    for number in range(3):
        for each in users:
            event = WatchEvent(f"{each}-{number}", each, f"i{number}", now_ms(), 50.0, 60.0)
            producer.produce(kafka.topic_prefix + WATCH_EVENTS, encode(event), key=each, on_delivery=delivered)
    producer.flush(10)
    for each in users:
        assert system.items(each, 3) == ["i0", "i1", "i2"]
        assert system.histories.newest()[each.encode()].partition == partition_of(each, PARTITIONS)
        assert [example.item_id for example in system.examples_of(each, 3)] == ["i0", "i1", "i2"]
    assert len(astray) == 15, "both kinds of users are in this test"


def test_a_message_that_was_forwarded_once_and_is_astray_again_is_a_dead_letter(system, user):
    astray = 1 - partition_of(user, PARTITIONS)
    value = encode(WatchEvent("e", user, "i", now_ms(), 50.0))
    sent = system.traffic.send(WATCH_EVENTS, user, value, partition=astray, headers=[(FORWARDED, b"watch-events/0/0")])
    (letter,) = system.letters_at([(sent.partition, sent.offset)])
    assert letter.code == "misrouted" and dict(letter.headers)[FORWARDED] == b"watch-events/0/0"


# --- restarts: each with a worker of its own ------------------------------------------------------------------------


class Watches(Load):
    """Watches of some users, some late, some sent twice."""

    def __init__(self, traffic: Traffic, seed: int) -> None:
        super().__init__(traffic, seed)
        self._events: list[WatchEvent] = []

    def send_one(self) -> None:
        event = self._next()
        self._traffic.send_later(WATCH_EVENTS, event.user_id, encode(event))

    def _next(self) -> WatchEvent:
        rng, number = self._rng, len(self._events)
        if self._events and rng.random() < 0.05:
            return self._events[-1 - int(rng.integers(0, min(50, number)))]
        event_ms = self._start_ms + 100 * number - int(rng.exponential(2000))
        user = self._user()
        event = WatchEvent(f"{user}/{number}", user, f"i{number % 97}", event_ms, float(rng.uniform(0, 60)), 60.0)
        self._events.append(event)
        return event


def check_against_replay(system: System) -> None:
    replay.check(system.settings, system.histories, system.examples)


@pytest.fixture
def alone(kafka: str, tmp_path: Path) -> Iterator[System]:
    """Topics of their own, without a worker."""
    with contextlib.closing(System(settings_for(kafka, tmp_path))) as system:
        yield system


def worker(settings: Settings) -> Any:
    return process(settings, "history", cli("worker", "history"))


def test_a_worker_killed_under_load_has_the_same_histories_after_its_restart(alone, broker: Broker):
    require_kafka(broker.kind, "noida 0.2.3 never expires a dead member: a killed worker's successor waits for ever")
    load = Watches(alone.traffic, seed=1)
    sending = threading.Thread(daemon=True, target=load.send, args=(4000,))
    with worker(alone.settings) as first:
        wait_for_health(alone.settings, first)
        sending.start()
        alone.histories.until(lambda records: len(records) > 200, "histories under load")
        first.kill()
    with worker(alone.settings) as second:
        sending.join()
        wait_for_health(alone.settings, second)
        check_against_replay(alone)
        assert second.poll() is None


def test_a_worker_is_rebuilt_from_the_topics_alone(alone):
    load = Watches(alone.traffic, seed=2)
    with worker(alone.settings) as first:
        wait_for_health(alone.settings, first)
        load.send(600)
        check_against_replay(alone)
        assert first.stop() == 0, "SIGTERM ends it cleanly"
    shutil.rmtree(alone.settings.data_dir)
    load.send(1500, per_s=1e6)  # while nobody reads
    with worker(alone.settings) as second:
        wait_for_health(alone.settings, second)
        load.send(200)
        check_against_replay(alone)
        assert second.poll() is None


def test_a_second_worker_that_comes_and_goes_under_load_changes_nothing(alone, broker: Broker):
    require_kafka(broker.kind, "noida 0.2.3 tells no aiokafka member of a rebalance: a second one waits for ever")
    load = Watches(alone.traffic, seed=3)
    with worker(alone.settings) as first:
        wait_for_health(alone.settings, first)
        with load.flowing(500):
            alone.histories.until(lambda records: len(records) > 200, "histories under load")
            with process(alone.settings, "history-2", cli("worker", "history")) as second:
                wait_for_health(alone.settings, second)
                wait_for_work(alone.settings, "history", workers=2)
                assert second.stop() == 0
        check_against_replay(alone)
        assert first.poll() is None


def test_a_worker_paused_in_a_batch_writes_nothing_over_what_its_successor_has_written(
    alone, broker: Broker, monkeypatch, tmp_path
):
    require_kafka(broker.kind, "noida 0.2.3 never expires a silent member: a paused worker's successor waits for ever")
    points, point = tmp_path / "points", "history: examples sent"
    points.mkdir()
    (points / point).write_text("10 SIGSTOP")
    load = Watches(alone.traffic, seed=4)
    monkeypatch.setenv(VARIABLE, str(points))
    with worker(alone.settings) as paused:
        monkeypatch.delenv(VARIABLE)
        wait_for_health(alone.settings, paused)

        def paused_while_at_work() -> bool:
            """Sends until it stands still: on a busy machine its batches are larger, so fewer."""
            load.send(50)
            return (points / (point + DIED)).exists()

        wait_until(paused_while_at_work, "the pause", 60)
        with process(alone.settings, "history-2", cli("worker", "history")) as successor:
            wait_for_health(alone.settings, successor)
            load.send(200)
            check_against_replay(alone)
            os.kill(paused.pid, signal.SIGCONT)
            wait_until(lambda: paused.poll() is not None, "the end of whom the group has gone on without", 30)
            assert paused.poll() == EXIT_AGAIN
            load.send(50)
            check_against_replay(alone)
            assert successor.poll() is None

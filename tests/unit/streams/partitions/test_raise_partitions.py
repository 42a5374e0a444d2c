"""Partitions that are raised on a real broker: where states are then, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.structs import OffsetAndMetadata

from infra.local.broker import Broker
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Settings
from serving.worker.worker import GROUP
from streams import topics
from streams.erasure.erase_users import write_erased_users
from streams.history.rebuild_histories import (
    RebuildRefused,
    group_of,
    read_histories,
    rebuild_histories,
    refuse_after_raise,
)
from streams.kafka.follow import read_to_end
from streams.kafka.partition_counts import STATES, PartitionsWatch, check_raise, read_raise, require_partitions
from streams.kafka.releases import announce
from streams.kafka.requirements import TopicUnfit
from streams.kafka.topic_ids import SOURCES
from streams.messages import (
    JoinState,
    PartitionsRaised,
    StatisticsRow,
    TrainingExample,
    Trending,
    UserHistory,
    Watch,
    decode,
    encode,
)
from streams.partitions.raise_partitions import raise_partitions
from streams.partitions.standstill import SERVERS, WORKERS, refuse_apart
from streams.topics import partition_of
from tests.harness.needs import require_kafka
from tests.harness.system import own_settings, wait_until, with_section
from tests.unit.streams.join.test_rules import Stream
from tests.unit.streams.replaced.test_take_out_offsets import has_groups

BEFORE = 3
USERS = [f"user-{number}" for number in range(40)]
Tables = dict[str, list[dict[str, bytes]]]  # by topic, of each partition by user


def test_servers_are_looked_for_in_their_group():
    assert SERVERS == GROUP


@pytest.fixture
def own(broker: Broker, tmp_path: Any) -> Settings:
    require_kafka(broker.kind, "noida makes no more partitions")
    settings = own_settings(broker.bootstrap, tmp_path, kafka={"partitions": BEFORE})
    wait_until(lambda: has_groups(settings), "groups have a coordinator", 30, 0.2)
    return settings


@pytest.fixture
def send(own: Settings) -> Iterator[Callable[..., Any]]:
    producer = KafkaProducer(**kafka_python_options(own.kafka))

    def write(topic: str, key: str, value: bytes | None, partition: int = 0) -> None:
        name = own.kafka.topic_prefix + topic
        producer.send(name, value, key=key.encode(), partition=partition).get(timeout=30)

    yield write
    producer.close()


def raised_to(settings: Settings, partitions: int) -> Settings:
    return with_section(settings, "kafka", partitions=partitions)


def commit(settings: Settings, offset: int, *workers: str) -> None:
    """As if these workers, or all, had read so far."""
    with topics.open_admin(settings.kafka) as admin:
        for worker in workers or WORKERS:
            names = [settings.kafka.topic_prefix + name for name in SOURCES[worker]]
            places = [TopicPartition(name, number) for name in names for number in range(BEFORE)]
            offsets = dict.fromkeys(places, OffsetAndMetadata(offset, "", -1))
            admin.alter_group_offsets(group_of(settings.kafka, worker), offsets)


def history(user: str, *items: str) -> bytes:
    watches = tuple(Watch(item, n, 20.0, None, True, f"{user}/{n}", n) for n, item in enumerate(items))
    return encode(UserHistory(user, watches, watch_offset=len(items)))


def state(user: str, at_ms: int = 5_000_000_000_000, offset: int = 4) -> JoinState:
    stream = Stream()
    stream.state = JoinState(user)
    stream.show("r", at_ms, "a", offset=offset)
    return stream.state


def tables(settings: Settings) -> Tables:
    """The newest states, as whoever reads a partition alone has them."""
    found: Tables = {name: [{} for _ in range(settings.kafka.partitions)] for name in STATES}
    for name, partitions in found.items():
        for record in read_to_end(settings.kafka, name):
            partitions[record.partition][record.key.decode()] = record.value
    return {name: [{k: v for k, v in each.items() if v} for each in partitions] for name, partitions in found.items()}


def test_states_are_where_their_users_are_raised_twice_too(own, send):
    """Also of a user who comes back to a partition that still holds what was there before, and its tombstone. Of one
    who was erased nothing is moved: who owns the partition may have said that nothing is left there."""
    places = {user: [partition_of(user, n) for n in (BEFORE, 5, 7)] for user in USERS}
    assert any(first == third != second for first, second, third in places.values())
    for user in USERS:
        for items in ("a", "ab"):
            send(topics.USER_HISTORIES, user, history(user, *items), partition_of(user, BEFORE))
        send(topics.JOIN_STATE, user, encode(state(user)), partition_of(user, BEFORE))
    send(topics.USER_HISTORIES, "left", history("left", "a"), partition_of("left", BEFORE))
    send(topics.USER_HISTORIES, "left", None, partition_of("left", BEFORE))
    erased = next(user for user in map(str, range(99)) if partition_of(user, BEFORE) != partition_of(user, 5))
    send(topics.USER_HISTORIES, erased, history(erased, "a"), partition_of(erased, BEFORE))
    send(topics.JOIN_STATE, erased, encode(state(erased)), partition_of(erased, BEFORE))
    write_erased_users(own, [erased], 6_000_000_000_000)
    gone = [partition_of(erased, n) for n in (BEFORE, 5, 7)]  # where nothing but tombstones goes
    commit(own, 1000)
    send(topics.SIGNALS, "user-0", b"of before", 1)
    settings = own
    for at, partitions in enumerate((5, 7), 1):
        settings = raised_to(own, partitions)
        with pytest.raises(TopicUnfit, match="or stop history, join, trending and serving, then"):
            require_partitions(settings.kafka)
        done = raise_partitions(settings)
        moves = sum(first != second for first, second in (each[at - 1 : at + 1] for each in (*places.values(), gone)))
        assert {each.moved for each in done.topics if each.topic == topics.JOIN_STATE} == {moves}
        require_partitions(settings.kafka)
        assert topics.check_topics(settings.kafka) == [] and not check_raise(settings.kafka)
        found = tables(settings)
        for name in STATES:
            assert {user: n for n, each in enumerate(found[name]) for user in each} == {
                user: place[at] for user, place in places.items()
            }
        assert raise_partitions(settings).topics == []
    for user in USERS:
        kept = decode(UserHistory, found[topics.USER_HISTORIES][partition_of(user, 7)][user])
        assert [watch.event_id for watch in kept.watches] == [f"{user}/0", f"{user}/1"]
        assert kept.watch_offset == (2 if len(set(places[user])) == 1 else -1)
    with pytest.raises(TopicUnfit, match=r"has 7 partitions, and kafka\.partitions is 3: set it to 7$"):
        require_partitions(own.kafka)
    with pytest.raises(RebuildRefused, match="Kafka takes no partitions away, set it to 7 or more"):
        raise_partitions(own)
    for told_by in (rebuild_histories, give_up_raise):
        with pytest.raises(RebuildRefused, match=r"^signals hold events from before the partitions were raised"):
            told_by(settings, from_scratch=True)
    with topics.open_admin(settings.kafka) as admin:
        admin.delete_records({TopicPartition(settings.kafka.topic_prefix + topics.SIGNALS, 1): 1})
    refuse_after_raise(settings.kafka)


def give_up_raise(settings: Settings, *, from_scratch: bool) -> None:
    """Begin another raise, that breaks off before anything is moved, and go back."""
    begun = PartitionsRaised(7, 9, 1, event_ends=read_raise(settings.kafka).event_ends)  # type: ignore[union-attr]
    announce(settings.kafka, begun)
    raise_partitions(settings)
    given_up = read_raise(settings.kafka)
    assert given_up is not None and (given_up.before, given_up.after, given_up.is_done) == (7, 7, True)
    rebuild_histories(settings, from_scratch=from_scratch)


def join_ahead(send: Any, user: str, offset: int) -> None:
    send(topics.JOIN_STATE, user, encode(state(user, offset=offset)), 1)


def statistics_ahead(send: Any, user: str, offset: int) -> None:
    row = StatisticsRow("item", "a", 1, 1, 1.0, 0.0, 0.0, 0.0, 0.0, (9, offset))
    send(topics.ITEM_STATISTICS, "item/1/a", encode(row))


def trending_ahead(send: Any, user: str, offset: int) -> None:
    send(topics.TRENDING, "global/1", encode(Trending("global", 1, 1, 60.0, (("a", 1.0),), offset)))


def windows_half_closed(send: Any, user: str, offset: int) -> None:
    row = StatisticsRow("item", "b", 1, 1, 1.0, 0.0, 0.0, 0.0, 0.0, (2000, -1))
    send(topics.ITEM_STATISTICS, "item/1/b", encode(row))
    send(topics.JOIN_STATE, user, encode(state(user, at_ms=1000)), 1)


def test_what_a_killed_worker_had_in_hand_is_to_be_ended_first(own, send):
    """And then nothing has changed: the workers start as before."""
    user = next(each for each in USERS if partition_of(each, BEFORE) == 1 != partition_of(each, 5))
    send(topics.WATCH_EVENTS, user, b"not committed", 1)
    example = TrainingExample(user, "a", 1, 20.0, None, (), (), None, 1, 0, 1)
    send(topics.TRAINING_EXAMPLES, user, encode(example))
    with pytest.raises(RebuildRefused, match="the history workers have not ended their last batch"):
        raise_partitions(raised_to(own, 5))
    for offset, left in enumerate((join_ahead, statistics_ahead, trending_ahead, windows_half_closed), 10):
        commit(own, offset)  # which settles what was left before
        left(send, user, offset)
        with pytest.raises(RebuildRefused, match="have not ended their last batch"):
            raise_partitions(raised_to(own, 5))
    commit(own, 20, "trending")
    with pytest.raises(RebuildRefused, match=r"watch-events \(partition 0: history 13, join 13, trending 20\)"):
        raise_partitions(raised_to(own, 5))
    require_partitions(own.kafka)
    assert topics.partition_counts(own.kafka, STATES) == dict.fromkeys(STATES, BEFORE)


WATCHED, SHOWN = (topics.WATCH_EVENTS, 2), (topics.IMPRESSIONS, 2)


@pytest.mark.parametrize(
    ("lagging", "place", "behind"),
    [
        (["join", "trending"], WATCHED, "join and trending"),
        (["history", "join"], WATCHED, "history and join"),
        (["history"], SHOWN, "history"),
        (["join"], SHOWN, "join"),
    ],
)
def test_what_one_worker_has_read_and_another_has_not_is_to_be_read_first(lagging, place, behind):
    """It would be forwarded and count twice, or not be forwarded and be lost."""
    read = {worker: {WATCHED: 11, SHOWN: 11} for worker in WORKERS}
    refuse_apart(read, {WATCHED: 0, SHOWN: 0})
    for worker in lagging:
        read[worker] = {**read[worker], place: 10}
    with pytest.raises(RebuildRefused, match=f"of {place[0]} \\(partition 2: .* twice: {behind} must read it"):
        refuse_apart(read, {WATCHED: 0, SHOWN: 0})
    refuse_apart(read, {WATCHED: 11, SHOWN: 11})  # what is between is gone


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("at", [1, 8])
def test_killed_between_writes_nobody_starts_and_the_same_command_ends_it(own, send, monkeypatch, at):
    """With the states of a partition copied and not taken out, and in the second table."""
    from streams.partitions import raise_partitions as module

    for user in USERS:
        send(topics.USER_HISTORIES, user, history(user, "a"), partition_of(user, BEFORE))
        send(topics.JOIN_STATE, user, encode(state(user)), partition_of(user, BEFORE))
    commit(own, 1000)
    settings, write, left = raised_to(own, 5), module.write_records, [at]

    def write_until_killed(*arguments: Any) -> int:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return write(*arguments)

    monkeypatch.setattr(module, "write_records", write_until_killed)
    with pytest.raises(Killed):
        raise_partitions(settings)
    for kafka in (own.kafka, settings.kafka):
        with pytest.raises(TopicUnfit, match="raised from 3 to 5"):
            require_partitions(kafka)
    with pytest.raises(RebuildRefused, match=r"set kafka\.partitions to 5"):
        raise_partitions(raised_to(own, 6))
    monkeypatch.setattr(module, "write_records", write)
    assert raise_partitions(settings).was_begun
    for name, partitions in tables(settings).items():
        assert {user: n for n, each in enumerate(partitions) for user in each} == {
            user: partition_of(user, 5) for user in USERS
        }, name
    raised = read_raise(settings.kafka)
    assert raised is not None and raised.is_done and not check_raise(settings.kafka)
    assert "user-0" in read_histories(settings.kafka, partition_of("user-0", 5))


def test_who_has_started_before_a_raise_looks_again(own):
    watch = PartitionsWatch(own.kafka)
    watch.look()
    announce(own.kafka, PartitionsRaised(BEFORE, 5, 1))
    watch.look()
    watch.look_again()
    for _ in range(2):
        with pytest.raises(TopicUnfit, match="raised from 3 to 5"):
            watch.look()
    announce(own.kafka, PartitionsRaised(BEFORE, BEFORE, 1, is_done=True))
    watch.look()


def test_brokers_that_do_not_know_the_partitions_in_time_are_told_and_the_next_run_goes_on(own, send, monkeypatch):
    from streams.partitions import raise_partitions as module

    send(topics.USER_HISTORIES, "user-0", history("user-0", "a"), partition_of("user-0", BEFORE))
    settings, count = raised_to(own, 5), topics.partition_counts
    stale = count(own.kafka, [topic.name for topic in topics.TOPICS])
    monkeypatch.setattr(module, "MADE_S", 0.3)
    with monkeypatch.context() as patched:
        patched.setattr(topics, "partition_counts", lambda kafka, names: {name: stale[name] for name in names})
        with pytest.raises(KafkaTimeoutError, match=r"5 partitions: dead-letters, .*watch-events; run it again"):
            raise_partitions(settings)
    with pytest.raises(TopicUnfit, match="raised from 3 to 5"):
        require_partitions(settings.kafka)
    wait_until(lambda: count(settings.kafka, STATES) == dict.fromkeys(STATES, 5), "the brokers know", 30, 0.2)
    assert raise_partitions(settings).was_begun
    assert "user-0" in read_histories(settings.kafka, partition_of("user-0", 5))

"""What Faust does by itself, and with us: where a test of the first kind fails, its patch is no longer needed.

That nothing is lost is tested with real brokers in tests/system/test_streams.py.
"""

import asyncio
import inspect
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka.structs import ConsumerRecord, TopicPartition
from faust.stores.memory import Store
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from infra.platform.settings import Settings
from infra.platform.third_parties.patching import original
from streams.kafka.faust.patches import (
    Batch,
    Fetched,
    FetchingConsumer,
    FlowLastRecovery,
    fetch_from_flowing_only,
)
from streams.kafka.faust_app import create_app

EVENTS = TP("watch-events", 0)
ENDS = ["on_recovery_completed", "_resume_streams"]


class Recorded:
    """A consumer that writes down what is asked of it."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def assignment(self) -> set[TP]:
        return {EVENTS}

    def resume_partitions(self, partitions: set[TP]) -> None:
        self._seen.append(f"flow {sorted(tp.topic for tp in partitions)}")

    async def perform_seek(self) -> None:
        self._seen.append("seek")

    def resume_flow(self) -> None:
        self._seen.append("resume")


class Idle:
    """The service that fetches; it need not."""

    async def maybe_start(self) -> None: ...


@pytest.fixture
def app(tmp_path) -> faust.App:
    return create_app(Settings(data_dir=tmp_path, kafka={"bootstrap": "127.0.0.1:1"}), "test")  # type: ignore[arg-type]


def order_of(app: faust.App, of: type[Recovery], end: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens at the end of a rebalance, in order."""
    seen: list[str] = []

    async def run() -> None:
        recovery = app.tables.recovery
        assert isinstance(recovery, FlowLastRecovery)
        app.consumer, app._fetcher = Recorded(seen), Idle()
        monkeypatch.setattr(app.flow_control, "clear", lambda: seen.append("clear"))
        await getattr(of, end)(recovery, app.consumer_generation_id)

    asyncio.run(run())
    return seen


@pytest.mark.parametrize("end", ENDS)
def test_partitions_flow_only_after_the_seek_and_after_the_queues_were_cleared(app, monkeypatch, end):
    seen = order_of(app, FlowLastRecovery, end, monkeypatch)
    assert seen.index("seek") < seen.index("clear") < seen.index("flow ['watch-events']")
    assert seen[-1] == "flow ['watch-events']"


@pytest.mark.parametrize("end", ENDS)
def test_by_itself_faust_lets_partitions_flow_before_the_seek(app, monkeypatch, end):
    seen = order_of(app, Recovery, end, monkeypatch)
    assert seen.index("flow ['watch-events']") < seen.index("seek") < seen.index("clear")


def test_partitions_do_not_flow_when_another_rebalance_begins(app):
    seen: list[str] = []

    class Interrupted(Recorded):
        async def perform_seek(self) -> None:
            raise RuntimeError("rebalance again")

    async def run() -> None:
        app.consumer = Interrupted(seen)
        with pytest.raises(RuntimeError, match="again"):
            await app.tables.recovery._resume_streams(app.consumer_generation_id)
        app.consumer.resume_partitions({EVENTS})

    asyncio.run(run())
    assert seen == ["flow ['watch-events']"], "only what was asked afterwards"


def fetched_by(fetch: Any, flowing: set[TP]) -> list[Any]:
    """Which partitions aiokafka is asked for; an empty set means all to it."""
    asked: list[Any] = []

    async def fetched_records(partitions: Any, **_: Any) -> dict[TP, Any]:
        asked.append(partitions)
        return {}

    fetcher = SimpleNamespace(
        _closed=False, _subscriptions=SimpleNamespace(fetch_context=nullcontext), fetched_records=fetched_records
    )
    thread = SimpleNamespace(consumer=SimpleNamespace(flow_active=True))
    consumer = SimpleNamespace(_fetcher=fetcher, _closed=False)
    assert asyncio.run(fetch(thread, consumer, flowing, timeout=1.0, max_records=1)) == {}
    return asked


def test_by_itself_faust_asks_for_all_partitions_when_none_flow():
    fetch_from_flowing_only()
    theirs, ours = original(AIOKafkaConsumerThread, "_fetch_records"), AIOKafkaConsumerThread._fetch_records
    living = {EVENTS}
    assert fetched_by(theirs, set()) == [set()] and fetched_by(ours, set()) == []
    assert fetched_by(theirs, living)[0] is living, "which may become empty while it is fetched"
    assert fetched_by(ours, living) == [{EVENTS}] and fetched_by(ours, living)[0] is not living


def test_faust_recovers_record_by_record():
    assert "changelog_queue.get()" in inspect.getsource(Recovery._slurp_changelogs.fun)


def test_faust_tells_no_offsets_no_coordinator_and_no_partition_of_a_key(app):
    names = ("committed_offset", "committed_offsets", "read_offset", "read_offsets", "coordinator")
    assert not set(dir(Consumer)).intersection(names)
    assert not set(dir(Store)) & {"key_partition", "key_partitions"}
    assert hasattr(app.conf, "TableManager") and not hasattr(app.conf, "Recovery")


# --- whole fetches ---------------------------------------------------------------------------------------------------

SEARCHES, STATES = TP("search-events", 0), TP("user-histories", 0)


def fetched(tp: TP, *offsets: int) -> dict[TopicPartition, list[Any]]:
    """What aiokafka brings of a partition."""
    return {
        TopicPartition(*tp): [
            ConsumerRecord(tp.topic, tp.partition, offset, 7, 0, b"u", b"v", None, 1, 1, ()) for offset in offsets
        ]
    }


def consumer_of(app: faust.App, *fetches: dict[TopicPartition, list[Any]]) -> Any:
    """The app's consumer, in generation 1, to which these fetches come."""
    coming = iter(fetches)

    async def fetch(*_: Any, **__: Any) -> Any:
        return next(coming, {})

    app.consumer_generation_id = 1
    consumer: Any = app.consumer
    consumer._thread = SimpleNamespace(getmany=fetch, highwater=lambda _: 100, assignment=lambda: {EVENTS, SEARCHES})
    consumer._set_active_tps({EVENTS, SEARCHES, STATES})
    consumer.resume_flow()
    return consumer


async def brought(consumer: Any, rounds: int = 1) -> list[Any]:
    return [message for _ in range(rounds) async for _, message in consumer.getmany(1.0)]


def test_by_itself_faust_hands_on_each_message(app):
    async def run() -> None:
        del app.transport.Consumer
        messages = await brought(consumer_of(app, fetched(EVENTS, 4, 5) | fetched(SEARCHES, 9)))
        assert sorted(message.offset for message in messages) == [4, 5, 9]

    asyncio.run(run())


def test_a_fetch_is_handed_on_whole_and_what_was_read_of_it_is_known(app):
    async def run() -> None:
        consumer = consumer_of(app, fetched(EVENTS, 4, 5) | fetched(SEARCHES, 9))
        assert isinstance(consumer, FetchingConsumer)
        [message] = await brought(consumer)
        assert isinstance(message, Fetched) and message.generation_id == 1 and message.tp in {EVENTS, SEARCHES}
        assert {tp: [r.offset for r in records] for tp, records in message.portions.items()} == {
            EVENTS: [4, 5],
            SEARCHES: [9],
        }
        assert dict(consumer._read_offset) == {EVENTS: 5, SEARCHES: 9}

    asyncio.run(run())


def test_what_was_handed_on_before_is_not_again(app):
    async def run() -> None:
        consumer = consumer_of(app, fetched(EVENTS, 3, 4, 5, 6), fetched(EVENTS, 1, 2))
        consumer._read_offset[EVENTS] = 5  # as after the seek to it
        [message] = await brought(consumer, rounds=2)
        assert [record.offset for record in message.portions[EVENTS]] == [5, 6]

    asyncio.run(run())


def test_messages_of_tables_come_as_they_did(app):
    async def run() -> None:
        app.tables._changelogs[STATES.topic] = None  # type: ignore[assignment]
        messages = await brought(consumer_of(app, fetched(STATES, 1, 2) | fetched(EVENTS, 4)))
        assert [(message.topic, message.offset) for message in messages] == [
            ("user-histories", 1),
            ("user-histories", 2),
            ("watch-events", 4),
        ]
        assert isinstance(messages[-1], Fetched) and not isinstance(messages[0], Fetched)

    asyncio.run(run())


def test_nothing_is_handed_on_of_a_partition_that_was_paused_meanwhile(app):
    async def run() -> None:
        consumer = consumer_of(app, fetched(EVENTS, 4) | fetched(SEARCHES, 9))
        consumer.pause_partitions({SEARCHES})
        [message] = await brought(consumer)
        assert list(message.portions) == [EVENTS]

    asyncio.run(run())


def committable(consumer: Any) -> dict[TP, int]:
    offsets: dict[TP, int] = consumer._filter_committable_offsets(list(consumer._filter_tps_with_pending_acks()))
    return offsets


def test_an_offset_is_committed_when_its_batch_is_acknowledged_and_not_before(app):
    async def run() -> None:
        consumer = consumer_of(app)
        consumer._committed_offset[EVENTS] = 2
        first = Batch({TP(*tp): records for tp, records in fetched(EVENTS, 4, 7).items()}, 1)
        second = Batch({TP(*tp): records for tp, records in (fetched(EVENTS, 8) | fetched(SEARCHES, 0)).items()}, 1)
        consumer.begin(first)
        assert first in consumer.unacked and committable(consumer) == {}
        consumer.acknowledge(first)
        assert not consumer.unacked and committable(consumer) == {EVENTS: 8}, "what compaction has left out counts"
        consumer._committed_offset[EVENTS] = 8
        assert committable(consumer) == {}, "committed once"
        consumer.begin(second)
        consumer.acknowledge(second)
        assert committable(consumer) == {EVENTS: 9, SEARCHES: 1}

    asyncio.run(run())


def test_a_rebalance_waits_for_the_batch_in_hand_and_commits_it(app):
    async def run() -> None:
        consumer, commits = consumer_of(app), list[dict[TP, int]]()

        async def commit(**_: Any) -> bool:
            commits.append(committable(consumer))
            return True

        consumer.commit = commit
        batch = Batch({TP(*tp): records for tp, records in fetched(EVENTS, 4).items()}, 1)
        consumer.begin(batch)
        waiting = asyncio.ensure_future(consumer.wait_empty())
        while consumer._waiting_for_ack is None:
            await asyncio.sleep(0)
        assert not waiting.done()
        consumer.acknowledge(batch)
        woken, _ = await asyncio.wait([waiting], timeout=0.5)
        assert woken, "at once, not after the second that Faust waits for at most"
        assert commits[-1] == {EVENTS: 5}

    asyncio.run(run())


def test_a_batch_that_the_group_has_gone_on_without_is_not_committed(app):
    async def run() -> None:
        consumer = consumer_of(app)
        batch = Batch({TP(*tp): records for tp, records in fetched(EVENTS, 4).items()}, 1)
        consumer.begin(batch)
        app.consumer_generation_id = 2
        consumer.acknowledge(batch)
        assert committable(consumer) == {} and not consumer.unacked

    asyncio.run(run())

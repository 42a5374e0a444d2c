"""What aiokafka does by itself: where a test fails, its patch is no longer needed (or aiokafka has changed)."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.errors import LeaderNotAvailableError
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.record.memory_records import MemoryRecords

from infra.platform.third_parties.patching import original
from streams.clock import running_s
from streams.kafka.aiokafka import patches
from streams.kafka.aiokafka.patches import note_confirmations, number_anew, pace_fetches
from tests.harness.raw_batches import GZIP, NAMED, batch, with_bad_name
from tests.unit.streams.kafka.test_unpacking import PLACE

EVERY_S = 0.05


def pauses_of(fetch: Any, nodes: Sequence[int]) -> list[float]:
    """Seconds between the requests of a consumer that is answered at once, with nothing."""
    asked_s: list[float] = []

    async def answer(node_id: Any, request: Any) -> Any:
        asked_s.append(time.monotonic())
        return SimpleNamespace(topics=[], API_VERSION=4)

    async def ask() -> None:
        consumer = SimpleNamespace(_client=SimpleNamespace(send=answer), _client_rack=None)
        for node in nodes:
            await fetch(consumer, SimpleNamespace(active=True), node, SimpleNamespace(topics=[]))

    asyncio.run(ask())
    return np.diff(asked_s).tolist()


def test_a_consumer_asks_a_broker_again_at_once_unless_it_is_paced():
    pace_fetches(EVERY_S)
    assert min(pauses_of(original(Fetcher, "_proc_fetch_request"), [0] * 5)) < EVERY_S / 2
    assert min(pauses_of(Fetcher._proc_fetch_request, [0] * 5)) >= 0.9 * EVERY_S
    assert min(pauses_of(Fetcher._proc_fetch_request, [0, 1, 2, 3])) < EVERY_S / 2, "each broker for itself"


def parts_of(data: bytes) -> Any:
    records = original(aiokafka.consumer.fetcher, "PartitionRecords")
    return records(PLACE, MemoryRecords(data), [], 0, None, None, True, 0)


def test_nothing_bounds_what_a_batch_is_unpacked_to():
    assert not [name for name in AIOKafkaConsumer.__init__.__annotations__ if "compress" in name or "unpack" in name]
    assert len(next(parts_of(batch([b"\0" * 20_000_000], GZIP))).value) == 20_000_000


def test_a_header_whose_name_is_no_text_ends_the_reading():
    with pytest.raises(ValueError, match="utf-8"):
        next(parts_of(with_bad_name(batch([b"a"], headers=NAMED))))


class Coordinator(SimpleNamespace):
    """A member that the group answers, after a while."""

    def __init__(self) -> None:
        asks_again = SimpleNamespace(done=lambda: False)
        client = SimpleNamespace(api_version=(2, 6))
        super().__init__(group_id="group", generation=1, member_id="me", _rejoin_needed_fut=asks_again, _client=client)
        self.heard_s = self.settled_s = 0.0

    async def _send_req(self, _: Any) -> Any:
        await asyncio.sleep(0.3)
        return SimpleNamespace(error_code=0, member_assignment=b"")


def heartbeat(beat: Any) -> Coordinator:
    coordinator = Coordinator()
    assert asyncio.run(beat(coordinator))
    return coordinator


def test_a_coordinator_does_not_tell_when_the_group_confirmed_it():
    note_confirmations()
    before = vars(Coordinator())
    assert vars(heartbeat(original(GroupCoordinator, "_do_heartbeat"))).keys() == before.keys()


@pytest.mark.parametrize("how", ["heartbeat", "sync"])
def test_an_answer_counts_from_when_it_was_asked_for(how):
    """It may have lain in the socket of a process that was paused."""
    note_confirmations()
    began_s = running_s()
    if how == "heartbeat":
        coordinator = heartbeat(GroupCoordinator._do_heartbeat)
    else:
        coordinator = Coordinator()
        rebalance = SimpleNamespace(_coordinator=coordinator, group_id="group")

        async def sync() -> None:
            await CoordinatorGroupRebalance._send_sync_group_request(rebalance, None)

        asyncio.run(sync())
    assert began_s <= coordinator.heard_s < began_s + 0.2 and coordinator.settled_s == coordinator.heard_s


class Connection(SimpleNamespace):
    def __init__(self, *waits_for: int) -> None:
        super().__init__(_requests=[(number, None, None) for number in waits_for], closed=[])

    def close(self, reason: Any) -> None:
        self.closed.append(reason)


class Client(SimpleNamespace):
    """A client of three brokers, which tell it that there are only `left`; `asked` are those who were to tell."""

    def __init__(self, conns: dict[Any, Connection], left: Sequence[int]) -> None:
        cluster = ClusterMetadata()
        super().__init__(cluster=cluster, _conns=conns, _topics={"watch-events"}, asked=[], left=left)
        cluster.update_metadata(self.metadata(1, 2, 3))

    async def send(self, node_id: int, _: Any) -> Any:
        self.asked.append(node_id)
        return self.metadata(*self.left)

    def metadata(self, *node_ids: int) -> Any:
        brokers = [(number, f"kafka-{number}", 9092, None) for number in node_ids]
        return SimpleNamespace(brokers=brokers, topics=[], controller_id=node_ids[0], API_VERSION=5)


async def looked_after(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client whose brokers have been silent for long."""
    monkeypatch.setattr(patches, "LOOK_S", 0.001)
    monkeypatch.setattr(patches, "SILENT_S", 0.01)
    looking = asyncio.create_task(patches._leave_lost(client))
    await asyncio.sleep(0.1)
    looking.cancel()
    return client


@pytest.mark.parametrize(("left", "is_left"), [((1, 2), True), ((1, 2, 3), False)], ids=["gone", "still there"])
def test_a_silent_broker_is_left_if_the_others_no_longer_name_it(monkeypatch, left: Sequence[int], is_left: bool):
    fetching, coordinating, healthy = Connection(7), Connection(8), Connection()
    conns = {(3, "fetch"): fetching, (3, "coordinate"): coordinating, (1, "fetch"): healthy}
    client = asyncio.run(looked_after(Client(conns, left), monkeypatch))
    assert client.asked and 3 not in client.asked
    assert bool(fetching.closed) == bool(coordinating.closed) == is_left and not healthy.closed
    assert {broker.nodeId for broker in client.cluster.brokers()} == set(left)


def test_nobody_is_asked_while_all_answer(monkeypatch):
    assert not asyncio.run(looked_after(Client({(1, "fetch"): Connection()}, (1,)), monkeypatch)).asked


def test_silence_is_of_one_request_and_of_one_connection():
    silence = patches.Silence()
    assert silence.look({"a": 1, "b": 1}, 0.0) == set()
    assert silence.look({"a": 1, "b": 2}, patches.SILENT_S) == {"a"}
    assert silence.look({"b": 2}, 2 * patches.SILENT_S) == {"b"}
    assert silence.look({"a": 1}, 3 * patches.SILENT_S) == set(), "it had been answered"


def test_a_client_looks_after_its_brokers_from_its_start_until_it_is_closed():
    patches.leave_lost_brokers()
    assert original(AIOKafkaClient, "bootstrap") is not AIOKafkaClient.bootstrap

    async def bootstrap(client: Any) -> None:
        client._sync_task = client._sync_task or asyncio.create_task(asyncio.sleep(60))

    async def start_and_close() -> None:
        client = SimpleNamespace(_sync_task=None, _conns={})
        await patches._watching(bootstrap)(client)
        looking = client.lost_brokers
        await patches._watching(bootstrap)(client)
        assert client.lost_brokers is looking and not looking.done(), "once"
        client._sync_task.cancel()
        await asyncio.wait([looking], timeout=5)
        assert looking.cancelled()

    asyncio.run(start_and_close())


def test_a_batch_that_is_given_up_for_want_of_a_leader_takes_its_numbers_with_it():
    """So what follows is out of order to the broker (number_anew)."""

    async def give_up() -> int:
        numbers, place = TransactionManager(None, 0), TopicPartition("topic", 0)
        numbers.set_pid_and_epoch(1, 0)
        nobody_leads = SimpleNamespace(leader_for_partition=lambda _: -1)
        waiting = MessageAccumulator(nobody_leads, 1000, 0, batch_ttl=0, txn_manager=numbers)
        sent = await waiting.add_message(place, b"key", b"value", 1.0)
        await asyncio.sleep(0.01)
        waiting.drain_by_nodes(())
        assert isinstance(sent.exception(), LeaderNotAvailableError)
        return int(numbers.sequence_number(place))

    assert asyncio.run(give_up()) == 1


def test_a_producer_that_numbers_anew_asks_for_an_id():
    async def begin() -> TransactionManager:
        numbers = TransactionManager(None, 0)
        numbers.set_pid_and_epoch(1, 0)
        numbers.increment_sequence_number(TopicPartition("topic", 0), 5)
        number_anew(SimpleNamespace(_txn_manager=numbers))
        number_anew(SimpleNamespace(_txn_manager=numbers))
        assert not numbers.has_pid()
        numbers.set_pid_and_epoch(2, 0)
        return numbers

    numbers = asyncio.run(begin())
    assert numbers.producer_id == 2 and numbers.sequence_number(TopicPartition("topic", 0)) == 0

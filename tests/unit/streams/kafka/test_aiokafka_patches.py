"""What aiokafka does by itself: where a test fails, its patch is no longer needed (or aiokafka has changed)."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.record.memory_records import MemoryRecords

from infra.platform.third_parties.patching import original
from streams.clock import running_s
from streams.kafka.aiokafka.patches import note_confirmations, pace_fetches
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

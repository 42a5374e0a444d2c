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
from faust.stores.memory import Store
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from infra.platform.settings import Settings
from infra.platform.third_parties.patching import original
from streams.kafka.faust.patches import FlowLastRecovery, fetch_from_flowing_only
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

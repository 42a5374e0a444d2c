"""The order in which a rebalance ends, against Faust as it is installed: a release of Faust that changes it shows here.

That nothing is lost is tested with real brokers in tests/test_streams_system.py.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import faust
import pytest
from faust.types import TP

from infra.settings import Settings
from streams.faust_app import create_app
from streams.recovery import OrderedRecovery
from streams.tables import EncodedTable, create_table
from streams.topics import JOIN_STATE

EVENTS = TP("watch-events", 0)


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


def order_of(app: faust.App, end: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens at the end of a rebalance, in order."""
    seen: list[str] = []

    async def run() -> None:
        recovery = app.tables.recovery
        assert isinstance(recovery, OrderedRecovery)
        app.consumer, app._fetcher = Recorded(seen), Idle()
        monkeypatch.setattr(app.flow_control, "clear", lambda: seen.append("clear"))
        await getattr(recovery, end)(app.consumer_generation_id)

    asyncio.run(run())
    return seen


@pytest.mark.parametrize("end", ["on_recovery_completed", "_resume_streams"])
def test_partitions_flow_only_after_the_seek_and_after_the_queues_were_cleared(app, monkeypatch, end):
    seen = order_of(app, end, monkeypatch)
    assert seen.index("seek") < seen.index("clear") < seen.index("flow ['watch-events']")
    assert seen[-1] == "flow ['watch-events']"


def test_partitions_do_not_flow_when_another_rebalance_begins(app, monkeypatch):
    seen: list[str] = []

    async def interrupted() -> None:
        raise RuntimeError("rebalance again")

    class Interrupted(Recorded):
        async def perform_seek(self) -> None:
            await interrupted()

    async def run() -> None:
        app.consumer = Interrupted(seen)
        with pytest.raises(RuntimeError, match="again"):
            await app.tables.recovery._resume_streams(app.consumer_generation_id)
        app.consumer.resume_partitions({EVENTS})

    asyncio.run(run())
    assert seen == ["flow ['watch-events']"], "only what was asked afterwards"


def test_a_record_without_a_key_is_nobodys_state(tmp_path):
    """An unreadable batch becomes one; a worker that took it up would end in it, after each restart again."""
    settings = Settings(data_dir=tmp_path)
    app = create_app(settings, "test", Table=EncodedTable)
    table = create_table(app, settings, "states", JOIN_STATE)
    message = SimpleNamespace(partition=0, value=b"{}")
    table.apply_changelog_batch([SimpleNamespace(key=key, value=b"{}", message=message) for key in (None, "u", "")])
    assert set(table) == {"u", ""}

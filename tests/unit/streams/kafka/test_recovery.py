"""The order in which a rebalance ends, against Faust as it is installed: a release of Faust that changes it shows here.

That nothing is lost is tested with real brokers in tests/system/test_streams.py.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import faust
import pytest
from faust.types import TP

from infra.platform.settings import Settings
from streams.kafka import recovery as module
from streams.kafka.faust_app import create_app
from streams.kafka.recovery import OrderedRecovery
from streams.kafka.tables import EncodedTable, create_table
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
    table.take_over(0, [SimpleNamespace(key=key, value=b"{}") for key in (None, b"u", b"")])
    assert set(table) == {"u", ""}


STATES = TP(JOIN_STATE, 0)


class Changelog:
    """A partition with records at `offsets` (compaction has taken the others), and the consumer that reads it."""

    def __init__(self, records: dict[int, tuple[str, bytes | None]], end: int) -> None:
        self.records, self.end, self.at = records, end, 0
        self.wait_s = 0.0

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        return dict.fromkeys(tps, min(self.records))

    async def seek_wait(self, offsets: dict[TP, int]) -> None:
        self.at = offsets[STATES]

    async def position(self, tp: TP) -> int:
        return self.at

    async def fetch(self, _: Changelog, tps: set[TP]) -> dict[TP, list[SimpleNamespace]]:
        """As aiokafka does it, in a thread that hears of no cancellation: what is given out is behind the position,
        whoever gets it."""
        return await asyncio.shield(asyncio.ensure_future(self._fetch()))

    async def _fetch(self) -> dict[TP, list[SimpleNamespace]]:
        await asyncio.sleep(self.wait_s)
        offsets = [offset for offset in sorted(self.records) if offset >= self.at][:2]
        self.at = offsets[-1] + 1 if offsets else self.end
        found = [(offset, *self.records[offset]) for offset in offsets]
        records = [SimpleNamespace(offset=offset, key=key.encode(), value=value) for offset, key, value in found]
        return {STATES: records} if records else {}


@pytest.fixture
def recovering(app, tmp_path, monkeypatch):
    """A recovery with one table, and the changelog that it is to take over."""
    app = create_app(Settings(data_dir=tmp_path), "test", Table=EncodedTable)
    table = create_table(app, Settings(), "states", JOIN_STATE)
    changelog = Changelog({2: ("a", b"1"), 5: ("b", b"1"), 6: ("a", None), 9: ("c", b"1"), 11: ("b", b"2")}, end=14)
    monkeypatch.setattr(module, "fetch_records", changelog.fetch)

    def begin() -> OrderedRecovery:
        recovery = app.tables.recovery
        recovery.add_active(table, STATES)
        recovery.active_highwaters[STATES] = changelog.end - 1
        return recovery

    return begin, table, changelog


def take_over(recovery: OrderedRecovery, changelog: Changelog):
    return recovery._build_offsets(changelog, {STATES}, recovery.active_offsets, "active")


def test_a_changelog_is_taken_over_before_faust_looks_for_what_is_left(recovering):
    begin, table, changelog = recovering

    async def run() -> bool:
        recovery = begin()
        await take_over(recovery, changelog)
        return recovery.need_recovery()

    assert asyncio.run(run()) is False
    assert dict(table) == {"b": b"2", "c": b"1"}


def test_a_recovery_that_is_cut_short_by_a_rebalance_loses_nothing(recovering):
    """The fetch of the one that was cut short must have ended before the next one looks where to begin."""
    begin, table, changelog = recovering

    async def run() -> None:
        recovery = begin()
        changelog.wait_s = 0.05
        for wait_s in (0.02, 0.07, 0.02):
            cut_short = asyncio.ensure_future(take_over(recovery, changelog))
            await asyncio.sleep(wait_s)
            cut_short.cancel()  # and nobody waits until it is
        await take_over(recovery, changelog)

    asyncio.run(run())
    assert dict(table) == {"b": b"2", "c": b"1"}


def test_what_comes_when_another_rebalance_has_begun_is_not_taken_over(recovering):
    """The partition may be another's, and its offset must not be known when it comes back."""
    begin, table, changelog = recovering

    async def run() -> OrderedRecovery:
        recovery = begin()
        changelog.wait_s = 0.02
        reading = asyncio.ensure_future(take_over(recovery, changelog))
        await asyncio.sleep(0.01)
        recovery.revoke(STATES)
        recovery.signal_recovery_start.set()
        await reading
        return recovery

    assert STATES not in asyncio.run(run()).active_offsets
    assert dict(table) == {}


def test_a_recovery_that_takes_long_goes_on_in_rounds(recovering, monkeypatch):
    """A single step of Faust's may not take longer than a request."""
    begin, table, changelog = recovering
    monkeypatch.setattr(module, "ROUND_S", -1.0)

    async def run() -> int:
        recovery, rounds = begin(), 0
        while recovery.need_recovery() if rounds else True:
            await take_over(recovery, changelog)
            assert recovery.signal_recovery_start.is_set() is recovery.need_recovery()
            recovery.signal_recovery_start.clear()
            rounds += 1
        return rounds

    assert asyncio.run(run()) == 4
    assert dict(table) == {"b": b"2", "c": b"1"}

"""Tables are taken over in batches, and a recovery that is cut short loses nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from faust.types import TP

from infra.platform.settings import Settings
from streams.kafka import recovery as module
from streams.kafka.faust_app import create_app
from streams.kafka.recovery import BatchRecovery
from streams.kafka.tables import EncodedTable, create_table
from streams.topics import JOIN_STATE, partition_of


def test_a_record_without_a_key_is_nobodys_state(tmp_path):
    """An unreadable batch becomes one; a worker that took it up would end in it, after each restart again."""
    settings = Settings(data_dir=tmp_path)
    app = create_app(settings, "test", Table=EncodedTable)
    table = create_table(app, settings, "states", JOIN_STATE)
    table.take_over(0, [SimpleNamespace(key=key, value=b"{}") for key in (None, b"u", b"")])
    assert set(table) == {"u", ""}


@pytest.mark.parametrize("order", ["before first", "before last"])
def test_of_a_user_who_was_moved_the_state_in_the_users_own_partition_counts(tmp_path, order):
    settings = Settings(data_dir=tmp_path)
    app = create_app(settings, "test", Table=EncodedTable)
    table = create_table(app, settings, "states", JOIN_STATE)
    home = partition_of("u", settings.kafka.partitions)
    left = (home + 1) % settings.kafka.partitions, [SimpleNamespace(key=b"u", value=value) for value in (b"old", None)]
    now = home, [SimpleNamespace(key=b"u", value=value) for value in (b"moved", b"newest")]
    for place in (left, now) if order == "before first" else (now, left):
        table.take_over(*place)
    assert table["u"] == b"newest"
    table.take_over(home, [SimpleNamespace(key=b"u", value=None)])
    assert "u" not in table


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

    async def fetch(self, _: Changelog, tps: set[TP], **limits: float) -> dict[TP, list[SimpleNamespace]]:
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
def recovering(tmp_path, monkeypatch):
    """A recovery with one table, and the changelog that it is to take over."""
    app = create_app(Settings(data_dir=tmp_path), "test", Table=EncodedTable)
    table = create_table(app, Settings(), "states", JOIN_STATE)
    changelog = Changelog({2: ("a", b"1"), 5: ("b", b"1"), 6: ("a", None), 9: ("c", b"1"), 11: ("b", b"2")}, end=14)
    monkeypatch.setattr(module, "fetch_records", changelog.fetch)

    def begin() -> BatchRecovery:
        recovery = app.tables.recovery
        recovery.add_active(table, STATES)
        recovery.active_highwaters[STATES] = changelog.end - 1
        return recovery

    return begin, table, changelog


def take_over(recovery: BatchRecovery, changelog: Changelog):
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

    async def run() -> BatchRecovery:
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

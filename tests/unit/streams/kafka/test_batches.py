"""How fetches become batches: when, how large, and what of them is dropped when the group chooses anew."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.batches import Batches, Rest
from streams.kafka.faust.patches import Batch, Fetched

WATCHES, SEARCHES = TP("watch-events", 0), TP("search-events", 1)


def records(tp: TP, *offsets: int) -> list[Any]:
    return [SimpleNamespace(topic=tp.topic, partition=tp.partition, offset=offset, timestamp=0) for offset in offsets]


def places(batch: Batch) -> list[tuple[str, int]]:
    return [(record.topic, record.offset) for record in batch.records]


class Faust:
    """An app in its group's generation 1, whose channel holds what `fetch` brings."""

    def __init__(self) -> None:
        self.consumer_generation_id, self.flows, self.begun = 1, True, list[Batch]()
        self.flow_control = SimpleNamespace(is_active=lambda: self.flows)
        self.consumer = SimpleNamespace(begin=self.begun.append)
        self.channel: asyncio.Queue[Any] = asyncio.Queue()

    def fetch(self, portions: dict[TP, list[Any]]) -> None:
        self.channel.put_nowait(SimpleNamespace(message=Fetched(portions, self.consumer_generation_id)))


def with_batches(use: Callable[[Faust, Batches], Awaitable[None]], *, most: int, within_s: float = 0.0) -> None:
    async def run() -> None:
        faust: Any = Faust()
        await asyncio.wait_for(use(faust, Batches(faust, faust.channel, most=most, within_s=within_s)), 10)

    asyncio.run(run())


def test_a_batch_holds_no_more_than_it_may_and_the_rest_comes_next():
    async def use(faust: Faust, batches: Batches) -> None:
        faust.fetch({WATCHES: records(WATCHES, 5, 6, 7, 9)})
        first, second = await batches.next(), await batches.next()
        assert [places(first), places(second)] == [
            [("watch-events", 5), ("watch-events", 6), ("watch-events", 7)],
            [("watch-events", 9)],
        ]
        assert [first.ends, second.ends] == [{WATCHES: 7}, {WATCHES: 9}], "as far as each may be committed"
        assert faust.begun == [first, second], "a rebalance waits for them, and for nothing else"

    with_batches(use, most=3)


def test_what_comes_after_a_pause_is_given_out_at_once_and_what_comes_soon_after_a_batch_is_one():
    async def use(faust: Faust, batches: Batches) -> None:
        faust.fetch({WATCHES: records(WATCHES, 1)})
        began_s = time.monotonic()
        assert places(await batches.next()) == [("watch-events", 1)]
        assert time.monotonic() - began_s < 0.2
        waiting = asyncio.ensure_future(batches.next())
        for offset in (2, 3):
            await asyncio.sleep(0.05)
            faust.fetch({WATCHES: records(WATCHES, offset)})
        assert places(await waiting) == [("watch-events", 2), ("watch-events", 3)]
        assert time.monotonic() - began_s >= 0.4

    with_batches(use, most=100, within_s=0.4)


def test_a_full_batch_does_not_wait():
    async def use(faust: Faust, batches: Batches) -> None:
        began_s = time.monotonic()
        for offset in range(4):
            faust.fetch({WATCHES: records(WATCHES, offset)})
        assert len(places(await batches.next())) == len(places(await batches.next())) == 2
        assert time.monotonic() - began_s < 5

    with_batches(use, most=2, within_s=9.0)


@pytest.mark.parametrize("back", ["another generation", "no flow yet"])
def test_what_is_not_given_out_when_the_group_chooses_anew_is_dropped(back: str):
    async def use(faust: Faust, batches: Batches) -> None:
        faust.fetch({WATCHES: records(WATCHES, 1, 2)})
        assert places(await batches.next()) == [("watch-events", 1)]
        if back == "no flow yet":
            faust.flows = False
            waiting = asyncio.ensure_future(batches.next())
            await asyncio.sleep(0.01)
            faust.flows = True
        faust.consumer_generation_id = 2
        if back == "another generation":
            waiting = asyncio.ensure_future(batches.next())
            await asyncio.sleep(0.01)
        assert not waiting.done()
        faust.fetch({WATCHES: records(WATCHES, 1)})
        assert places(await waiting) == [("watch-events", 1)], "read again"

    with_batches(use, most=1)


def test_a_fetch_from_before_the_group_chose_anew_is_passed_over():
    late = SimpleNamespace(message=Fetched({WATCHES: records(WATCHES, 2)}, 1))  # it had waited for room

    async def use(faust: Faust, batches: Batches) -> None:
        faust.fetch({WATCHES: records(WATCHES, 1)})
        faust.consumer_generation_id = 2
        faust.fetch({WATCHES: records(WATCHES, 7)})
        faust.channel.put_nowait(late)
        batch = await batches.next()
        assert places(batch) == [("watch-events", 7)] and batch.generation_id == 2

    with_batches(use, most=10)


def test_no_partition_runs_ahead_of_the_others():
    rest = Rest()
    rest.add({WATCHES: records(WATCHES, *range(100)), SEARCHES: records(SEARCHES, *range(10))})
    taken = rest.take(40)
    assert {tp: len(of) for tp, of in taken.items()} == {WATCHES: 30, SEARCHES: 10} and rest.count == 70


@given(st.lists(st.dictionaries(st.integers(0, 4), st.integers(1, 9), min_size=1), max_size=5), st.integers(1, 7))
def test_every_record_is_given_out_once_and_in_the_order_of_its_partition(fetches, most):
    rest, given_out, offsets = Rest(), dict[TP, list[int]](), dict[TP, int]()
    for fetch in fetches:
        portions = {}
        for number, count in fetch.items():
            tp = TP("watch-events", number)
            first = offsets.get(tp, 0)
            portions[tp], offsets[tp] = records(tp, *range(first, first + count)), first + count
        rest.add(portions)
    while rest.count:
        taken = rest.take(most)
        assert 0 < sum(map(len, taken.values())) <= most
        for tp, part in taken.items():
            given_out.setdefault(tp, []).extend(record.offset for record in part)
    assert given_out == {tp: list(range(end)) for tp, end in offsets.items()} and not rest.take(most)

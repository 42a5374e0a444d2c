"""The client for asyncio, against a real broker."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from infra.platform.kafka_clients import client_options
from infra.platform.settings import Kafka
from nextwatch_client import AsyncRecommendClient, RecommendRequest, RequestFailed, RequestTimeout
from tests.conftest import on_both_brokers
from tests.unit.clients.responder import echo, responding

pytestmark = [pytest.mark.system, on_both_brokers]

WAIT_S = 20.0


def run(kafka: Kafka, task: Callable[[AsyncRecommendClient], Awaitable[None]]) -> None:
    """Run a task with an open client."""

    async def opened() -> None:
        async with AsyncRecommendClient(client_options(kafka)) as client:
            await task(client)

    asyncio.run(opened())


def test_a_thousand_at_once_are_all_answered_and_nothing_is_kept(topics: Kafka):
    async def ask(client: AsyncRecommendClient) -> None:
        ids = [f"r{number}" for number in range(1000)]
        began = time.perf_counter()
        replies = await asyncio.gather(
            *(client.recommend(f"user-{each}", request_id=each, timeout_s=60, retries=2) for each in ids)
        )
        print(f"1,000 at once, async: {time.perf_counter() - began:.2f} s")
        assert [reply.request_id for reply in replies] == ids
        assert client.pending == 0

    with responding(topics):
        run(topics, ask)


def test_a_lost_reply_is_asked_for_again_with_the_same_ids(topics: Kafka):
    async def ask(client: AsyncRecommendClient) -> None:
        reply = await client.recommend("ann", filter="available", request_id="mine", timeout_s=4.0, retries=3)
        assert (reply.request_id, reply.version) == ("mine", "copy 2")

    with responding(topics, lambda request, copy: [] if copy == 1 else echo(request, copy)) as seen:
        run(topics, ask)
    assert {(request.request_id, request.filter) for _, request in seen} == {("mine", "available")}
    assert seen[0][0] == seen[1][0]


def test_a_cancelled_wait_frees_its_entry_at_once(topics: Kafka):
    async def ask(client: AsyncRecommendClient) -> None:
        tasks = [asyncio.create_task(client.recommend("ann", timeout_s=WAIT_S)) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert client.pending == 10
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(ended, asyncio.CancelledError) for ended in await asyncio.gather(*tasks, return_exceptions=True)
        )
        assert client.pending == 0

    run(topics, ask)


def test_a_reply_that_does_not_come_is_a_time_out(topics: Kafka):
    async def ask(client: AsyncRecommendClient) -> None:
        with pytest.raises(RequestTimeout, match="is a serving worker running"):
            await client.ask(RecommendRequest("r", "ann"), timeout_s=0.3)
        assert client.pending == 0

    run(topics, ask)


def test_the_event_loop_goes_on_while_replies_are_awaited(topics: Kafka):
    async def ask(client: AsyncRecommendClient) -> None:
        task = asyncio.create_task(client.recommend("ann", timeout_s=0.5))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 3
        with pytest.raises(RequestTimeout):
            await task

    run(topics, ask)


def test_a_client_that_is_not_open_says_so(topics: Kafka):
    async def ask() -> None:
        client = AsyncRecommendClient(client_options(topics))
        with pytest.raises(RequestFailed, match="not open"):
            await client.recommend("ann")
        async with client:
            pass
        with pytest.raises(RequestFailed, match="the client is closed"):
            await client.recommend("ann")

    asyncio.run(ask())

"""What pages have in common: who waits for whom."""

import asyncio

from infra.console.rendering import MOST_WAITING, Turns
from infra.gateway.routes import Busy


def test_who_would_wait_behind_many_readers_is_told_to_come_again() -> None:
    async def crowd() -> list[object]:
        turns, let_go = Turns(), asyncio.Event()

        async def read() -> None:
            async with turns:
                await let_go.wait()

        readers = [asyncio.create_task(read()) for _ in range(MOST_WAITING + 2)]
        await asyncio.sleep(0.01)
        let_go.set()
        return await asyncio.gather(*readers, return_exceptions=True)

    refused = [each for each in asyncio.run(crowd()) if isinstance(each, Busy)]
    assert len(refused) == 1, "one reads, the queue is full, and one is too many"

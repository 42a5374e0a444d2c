"""The client for asyncio: serving/client/client.py's, awaited.

    from serving.client.async_client import AsyncRecommendClient

    async with AsyncRecommendClient(load_settings().kafka) as client:
        replies = await asyncio.gather(*(client.recommend(user, k=20, timeout_s=1.0) for user in users))

One implementation of the protocol serves both: the sync client's thread reads and sends again, and sending does not
block once it stands (kafka-python's producer has a thread of its own). A second one on aiokafka would save that thread
and have to be kept the same. Cancelling a task that waits frees its entry at once; its reply then goes nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from infra.platform.settings import Kafka
from serving.client.client import RecommendClient, RequestFailed
from serving.client.pending_requests import request_for, shares
from streams.messages import Context, RecommendReply, RecommendRequest


class AsyncRecommendClient:
    """Use it as an async context manager, in one event loop.

    Entering raises TopicMissing when the topics are not there, and KafkaError when no broker answers.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._client: RecommendClient | None = None

    async def recommend(
        self,
        user_id: str,
        k: int | None = None,
        context: Context | None = None,
        exclude: Iterable[str] = (),
        *,
        filter: str | None = None,
        request_id: str | None = None,
        timeout_s: float = 5.0,
        retries: int = 1,
    ) -> RecommendReply:
        """As RecommendClient.recommend. Raises RequestTimeout (a TimeoutError) and RequestFailed."""
        request = request_for(user_id, k, context, exclude, filter=filter, request_id=request_id, timeout_s=timeout_s)
        return await self.ask(request, timeout_s=timeout_s, retries=retries)

    async def ask(self, request: RecommendRequest, *, timeout_s: float = 5.0, retries: int = 1) -> RecommendReply:
        """The reply to a ready request. Raises as `recommend`."""
        if self._client is None:
            raise RequestFailed("the client is not open: use it in `async with`")
        future = self._client.submit(request, shares(timeout_s, retries))
        answer = asyncio.wrap_future(future)
        try:
            await asyncio.wait([answer], timeout=timeout_s)
            if answer.done():
                return answer.result()
            raise self._client.late(future, request, timeout_s)
        finally:
            future.cancel()

    async def __aenter__(self) -> AsyncRecommendClient:
        self._client = await asyncio.to_thread(RecommendClient, self._kafka)
        return self

    async def __aexit__(self, *_: Any) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

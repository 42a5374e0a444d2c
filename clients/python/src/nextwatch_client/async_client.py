"""The client for asyncio: the sync one, awaited.

    async with AsyncRecommendClient(ConnectionOptions(bootstrap="kafka-1:9092")) as client:
        replies = await asyncio.gather(*(client.recommend(user, k=20, timeout_s=1.0) for user in users))

One implementation of the protocol serves both: the sync client's thread reads and sends again, and sending does not
block once it stands (kafka-python's producer has a thread of its own). A second one on aiokafka would save that thread
and have to be kept the same. Cancelling a task that waits frees its entry at once; its reply then goes nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from nextwatch_client.client import RecommendClient
from nextwatch_client.errors import RequestFailed
from nextwatch_client.messages import Context, RecommendReply, RecommendRequest
from nextwatch_client.options import ConnectionOptions
from nextwatch_client.pending_requests import new_request, resend_times_s


class AsyncRecommendClient:
    """Use it as an async context manager, in one event loop.

    Entering raises OptionsError, TopicMissing when the topics are not there, and KafkaError when no broker answers.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._client: RecommendClient | None = None

    @property
    def pending(self) -> int:
        """The number of requests that wait for their reply."""
        return 0 if self._client is None else self._client.pending

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
        traceparent: str = "",
    ) -> RecommendReply:
        """As RecommendClient.recommend. Raises RequestTimeout (a TimeoutError) and RequestFailed."""
        request = new_request(user_id, k, context, exclude, filter=filter, request_id=request_id, timeout_s=timeout_s)
        return await self.ask(request, timeout_s=timeout_s, retries=retries, traceparent=traceparent)

    async def ask(
        self, request: RecommendRequest, *, timeout_s: float = 5.0, retries: int = 1, traceparent: str = ""
    ) -> RecommendReply:
        """Send a ready request and wait for its reply. Raises as `recommend`."""
        if self._client is None:
            raise RequestFailed("the client is not open: use it in `async with`")
        future = self._client.submit(request, resend_times_s(timeout_s, retries), traceparent)
        reply = asyncio.wrap_future(future)
        try:
            await asyncio.wait([reply], timeout=timeout_s)
            if reply.done():
                return reply.result()
            raise self._client.timeout_of(future, request, timeout_s)
        finally:
            future.cancel()

    async def __aenter__(self) -> AsyncRecommendClient:
        self._client = await asyncio.to_thread(RecommendClient, self._options)
        return self

    async def __aexit__(self, *_: Any) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

"""A client's requests that are under way: who waits for which reply, what is to be sent again, and what counts.

An entry is taken out by whoever has its outcome first, be it a reply, a failure or a caller who waits no longer. What
comes later finds nothing: so the first reply wins, whatever number of copies was sent and answered, and nobody who has
stopped waiting costs memory.
"""

from __future__ import annotations

import heapq
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from streams.messages import Context, RecommendReply, RecommendRequest


@dataclass(slots=True)
class Waiting:
    request: RecommendRequest
    future: Future[RecommendReply]
    since_s: float
    accepted: bool = False  # the brokers have acknowledged the request


def request_for(
    user_id: str,
    k: int | None = None,
    context: Context | None = None,
    exclude: Iterable[str] = (),
    *,
    filter: str | None = None,
    request_id: str | None = None,
    timeout_s: float,
) -> RecommendRequest:
    """A request of one's own id, else of a new one; the server is told how long it is waited for."""
    return RecommendRequest(
        request_id=uuid.uuid4().hex if request_id is None else request_id,
        user_id=user_id,
        k=k,
        context=context,
        filter=filter,
        exclude=tuple(exclude),
        deadline_ms=max(1, int(timeout_s * 1000)),
    )


def shares(timeout_s: float, retries: int) -> tuple[float, ...]:
    """When a request is sent again: `retries` times, the whole time in equal parts."""
    return tuple(timeout_s * number / (retries + 1) for number in range(1, retries + 1))


def copy_of(request: RecommendRequest, waited_s: float) -> RecommendRequest:
    """The same request, sent later: its deadline counts from the send, so what is left of it is less."""
    if request.deadline_ms is None:
        return request
    return msgspec.structs.replace(request, deadline_ms=max(1, request.deadline_ms - round(waited_s * 1000)))


class PendingRequests:
    """Requests by correlation id. May be used from several threads; `now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, Waiting] = {}
        self._again: list[tuple[float, bytes]] = []  # a heap: when which request is sent again
        self._lock = threading.Lock()  # of the heap; taking out of the dictionary is atomic

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, request: RecommendRequest, now_s: float, again_after_s: Iterable[float] = ()
    ) -> tuple[bytes, Waiting]:
        """A request that is about to be sent; its correlation id and who waits for it."""
        correlation = uuid.uuid4().bytes
        waiting = Waiting(request, Future(), now_s)
        waiting.future.add_done_callback(lambda _: self._waiting.pop(correlation, None))
        self._waiting[correlation] = waiting
        with self._lock:
            for after_s in again_after_s:
                heapq.heappush(self._again, (now_s + after_s, correlation))
        return correlation, waiting

    def due(self, now_s: float) -> list[tuple[bytes, RecommendRequest]]:
        """What is to be sent again now, under the correlation id that it was first sent with."""
        with self._lock:
            late = []
            while self._again and self._again[0][0] <= now_s:
                late.append(heapq.heappop(self._again)[1])
        found = [(correlation, self._waiting.get(correlation)) for correlation in late]
        return [
            (correlation, copy_of(waiting.request, now_s - waiting.since_s))
            for correlation, waiting in found
            if waiting is not None
        ]

    def accept(self, correlation: bytes) -> None:
        """The brokers have acknowledged a request."""
        if (waiting := self._waiting.get(correlation)) is not None:
            waiting.accepted = True

    def is_accepted(self, future: Future[RecommendReply]) -> bool:
        """Looked for one by one: asked only when a reply is late."""
        return any(waiting.accepted for waiting in list(self._waiting.values()) if waiting.future is future)

    def is_waiting(self, correlation: bytes) -> bool:
        return correlation in self._waiting

    def reply(self, correlation: bytes, reply: RecommendReply) -> None:
        """The first reply is the future's result; any other goes nowhere."""
        waiting = self._waiting.pop(correlation, None)
        if waiting is not None and waiting.future.set_running_or_notify_cancel():
            waiting.future.set_result(reply)

    def fail(self, correlation: bytes, error: Exception) -> None:
        waiting = self._waiting.pop(correlation, None)
        if waiting is not None and waiting.future.set_running_or_notify_cancel():
            waiting.future.set_exception(error)

    def fail_all(self, error: Exception) -> None:
        for correlation in list(self._waiting):
            self.fail(correlation, error)

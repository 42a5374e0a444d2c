"""The requests of a client that are pending: who waits for which reply, what is to be sent again, and what counts.

An entry is taken out by the first who has its outcome: a reply, a failure, or a caller who waits no longer. What comes
later finds nothing. So the first reply wins, however many copies were sent and answered, and a caller who has stopped
waiting costs no memory.
"""

from __future__ import annotations

import heapq
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from nextwatch_client.messages import Context, RecommendReply, RecommendRequest


@dataclass(slots=True)
class PendingRequest:
    request: RecommendRequest
    future: Future[RecommendReply]
    sent_s: float
    traceparent: str = ""  # W3C's header
    acknowledged: bool = False  # by the brokers


def new_request(
    user_id: str,
    k: int | None = None,
    context: Context | None = None,
    exclude: Iterable[str] = (),
    *,
    filter: str | None = None,
    request_id: str | None = None,
    timeout_s: float,
) -> RecommendRequest:
    """Make a request with the given id or else a new one; its deadline tells the server how long the caller waits."""
    return RecommendRequest(
        request_id=uuid.uuid4().hex if request_id is None else request_id,
        user_id=user_id,
        k=k,
        context=context,
        filter=filter,
        exclude=tuple(exclude),
        deadline_ms=max(1, int(timeout_s * 1000)),
    )


def resend_times_s(timeout_s: float, retries: int) -> tuple[float, ...]:
    """Divide the time that a caller waits into equal parts: after each but the last the request is sent again."""
    return tuple(timeout_s * number / (retries + 1) for number in range(1, retries + 1))


def copy_to_resend(request: RecommendRequest, waited_s: float) -> RecommendRequest:
    """Return the same request with what is left of its deadline, which counts from the send."""
    if request.deadline_ms is None:
        return request
    return msgspec.structs.replace(request, deadline_ms=max(1, request.deadline_ms - round(waited_s * 1000)))


PUT_OFF_S = 0.1  # a copy, where the brokers have not taken the first one yet


class PendingRequests:
    """Requests by correlation id. May be used from several threads; `now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        self._pending: dict[bytes, PendingRequest] = {}
        self._resends: list[tuple[float, bytes]] = []  # a heap: when which request is sent again
        self._lock = threading.Lock()  # of the heap; taking out of the dictionary is atomic

    def __len__(self) -> int:
        return len(self._pending)

    def add(
        self, request: RecommendRequest, now_s: float, resend_after_s: Iterable[float] = (), traceparent: str = ""
    ) -> tuple[bytes, PendingRequest]:
        """Note a request that is about to be sent; return its correlation id and its entry."""
        correlation_id = uuid.uuid4().bytes
        pending = PendingRequest(request, Future(), now_s, traceparent)
        pending.future.add_done_callback(lambda _: self._pending.pop(correlation_id, None))
        self._pending[correlation_id] = pending
        with self._lock:
            for after_s in resend_after_s:
                heapq.heappush(self._resends, (now_s + after_s, correlation_id))
        return correlation_id, pending

    def due(self, now_s: float) -> list[tuple[bytes, RecommendRequest]]:
        """Take out what is to be sent again now, each with the correlation id that it was first sent with. What the
        brokers have not taken yet is put off: a copy would only wait behind it."""
        copies = []
        with self._lock:
            while self._resends and self._resends[0][0] <= now_s:
                _, correlation_id = heapq.heappop(self._resends)
                if (pending := self._pending.get(correlation_id)) is None:
                    continue
                if pending.acknowledged:
                    copies.append((correlation_id, copy_to_resend(pending.request, now_s - pending.sent_s)))
                else:
                    heapq.heappush(self._resends, (now_s + PUT_OFF_S, correlation_id))
        return copies

    def traceparent_of(self, correlation_id: bytes) -> str:
        """Return the trace that a request belongs to; empty for none."""
        pending = self._pending.get(correlation_id)
        return "" if pending is None else pending.traceparent

    def acknowledge(self, correlation_id: bytes) -> None:
        """Note that the brokers have taken a request."""
        if (pending := self._pending.get(correlation_id)) is not None:
            pending.acknowledged = True

    def is_acknowledged(self, future: Future[RecommendReply]) -> bool:
        """Tell if the brokers have taken this future's request; looks one by one: asked only for a late reply."""
        return any(pending.acknowledged for pending in list(self._pending.values()) if pending.future is future)

    def is_pending(self, correlation_id: bytes) -> bool:
        return correlation_id in self._pending

    def reply(self, correlation_id: bytes, reply: RecommendReply) -> None:
        """Make the first reply the future's result; any later one goes nowhere."""
        pending = self._pending.pop(correlation_id, None)
        if pending is not None and pending.future.set_running_or_notify_cancel():
            pending.future.set_result(reply)

    def fail(self, correlation_id: bytes, error: Exception) -> None:
        pending = self._pending.pop(correlation_id, None)
        if pending is not None and pending.future.set_running_or_notify_cancel():
            pending.future.set_exception(error)

    def fail_all(self, error: Exception) -> None:
        for correlation_id in list(self._pending):
            self.fail(correlation_id, error)

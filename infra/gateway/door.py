"""The door that every request passes: whether it is let in, how many are inside, how long they took.

It stands before the framework, in plain ASGI, so that a refused request costs next to nothing and no handler can be
added that forgets to ask. The path is handed on percent-encoded: an id may hold slashes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from infra.gateway.access import OPEN_PATHS, AccessRules, Head, Refusal
from infra.platform import metrics

log = structlog.get_logger(__name__)

RETRY_S = "1"
ROUTES = ("console", "recommend", "watches", "searches", "items", "history", "forget", "health", "metrics")
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
     b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip
FULL = Refusal(429, "too many requests are in flight (gateway.requests)", (("Retry-After", RETRY_S),))


class Error(msgspec.Struct):
    """The body of every refusal."""

    error: str


class Door:
    """Lets requests through to `inside`, at most `most` at once; a reader that takes nothing for `reader_s` is left."""

    def __init__(self, inside: ASGIApp, rules: AccessRules, most: int, reader_s: float) -> None:
        self._inside, self._rules, self._most, self._reader_s = inside, rules, most, reader_s
        self._in_flight = 0
        metrics.GATEWAY_IN_FLIGHT.set_function(lambda: float(self._in_flight))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            return
        began_s, head = time.perf_counter(), head_of(scope)
        exchange = Exchange(send, self._reader_s)
        is_open = head.path in OPEN_PATHS
        refusal = self._rules.refuse(head) or (FULL if self._in_flight >= self._most and not is_open else None)
        if refusal is not None:
            await exchange.refuse(refusal)
        else:
            self._in_flight += 1
            try:
                scope["path"] = head.path
                await self._inside(scope, receive, exchange.send)
            except TimeoutError:  # of a reader; what handlers wait for is theirs to tell
                log.debug("a client has not read its reply in time")
            finally:
                self._in_flight -= 1
        route = route_of(head.path)
        metrics.GATEWAY_REQUESTS.labels(route, str(exchange.status)).inc()
        metrics.GATEWAY_TIME.labels(route).observe(time.perf_counter() - began_s)


class Exchange:
    """What is sent back: with our headers, and noted."""

    def __init__(self, send: Send, reader_s: float) -> None:
        self._send, self._reader_s = send, reader_s
        self.status = 499  # the client has gone before it was answered

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [*message["headers"]]
            there = {name.lower() for name, _ in own}
            message["headers"] = [*own, *(each for each in HEADERS if each[0] not in there)]
        async with asyncio.timeout(self._reader_s):
            await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        body = msgspec.json.encode(Error(refusal.reason))
        about = [("content-type", "application/json"), ("content-length", str(len(body))), *refusal.headers]
        # What is left of a body is not read: the connection cannot be used again.
        headers = [(name.lower().encode(), value.encode()) for name, value in [*about, ("connection", "close")]]
        start: Any = {"type": "http.response.start", "status": refusal.status, "headers": headers}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def head_of(scope: HTTPScope) -> Head:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    path = (scope.get("raw_path") or b"/").partition(b"?")[0].decode("latin-1")
    return Head(scope["method"], path, scope["query_string"].decode("latin-1"), headers)


def route_of(path: str) -> str:
    """The label of a path: one of a fixed few."""
    first = path.lstrip("/").partition("/")[0]
    return first if first in ROUTES else "other"

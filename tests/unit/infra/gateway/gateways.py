"""A gateway without Kafka: its servers answer what they are told to, and its brokers acknowledge what they are sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from infra.gateway.access import AccessRules
from infra.gateway.app import create_app
from infra.gateway.event_sender import Record
from infra.gateway.routes import Services
from infra.platform.health import Health
from infra.platform.settings import Gateway, Settings
from nextwatch_client import RecommendReply, RecommendRequest

HOST = "127.0.0.1:8080"


@dataclass
class Servers:
    """The serving workers, as the client sees them."""

    reply: RecommendReply | Exception = field(default_factory=lambda: RecommendReply("r"))
    wait_s: float = 0.0
    asked: list[RecommendRequest] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)

    async def ask(
        self, request: RecommendRequest, *, timeout_s: float, retries: int, traceparent: str
    ) -> RecommendReply:
        self.asked.append(request)
        self.traces.append(traceparent)
        await asyncio.sleep(self.wait_s)
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


@dataclass
class Brokers:
    """The brokers, as the sender is told of them; `refused`: by key, why a record is not acknowledged."""

    refused: dict[bytes, str] = field(default_factory=dict)
    sent: list[Record] = field(default_factory=list)

    async def send(self, records: Sequence[Record]) -> list[str]:
        self.sent += records
        return [self.refused.get(record.key, "") for record in records]


@dataclass
class Ground:
    services: Services
    servers: Servers
    brokers: Brokers
    http: httpx.AsyncClient

    async def __call__(self, method: str, path: str, **how: Any) -> tuple[int, Any]:
        """Status and body of a request."""
        reply = await self.http.request(method, path, **how)
        is_json = reply.headers.get("content-type", "").startswith("application/json")
        return reply.status_code, reply.json() if is_json else reply.text


def services_of(servers: Servers, brokers: Brokers, token: str = "", **gateway: Any) -> Services:
    settings = Settings(gateway=Gateway(token=token, **gateway))
    return Services(settings, AccessRules(token), servers, brokers, Health("gateway", ready=True))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def gateway(token: str = "", **settings: Any) -> AsyncIterator[Ground]:
    """A gateway that is asked within this process."""
    servers, brokers = Servers(), Brokers()
    services = services_of(servers, brokers, token, **settings)
    transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as http:
        yield Ground(services, servers, brokers, http)

"""A console without Kafka: pages over servers that know a watch as soon as the brokers have it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from infra.console.catalogue import Catalogue
from infra.console.pages import console_pages
from infra.gateway.app import create_app
from nextwatch_client import Recommended, RecommendReply, RecommendRequest, ShownList, UserHistory, Watch
from streams.messages import Item, WatchEvent, decode, encode
from streams.topics import ITEMS
from tests.unit.infra.gateway.gateways import HOST, Brokers, Ground, Servers, services_of

TOKEN = "s3cret-token"
HERE = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}


def listed(*ids: str) -> RecommendReply:
    items = tuple(Recommended(item_id, rank, "two_tower", 1.5, 30.0) for rank, item_id in enumerate(ids, 1))
    return RecommendReply("r", items=items, version="v1", served_by="s")


def history(*watched: str, user: str = "ann") -> UserHistory:
    watches = tuple(Watch(item, 1000, 30.0, 60.0, True, f"e{number}", 0) for number, item in enumerate(watched))
    return UserHistory(user, watches, impressions=(ShownList("r", 1000, ("shown-item",)),))


class Serving(Servers):
    """Servers that know a user's watches as soon as the brokers have them, and move a watched item down the list."""

    def __init__(self, brokers: Brokers) -> None:
        super().__init__()
        self.brokers, self.ids, self.of = brokers, ["a", "b", "c"], history("old")

    async def ask(
        self, request: RecommendRequest, *, timeout_s: float, retries: int, traceparent: str = ""
    ) -> RecommendReply:
        self.asked.append(request)
        if isinstance(self.reply, Exception) or self.reply.error:
            return await super().ask(request, timeout_s=timeout_s, retries=retries, traceparent=traceparent)
        sent = [decode(WatchEvent, record.value or b"") for record in self.brokers.sent]
        if request.history:
            new = [Watch(each.item_id, each.event_ms, each.watch_s, None, True, each.event_id, 0) for each in sent]
            return RecommendReply("r", history=replace(self.of, watches=(*self.of.watches, *new)))
        watched = {each.item_id for each in sent}
        return listed(*[each for each in self.ids if each not in watched], *(["new"] if sent else []))


@asynccontextmanager
async def console(token: str = "", address: str = "127.0.0.1", **settings: Any) -> AsyncIterator[Ground]:
    """A console that is asked within this process, from this address."""
    brokers = Brokers()
    servers = Serving(brokers)
    services = services_of(servers, brokers, token, **settings)
    with console_pages(services) as pages:
        app = create_app(services, pages)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as http:
            yield Ground(services, servers, brokers, http)


def run(scene: Callable[[Ground], Awaitable[Any]], token: str = "", **settings: Any) -> Any:
    async def play() -> Any:
        async with console(token, **settings) as ground:
            return await scene(ground)

    return asyncio.run(play())


def know_catalogue(monkeypatch: pytest.MonkeyPatch, *items: Item) -> Catalogue:
    """A catalogue that is there without a broker, and figures that nobody looks for. The gateway's description, which
    takes longer to make than all the rest, is left out."""
    found = Catalogue(1_000_000)
    for item in items:
        found.apply(SimpleNamespace(topic=ITEMS, key=item.item_id.encode(), value=encode(item)))
    found.is_whole = True
    monkeypatch.setattr("infra.console.catalogue.CatalogueReader.catalogue", property(lambda self: found))
    monkeypatch.setattr("infra.console.curves.Sampler.look", lambda self, now_s: None)
    monkeypatch.setattr("infra.gateway.app.documentation", lambda handlers: [])
    return found

"""The gateway's process: its connections to Kafka, its web server, and when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import structlog
import uvicorn

from infra.gateway.access import AccessRules, require_token_beyond_loopback
from infra.gateway.app import create_app
from infra.gateway.event_sender import EventSender
from infra.gateway.routes import Services
from infra.platform.certificates import server_tls
from infra.platform.health import Health, serve_health
from infra.platform.kafka_clients import client_options
from infra.platform.port_locks import is_listening, port_error
from infra.platform.run_files import LOOPBACK_HOSTS, reachable
from infra.platform.settings import Gateway, Settings
from nextwatch_client import AsyncRecommendClient

log = structlog.get_logger(__name__)

CONNECTIONS = 4  # times as many as requests in flight; a further one is answered 503
MOST_HEAD_BYTES = 32_768  # of a request, all its headers included
READER_MS = 30_000  # a connection whose other end takes nothing for so long is cut off
KEEP_ALIVE_S = 75  # an idle connection; longer than balancers keep theirs, or they meet one that is just closed
LOOK_S = 2.0  # between two looks for the brokers


Pages = Callable[[Services], contextlib.AbstractContextManager[Sequence[Any]]]


def run_gateway(settings: Settings, stop: threading.Event, pages: Pages) -> None:
    """Serve until `stop`, with `pages` besides. Raises SettingsError, ServiceError for a port that is taken,
    TopicMissing and KafkaError."""
    gateway = settings.gateway
    require_token_beyond_loopback(gateway)
    tls = server_tls("gateway", gateway.tls_cert_file, gateway.tls_key_file)
    health = Health("gateway", waiting_for="the brokers")
    with serve_health(health, settings, started_ms=time.time_ns() // 1_000_000), listening(gateway) as door:
        scheme, port = "http" if tls is None else "https", door.getsockname()[1]
        host = reachable(gateway.host)
        health.detail["gateway"] = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        asyncio.run(_serve(settings, health, door, tls, stop, pages))


def listening(gateway: Gateway) -> socket.socket:
    """Return a socket that listens. Raises ServiceError naming `gateway.port`."""
    family = socket.AF_INET6 if ":" in gateway.host else socket.AF_INET
    # asyncio sends at once only where the protocol is named; else half a reply waits for the other end to acknowledge
    door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((gateway.host, gateway.port))
    except OSError as error:
        door.close()
        raise port_error(error, gateway.host, gateway.port, "gateway.port") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is accepted inherits it
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, READER_MS)
    return door


async def _serve(
    settings: Settings,
    health: Health,
    door: socket.socket,
    tls: ssl.SSLContext | None,
    stop: threading.Event,
    pages: Pages,
) -> None:
    rules = AccessRules(settings.gateway.token.get_secret_value(), settings.gateway.host in LOOPBACK_HOSTS)
    async with AsyncRecommendClient(client_options(settings.kafka)) as client, sending(settings) as sender:
        services = Services(settings, rules, client, sender, health)
        with pages(services) as handlers:
            server = create_server(services, tls, handlers)
            log.info("the gateway listens", at=health.detail["gateway"])
            watching = asyncio.create_task(watch_brokers(settings, sender, health))
            stopping = asyncio.create_task(stop_with(server, stop))
            try:
                await server.serve(sockets=[door])
            finally:
                health.ready = False
                for task in (watching, stopping):
                    task.cancel()


@contextlib.asynccontextmanager
async def sending(settings: Settings) -> AsyncIterator[EventSender]:
    sender = await asyncio.to_thread(EventSender, settings.kafka, settings.gateway.deadline_s)
    try:
        yield sender
    finally:
        await asyncio.to_thread(sender.close)


def create_server(services: Services, tls: ssl.SSLContext | None, pages: Sequence[Any] = ()) -> uvicorn.Server:
    """Return a web server without an access log: paths hold ids of users."""
    gateway = services.settings.gateway
    config = uvicorn.Config(
        create_app(services, pages),
        http="h11",  # bounds the head of a request, which httptools does not
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=CONNECTIONS * gateway.requests,
        timeout_graceful_shutdown=round(gateway.deadline_s) + 1,
    )
    config.load()
    config.ssl = tls
    return uvicorn.Server(config)


async def stop_with(server: uvicorn.Server, stop: threading.Event) -> None:
    """Have the server end once `stop` is set: it answers what is in flight first."""
    while not stop.is_set():
        await asyncio.sleep(0.1)
    server.should_exit = True


async def watch_brokers(settings: Settings, sender: EventSender, health: Health) -> None:
    """Keep it on record whether it is ready: the brokers can be reached, and have taken what was sent since the last
    look."""
    addresses = settings.kafka.bootstrap.split(",")
    while True:
        there = await asyncio.to_thread(lambda: any(is_listening(address.strip()) for address in addresses))
        health.ready = there and not sender.is_failing
        sender.is_failing = False  # nobody may come to try again while it is not ready
        await asyncio.sleep(LOOK_S)

"""A gateway behind its web server, without Kafka: in a thread of its own, on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from infra.gateway.process import Pages, create_server, listening, stop_with
from infra.gateway.routes import Services
from tests.unit.infra.gateway.gateways import Brokers, Servers, services_of


class Running:
    """A gateway in a thread of its own."""

    def __init__(self, port: int, servers: Servers, brokers: Brokers, stop: threading.Event) -> None:
        self.port, self.servers, self.brokers, self.stop = port, servers, brokers, stop

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, request: bytes) -> bytes:
        """All that comes back until the gateway closes."""
        with self.connect() as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65_536), b""))


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


@contextlib.contextmanager
def no_pages(services: Services) -> Iterator[Sequence[Any]]:
    yield ()


@contextlib.contextmanager
def running(
    tls: ssl.SSLContext | None = None, servers: Servers | None = None, pages: Pages = no_pages, **settings: Any
) -> Iterator[Running]:
    servers, brokers, stop = servers or Servers(), Brokers(), threading.Event()
    services = services_of(servers, brokers, port=0, **settings)

    async def serve(door: socket.socket) -> None:
        with pages(services) as handlers:
            server = create_server(services, tls, handlers)
            stopping = asyncio.create_task(stop_with(server, stop))
            await server.serve(sockets=[door])
            stopping.cancel()

    with listening(services.settings.gateway) as door:
        door.listen()
        thread = threading.Thread(target=lambda: asyncio.run(serve(door)), daemon=True)
        thread.start()
        try:
            yield Running(door.getsockname()[1], servers, brokers, stop)
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

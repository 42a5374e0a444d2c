"""A small system of the simulated world with a gateway: what its console shows in browser tests and in pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from streams import topics
from streams.messages import Item
from tests.harness.gateways import RunningGateway, running_gateway
from tests.harness.service import Service, Size, running_service

WORKERS = ("history", "trending")
BROKEN = b'{"event_id": "<b>broken</b>"'


@dataclass(frozen=True)
class RunningConsole:
    service: Service
    gateway: RunningGateway

    @property
    def users(self) -> list[str]:
        """Who has watched something, most watches first."""
        histories = self.service.releases.histories
        return sorted(histories, key=lambda user: (-len(histories[user].watches), user))

    @property
    def items(self) -> dict[str, Item]:
        return self.service.releases.items


@contextlib.contextmanager
def running_console(
    data_dir: Path,
    size: Size,
    *,
    workers: Sequence[str] = WORKERS,
    releases: int = 1,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[RunningConsole]:
    """An indexer, a server, these workers and the gateway, ready; the last of the releases is live, and one message is
    broken.

    `renamed`: other ids for items of the world."""
    with running_service(data_dir, releases, size, renamed=renamed) as service:
        for number in range(1, releases):
            service.wait_served(service.publish(number))
        for name in workers:
            service.start(name)
        service.traffic.send(topics.WATCH_EVENTS, "nobody", BROKEN)
        service.wait_ready(*workers)
        with running_gateway(service.settings) as gateway:
            yield RunningConsole(service, gateway)

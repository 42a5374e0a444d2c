"""The ground of the demo's scenes, and the claims that they make.

A scene is a function of these two: it acts through the context and says what it found through the claims.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console

from infra.operate.status import Samples, fetch_samples
from infra.operate.training import announce_bundle
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings
from infra.simulation.simulated_traffic import SimulatedTraffic, now_ms
from infra.simulation.world import World
from models.release.bundle import Manifest
from nextwatch_client import RecommendClient, Recommended, RecommendReply, RecommendRequest
from streams.kafka.releases import wait_until_served

ASKED_WITHIN_S = 15.0
LIVE_WITHIN_S = 60.0


@dataclass
class Claims:
    """Claims of the demo, and which of them did not hold."""

    console: Console
    failed: list[str] = field(default_factory=list)

    def check(self, held: bool, text: str) -> None:
        self.console.print(f"  {'[green]holds[/]' if held else '[bold red]DOES NOT HOLD[/]'}  {text}", highlight=False)
        if not held:
            self.failed.append(text)


@dataclass(frozen=True)
class DemoContext:
    """The running system, the world that lives on it, and how often each item was watched before it began to live."""

    world: World
    traffic: SimulatedTraffic
    client: RecommendClient
    settings: Settings
    past_watches: Counter[str]

    def channels(self) -> dict[str, str | None]:
        """Channel by item."""
        return {item.item_id: item.channel for item in self.world.catalogue(now_ms())}

    def ask(self, viewer: str, k: int) -> RecommendReply:
        """The list that this person would be shown."""
        return self.ask_many([viewer], k)[0]

    def ask_many(self, viewers: Iterable[str], k: int) -> list[RecommendReply]:
        """The lists that these people would be shown, in their order."""
        deadline_ms = round(1000 * ASKED_WITHIN_S)
        requests = [
            RecommendRequest(uuid.uuid4().hex, viewer, k, deadline_ms=deadline_ms, record=False) for viewer in viewers
        ]
        return self.client.recommend_many(requests, timeout_s=ASKED_WITHIN_S)

    def samples(self, process: str) -> Samples:
        """The metrics of one of our processes."""
        records = (each for each in read_run_files(self.settings.run_dir) if each["name"] == process)
        return next((fetch_samples(each, self.settings.metrics) for each in records), {})


def retrieved(reply: RecommendReply) -> list[Recommended]:
    """The candidates; what fills a list up was not ranked."""
    return [item for item in reply.items if item.expected_watch_s is not None]


def go_live(settings: Settings, manifest: Manifest) -> None:
    """Announce a bundle and return when a server answers from it. Raises TimeoutError."""
    announce_bundle(settings, manifest)
    if not wait_until_served(settings.kafka, manifest.version, LIVE_WITHIN_S):
        raise TimeoutError(f"no server answers from release {manifest.version} after {LIVE_WITHIN_S:g} s")

"""The ground of the demo's scenes, and the claims that they make.

A scene is a function of these two: it acts through the context and says what it found through the claims.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl
from rich.console import Console

from infra.operate.training import announce_bundle
from infra.platform.settings import Settings
from infra.simulation.simulated_traffic import SimulatedTraffic, now_ms
from infra.simulation.world import World
from models.release.bundle import Manifest
from nextwatch_client import RecommendClient, Recommended, RecommendReply, RecommendRequest
from streams.kafka.releases import wait_until_served

CANDIDATES = 500  # asked for, so that the whole order of the candidates is seen
SHOWN = 20  # of these people are shown so many
TWO_SIDED = 1.96  # standard errors on either side of a 95 % interval
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
    """The running system, the world that lives on it, and its past as a log. `seed`: of what a scene draws."""

    world: World
    traffic: SimulatedTraffic
    client: RecommendClient
    settings: Settings
    past: pl.DataFrame
    seed: int

    def channels(self) -> dict[str, str | None]:
        """Channel by item."""
        return {item.item_id: item.channel for item in self.world.catalogue(now_ms())}

    def durations_s(self) -> dict[str, float]:
        """Seconds by item."""
        return {item.item_id: item.duration_s or 0.0 for item in self.world.catalogue(now_ms())}

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


def retrieved(reply: RecommendReply) -> list[Recommended]:
    """The candidates; what fills a list up was not ranked."""
    return [item for item in reply.items if item.expected_watch_s is not None]


def go_live(settings: Settings, manifest: Manifest) -> None:
    """Announce a bundle and return when a server answers from it. Raises TimeoutError."""
    announce_bundle(settings, manifest)
    if not wait_until_served(settings.kafka, manifest.version, LIVE_WITHIN_S):
        raise TimeoutError(f"no server answers from release {manifest.version} after {LIVE_WITHIN_S:g} s")

"""What a scene of the demo plays on, and what it claims.

A scene is a function of these two: it acts through the stage and says what it found through the claims.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console

from infra.audience import Audience, now_ms
from infra.run_files import read_run_files
from infra.settings import Settings
from infra.status import Samples, fetch_samples
from infra.world import World
from serving.client import RecommendClient


@dataclass
class Claims:
    """What the demo says, and whether it was true."""

    console: Console
    failed: list[str] = field(default_factory=list)

    def check(self, held: bool, text: str) -> None:
        self.console.print(f"  {'[green]holds[/]' if held else '[bold red]DOES NOT HOLD[/]'}  {text}", highlight=False)
        if not held:
            self.failed.append(text)


@dataclass(frozen=True)
class Stage:
    """The running system, the world that lives on it, and how often each item was watched before it began to live."""

    world: World
    audience: Audience
    client: RecommendClient
    settings: Settings
    past_watches: Counter[str]

    def channels(self) -> dict[str, str | None]:
        """Channel by item."""
        return {item.item_id: item.channel for item in self.world.catalogue(now_ms())}

    def samples(self, process: str) -> Samples:
        """The metrics of one of our processes."""
        records = (each for each in read_run_files(self.settings.run_dir) if each["name"] == process)
        return next(map(fetch_samples, records), {})

"""The console's pictures that the documentation shows: `python -m tests.harness.console.pictures docs/console`.

A whole system is started and the simulated world's people use it for a while, so that there is something to see; then
Chromium opens each page in light, in dark and narrow. A picture has few colours, for repositories keep it forever.
"""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from infra.platform.kafka_clients import client_options
from infra.simulation.simulated_traffic import SimulatedTraffic, now_ms
from infra.simulation.world import World
from nextwatch_client import RecommendClient
from tests.harness.console.browser import View, Visit, chromium, visiting
from tests.harness.console.running import WORKERS, RunningConsole, running_console
from tests.harness.service import SEED, Size
from tests.harness.system import with_section

SIZE = Size(users=150, items=400, watches=6000)
WORLD_S = 130.0  # that people use it: the curves are as wide as their figures by then
JOIN_S = 30.0  # an impression's watches are counted after so long
WATCHES_PER_S, REQUESTS_PER_S = 4.0, 1.0
COLOURS = 96
LOOKS = {"light": View(1200, 820), "dark": View(1200, 820, "dark"), "narrow": View(360, 760)}
# a machine's name is its owner's
NAMELESS = """name => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(name, "server");
}"""


def main() -> None:
    """Write all pictures into the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.harness.console.pictures FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nextwatch-pictures-") as data_dir:
        for name, picture in pictures(Path(data_dir)):
            (folder / f"{name}.png").write_bytes(picture)
            print(f"{name}.png: {len(picture) // 1000} kB", flush=True)


def pictures(data_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each page in each look."""
    with running_console(data_dir, SIZE, workers=(*WORKERS, "trainer"), releases=2) as console:
        service = console.service
        service.settings = with_section(service.settings, "join", window_s=JOIN_S)
        service.start("join")
        service.wait_ready("join")
        with people(console), chromium() as browser:
            time.sleep(WORLD_S)
            for look, view in LOOKS.items():
                with visiting(browser, console.gateway.address, view) as visit:
                    for page, show in PAGES.items():
                        show(visit, console)
                        yield f"{page}-{look}", drawn(visit.page)
                    assert visit.complaints == [], visit.complaints


@contextlib.contextmanager
def people(console: RunningConsole) -> Iterator[None]:
    """The world's people use it while the block runs; the system was trained on their past."""
    world = World(
        seed=SEED, start_ms=now_ms(), users=SIZE.users, items=SIZE.items, events_per_s=WATCHES_PER_S, item_every_s=3600
    )
    kafka = console.service.settings.kafka
    with (
        RecommendClient(client_options(kafka)) as client,
        SimulatedTraffic(world, kafka, client, REQUESTS_PER_S),
    ):
        yield


def drawn(page: Page) -> bytes:
    """A picture of what is to be seen without scrolling, of few colours."""
    page.evaluate(NAMELESS, socket.gethostname())
    body, window = page.locator("body").bounding_box(), page.viewport_size
    assert body is not None and window is not None
    clip = {"x": 0, "y": 0, "width": window["width"], "height": min(window["height"], round(body["height"]))}
    whole = Image.open(io.BytesIO(page.screenshot(animations="disabled", clip=clip))).convert("RGB")
    file = io.BytesIO()
    few = whole.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()


def show_now(visit: Visit, console: RunningConsole) -> None:
    visit.open("/console/now")


def show_user(visit: Visit, console: RunningConsole) -> None:
    visit.open(f"/console/user?user={console.users[0]}")


def show_watched(visit: Visit, console: RunningConsole) -> None:
    """The lists before and after a watch."""
    page = visit.open(f"/console/user?user={console.users[1]}")
    page.get_by_role("button", name="watch this").nth(3).click()
    expect(page.get_by_role("heading", name="Before")).to_be_visible()
    page.mouse.move(0, 0)


def show_item(visit: Visit, console: RunningConsole) -> None:
    """The item at the top of a list."""
    page = visit.open(f"/console/user?user={console.users[0]}")
    page.locator("section .item").first.click()
    expect(page.get_by_role("heading", name="What is known")).to_be_visible()
    page.mouse.move(0, 0)


def show_releases(visit: Visit, console: RunningConsole) -> None:
    visit.open("/console/releases")


def show_dead_letters(visit: Visit, console: RunningConsole) -> None:
    visit.open("/console/dead-letters")


def show_letter(visit: Visit, console: RunningConsole) -> None:
    page = visit.open("/console/dead-letters")
    page.locator("td a").first.click()
    expect(page.get_by_role("heading", name="What it holds")).to_be_visible()
    page.mouse.move(0, 0)


PAGES: dict[str, Callable[[Visit, RunningConsole], None]] = {
    "now": show_now,
    "user": show_user,
    "watched": show_watched,
    "item": show_item,
    "releases": show_releases,
    "dead-letters": show_dead_letters,
    "letter": show_letter,
}

if __name__ == "__main__":
    main()

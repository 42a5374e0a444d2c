"""Debian's Chromium, driven by Playwright: pages that note what goes wrong in them, and axe-core's findings."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from tests.harness.needs import CHROMIUM, NPM, require

SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # a container's root has no other way
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 20_000
ABORTED = "net::ERR_ABORTED"  # by the browser, for the next page was asked for
INSTALL_S = 120.0
SERIOUS = frozenset({"serious", "critical"})
# where the page is wider than the window, and what sticks out of it
TOO_WIDE = """() => {
  const most = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= most) return [];
  return [...document.querySelectorAll("body *")].filter(each => each.getBoundingClientRect().right > most + 1)
    .map(each => `${each.tagName} ${each.className} ${Math.round(each.getBoundingClientRect().right)}`);
}"""


@dataclass(frozen=True)
class View:
    """How a person looks at it."""

    width: int = 1400
    height: int = 900
    scheme: Any = "light"  # or dark


@dataclass
class Visit:
    """A window of its own, with its cookies, and all that it has asked for and complained of."""

    page: Page
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", self._hear_failure)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("dialog", self._dismiss)

    def _hear_failure(self, request: Request) -> None:
        if request.failure != ABORTED:
            self.complaints.append(f"failed: {request.url}: {request.failure}")

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.address}{path}")
        return self.page

    @property
    def strayed(self) -> list[str]:
        """What was asked of others than the gateway."""
        return [url for url in self.requests if not url.startswith(f"{self.address}/")]

    def too_wide(self) -> list[str]:
        return list(self.page.evaluate(TOO_WIDE))

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require(CHROMIUM), args=[*SWITCHES])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def visiting(browser: Browser, address: str, view: View, **context: Any) -> Iterator[Visit]:
    """Open a window of this size and scheme; its page is empty."""
    window: BrowserContext = browser.new_context(
        viewport={"width": view.width, "height": view.height}, color_scheme=view.scheme, **context
    )
    try:
        yield Visit(window.new_page(), address)
    finally:
        window.close()


def install_axe(place: Path) -> str:
    """Fetch axe-core from the npm registry into a folder; its source."""
    require(NPM)
    (place / "package.json").write_text(json.dumps({"private": True}))
    install = ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", "axe-core@4"]
    subprocess.run(install, cwd=place, check=True, capture_output=True, timeout=INSTALL_S)
    return (place / "node_modules/axe-core/axe.min.js").read_text("utf-8")


def faults(page: Page, axe: str) -> list[str]:
    """The serious faults that axe-core finds, in light and dark; the page's window was opened with `bypass_csp`."""
    page.evaluate(axe)
    page.emulate_media(color_scheme="light")
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    page.emulate_media(color_scheme="dark")
    found += page.evaluate("axe.run({runOnly: ['color-contrast']})")["violations"]
    return [
        f"{each['id']}: {node['html']} {node['any'][0]['message'] if node['any'] else ''}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]

"""How a page is made: templates that escape all that they are given, the headers of every page, and how forms are read.

Whatever a page shows may be as long as a message allows: `short` cuts it where it stands among other things.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Response

from infra.console.catalogue import Catalogue, CatalogueReader
from infra.console.curves import Sampler
from infra.gateway.bodies import BadRequest
from infra.gateway.routes import Asked, Busy, read_body, services_of
from infra.operate.dead_letter_page import harmless

POLICY = (
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; img-src 'self'"
)
# A browser that may tell no page where it comes from calls its forms' origin "null", which is a stranger's.
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
MOST_WAITING = 8
LONGEST = 120  # characters of a text beside others
SPANS = (("d", 86_400), ("h", 3600), ("min", 60))
SECTIONS = {"letter": "dead_letters", "roll_back": "releases"}  # where the navigation shows a page of its own


class Turns:
    """A lock with room for MOST_WAITING in its queue: who waits keeps one of the gateway's places. Raises Busy."""

    def __init__(self) -> None:
        self._lock, self._waiting = asyncio.Lock(), 0

    async def __aenter__(self) -> None:
        if self._waiting >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} readers of topics and releases wait already")
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(frozen=True)
class Console:
    """What the pages are made of."""

    catalogue_reader: CatalogueReader
    sampler: Sampler
    templates: Environment
    reading: Turns  # of what costs in proportion to a topic: one at a time

    @property
    def catalogue(self) -> Catalogue:
        return self.catalogue_reader.catalogue

    def page(
        self,
        name: str,
        request: Asked,
        shown: dict[str, Any],
        status: int = 200,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Response[str]:
        may_write = services_of(request).rules.may_write(request.headers)
        about = {"page": SECTIONS.get(name, name), "catalogue": self.catalogue, "may_write": may_write}
        text = self.templates.get_template(f"{name}.html").render(about | shown)
        return Response(text, status_code=status, media_type=MediaType.HTML, headers={**HEADERS, **headers})


def create_templates() -> Environment:
    """Templates that escape all that they are given, and know a time and a number as a person writes them."""
    templates = Environment(
        loader=PackageLoader("infra.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {"when": when, "number": number, "span": span, "short": short, "query": urlencode}
    templates.filters |= {"harmless": harmless}
    return templates


def when(at_ms: float) -> str:
    """A time, in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_ms / 1000))
    except (OverflowError, ValueError, OSError):
        return str(at_ms)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def span(seconds: float) -> str:
    """A span of time in the largest unit of which it has two or more."""
    unit, size = next(((unit, size) for unit, size in SPANS if seconds >= 2 * size), ("s", 1))
    return f"{max(0.0, seconds) // size:.0f} {unit}"


def short(text: str, most: int = LONGEST) -> str:
    """A text, cut where it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


async def read_form(request: Asked) -> dict[str, str]:
    """Read a form's fields, the first of each name. Raises BadRequest."""
    body = await read_body(request, services_of(request))
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=20)
    except ValueError as error:
        raise BadRequest(f"the form cannot be read: {error}") from None
    return {name: values[0] for name, values in fields.items()}

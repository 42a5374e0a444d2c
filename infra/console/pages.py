"""The pages: User, Item, Now, Releases with the roll-back, Dead letters with each letter's own, and the way in.

What a page shows is asked of the servers and read from the topics, as anybody could. Two people may look at once: no
page keeps anything of its reader. A watch carries its event id in its form, so that a page that is loaded again sends
nothing twice.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from kafka.errors import KafkaError
from litestar import MediaType, Response, get, post
from litestar.params import Parameter

from indexer.errors import IndexFailure
from infra.console.catalogue import CatalogueReader
from infra.console.comparison import gone_from, rows_of
from infra.console.curves import HEIGHT, WIDTH, Sampler
from infra.console.letter_pages import act_on_letter, show_letter, show_letters
from infra.console.log_in import LogInLimit, give_cookie
from infra.console.neighbours import Neighbour, read_neighbours
from infra.console.release_pages import ask_roll_back, roll_back_and_tell, show_releases
from infra.console.rendering import Console, Turns, create_templates, read_form
from infra.gateway.access import ICON, LOGIN, STYLE
from infra.gateway.bodies import BadRequest, read_events
from infra.gateway.event_sender import record_of
from infra.gateway.routes import Asked, Services, Unavailable, ask, ask_history, send_all, services_of
from nextwatch_client import RecommendReply, RecommendRequest, RequestFailed, UserHistory
from streams.messages import Item, WatchEvent, encode

Text = Annotated[str, Parameter()]

K = 20
KNOWN_S = 3.0  # for a watch to be in its user's history
LOOK_S = 0.1
DEFAULT_WATCH_S = 60.0
LETTER, ROLL_BACK = "/console/dead-letter", "/console/roll-back"


@contextmanager
def console_pages(services: Services) -> Iterator[list[Any]]:
    """The handlers of the console, as long as the block runs."""
    console = Console(CatalogueReader(services.settings), Sampler(services.settings), create_templates(), Turns())
    console.sampler.start()
    try:
        yield handlers_of(console)
    finally:
        console.sampler.close()
        console.catalogue_reader.close()


def handlers_of(console: Console) -> list[Any]:
    limit = LogInLimit()

    @get("/console/user")
    async def user_page(request: Asked, user: Text = "", filter: Text = "") -> Response[str]:
        """A user: history, what was shown, the list now."""
        if not user:
            return console.page("user", request, nobody())
        return await show_user(console, request, user, filter)

    @post("/console/watch", status_code=200)
    async def watch(request: Asked) -> Response[str]:
        """Send a watch, and show the list before and after it."""
        return await watch_and_compare(console, request)

    @get("/console/item")
    async def item_page(request: Asked, item: Text = "", search: Text = "") -> Response[str]:
        """An item with its neighbours, or those that a search finds."""
        return await show_item(console, request, item, search)

    @get(["/console", "/console/now"])
    async def now_page(request: Asked) -> Response[str]:
        """The few figures that matter, with their last hour."""
        sampler = console.sampler
        about = {"series": sampler.series, "processes": sampler.processes, "width": WIDTH, "height": HEIGHT}
        return console.page("now", request, about)

    @get("/console/releases")
    async def releases_page(request: Asked) -> Response[str]:
        """Releases, collections and servers."""
        return await show_releases(console, request)

    @get(ROLL_BACK)
    async def roll_back_page(request: Asked, version: Text = "") -> Response[str]:
        """What a roll-back would do, and whether it is wanted."""
        return await ask_roll_back(console, request, version)

    @post(ROLL_BACK, status_code=200)
    async def roll_back(request: Asked) -> Response[str]:
        """Roll back to the release that the page has asked about."""
        return await roll_back_and_tell(console, request)

    @get("/console/dead-letters")
    async def letters_page(request: Asked) -> Response[str]:
        """The open dead letters, newest first."""
        return await show_letters(console, request)

    @get(LETTER)
    async def letter_page(request: Asked, id: Text = "") -> Response[str]:
        """One dead letter, with what it holds."""
        return await show_letter(console, request, id)

    @post(LETTER, status_code=200)
    async def letter(request: Asked) -> Response[str]:
        """Retry or drop one dead letter."""
        return await act_on_letter(console, request)

    @get(LOGIN)
    async def login_page(request: Asked) -> Response[str]:
        return console.page("login", request, {"problem": ""})

    @post(LOGIN, status_code=200)
    async def log_in(request: Asked) -> Response[str]:
        """Give the cookie to who knows the token."""
        return await give_cookie(console, request, limit)

    style, image = (console.templates.get_template(name).render() for name in ("console.css", "icon.svg"))

    @get(STYLE, media_type=MediaType.CSS, sync_to_thread=False)
    def stylesheet() -> str:
        return style

    @get(ICON, media_type="image/svg+xml", sync_to_thread=False)
    def icon() -> str:
        return image

    pages = [user_page, item_page, now_page, releases_page, roll_back_page, letters_page, letter_page, login_page]
    return [*pages, watch, roll_back, letter, log_in, stylesheet, icon]


async def show_item(console: Console, request: Asked, item: str, search: str) -> Response[str]:
    """The page of an item; an index that does not answer is told on it."""
    catalogue, problem, neighbours = console.catalogue, "", list[Neighbour]()
    found = await asyncio.to_thread(catalogue.search, search) if search else []
    if item:
        try:
            neighbours = await asyncio.to_thread(read_neighbours, services_of(request).settings, item)
        except (IndexFailure, KafkaError, LookupError) as error:
            problem = f"neighbours are not known: {error}"
    shown: dict[str, Any] = {"item_id": item, "search": search, "found": found, "problem": problem}
    shown |= {"item": catalogue.item(item), "counts": catalogue.counts(item), "row": catalogue.learnt_row(item)}
    return console.page("item", request, shown | {"neighbours": neighbours, "now_ms": time.time() * 1000})


async def show_user(console: Console, request: Asked, user: str, only: str) -> Response[str]:
    """The page of a user; what the servers refuse or do not answer is told on it."""
    services, shown = services_of(request), nobody() | {"user": user, "filter": only}
    try:
        shown["history"] = await ask_history(services, user)
        reply = await ask_list(services, user, only)
    except (BadRequest, Unavailable, RequestFailed) as error:
        status = 400 if isinstance(error, BadRequest) else 503
        return console.page("user", request, shown | {"problem": str(error)}, status)
    return console.page("user", request, shown | {"reply": reply, "rows": rows_of(reply.items)})


async def watch_and_compare(console: Console, request: Asked) -> Response[str]:
    services, form = services_of(request), await read_form(request)
    user, only = form.get("user", ""), form.get("filter", "")
    shown = nobody() | {"user": user, "filter": only}
    try:
        event = read_watch(form, console.catalogue.item(form.get("item", "")), services)
        before = await ask_list(services, user, only)
        await send_all(services, [record_of(event, services.settings.kafka)])
        shown["history"], shown["waited_s"] = await wait_until_known(services, event)
        after = await ask_list(services, user, only)
    except (BadRequest, Unavailable, RequestFailed) as error:
        status = 400 if isinstance(error, BadRequest) else 503
        return console.page("user", request, shown | {"problem": str(error)}, status)
    rows, gone = rows_of(after.items, before.items), gone_from(after.items, before.items)
    told = {"reply": after, "rows": rows, "before": before, "gone": gone, "watched": event}
    return console.page("user", request, shown | told)


def nobody() -> dict[str, Any]:
    """All that the page of a user names, empty."""
    texts = {"user": "", "filter": "", "problem": "", "new_id": uuid.uuid4().hex}
    return texts | {"rows": [], "gone": []} | dict.fromkeys(("history", "reply", "before", "watched", "waited_s"))


async def ask_list(services: Services, user: str, only: str) -> RecommendReply:
    """A list that is shown to nobody but the reader of the console: it leaves no impression."""
    deadline_ms = max(1, round(1000 * services.deadline_s))
    name = uuid.uuid4().hex
    asked = RecommendRequest(name, user, k=K, filter=only or None, deadline_ms=deadline_ms, record=False)
    return await ask(services, asked)


async def wait_until_known(services: Services, event: WatchEvent) -> tuple[UserHistory | None, float]:
    """Wait until the history has the watch, or for a while; the history, and the seconds."""
    began_s = time.monotonic()
    while True:
        found = await ask_history(services, event.user_id)
        waited_s = time.monotonic() - began_s
        is_known = found is not None and any(each.event_id == event.event_id for each in found.watches)
        if is_known or waited_s > KNOWN_S:
            return found, waited_s
        await asyncio.sleep(LOOK_S)


def read_watch(form: dict[str, str], item: Item | None, services: Services) -> WatchEvent:
    """The watch that a form tells of: to its end, where the catalogue knows its length. Raises BadRequest."""
    duration_s = None if item is None else item.duration_s
    event = WatchEvent(
        form.get("event_id", ""),
        form.get("user", ""),
        form.get("item", ""),
        time.time_ns() // 1_000_000,
        DEFAULT_WATCH_S if duration_s is None else duration_s,
        duration_s,
    )
    events = read_events(WatchEvent, encode(event), max_bytes=services.max_bytes, latest_ms=event.event_ms)
    if events.problems:
        raise BadRequest(events.problems[0].reason)
    return event

"""What the gateway answers: recommendations, events, the catalogue, a user's history, forgetting.

Each handler reads, asks or sends, and answers; none of them holds state. A user's history is asked of the server that
answers the user's requests: it has it in memory, so that it costs the same however many users there are, and it knows
of those that were erased a moment ago.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from litestar import MediaType, Request, Response, delete, get, post, put
from litestar.params import Parameter
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from infra.gateway.access import AccessRules
from infra.gateway.bodies import (
    UNACKNOWLEDGED,
    BadRequest,
    Event,
    Outcome,
    Problem,
    read_events,
    read_id,
    read_item,
    status_of,
)
from infra.gateway.door import RETRY_S, Error
from infra.gateway.event_sender import EventSender, Record, record_of, tombstone_of
from infra.operate.forget_users import ForgetReport, forget_users
from infra.platform.health import Health
from infra.platform.settings import Settings
from nextwatch_client import AsyncRecommendClient, Context, RecommendReply, RecommendRequest, UserHistory
from nextwatch_client.messages import encode as encode_request
from streams import messages
from streams.messages import Refused, SearchEvent, SignalEvent, WatchEvent, decode

log = structlog.get_logger(__name__)

RETRIES = 1  # of a request that is not answered in half its time: the server may just have been replaced
BUG = "internal error"  # how a server begins when the error is its own
PARAMETERS = frozenset({"k", "filter", "exclude", "pinned", "record", "region", "language", "device", "surface"})
Id = Annotated[str, Parameter(description="percent-encoded, slashes too")]
Asked = Request[Any, Any, Any]
Name = Annotated[str | None, Parameter(description="of the context in which the user watches")]


@dataclass
class Services:
    """All that handlers use. `forgetting`: held while users are forgotten, one request at a time."""

    settings: Settings
    rules: AccessRules
    client: AsyncRecommendClient
    sender: EventSender
    health: Health
    forgetting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def deadline_s(self) -> float:
        return self.settings.gateway.deadline_s

    @property
    def max_bytes(self) -> int:
        return self.settings.kafka.max_message_bytes


def services_of(request: Asked) -> Services:
    found: Services = request.app.state.services
    return found


class Unavailable(RuntimeError):
    """The brokers or the servers do not answer; the text says what was waited for."""


class Busy(RuntimeError):
    """Too much of this is going on; the text says of what."""


@get("/recommend/{user:str}")
async def recommend(
    request: Asked,
    user: Id,
    k: Annotated[int | None, Parameter(description="how many items; without it serving.k")] = None,
    filter: Annotated[str | None, Parameter(description="only such items: duration_s < 600")] = None,
    exclude: Annotated[list[str] | None, Parameter(description="items to leave out")] = None,
    pinned: Annotated[list[str] | None, Parameter(description="items on top, where they may be shown")] = None,
    record: Annotated[bool, Parameter(description="false: shown to nobody, leaves no impression")] = True,
    region: Name = None,
    language: Name = None,
    device: Name = None,
    surface: Name = None,
) -> RecommendReply:
    """A list for this user, through the request topic as any client's."""
    services = services_of(request)
    if unknown := sorted(request.query_params.keys() - PARAMETERS):
        raise BadRequest(f"no parameter {unknown[0]}; there are {', '.join(sorted(PARAMETERS))}")
    names = (region, language, device, surface)
    asked = RecommendRequest(
        uuid.uuid4().hex,
        read_id(user),
        k=k,
        context=None if names == (None,) * 4 else Context(*names),
        filter=filter,
        exclude=tuple(exclude or ()),
        pinned=tuple(pinned or ()),
        record=record,
        deadline_ms=max(1, round(1000 * services.deadline_s)),
    )
    return await ask(services, asked, request.headers.get("traceparent", ""))


@post("/watches", status_code=202)
async def watches(request: Asked) -> Response[Outcome]:
    """Watches, one or a list: 202 once the brokers have acknowledged all. A repeated `event_id` changes nothing.

    207: those in `problems` were refused, the others are acknowledged. 503: send the whole body again.
    """
    return await take_events(WatchEvent, request)


@post("/searches", status_code=202)
async def searches(request: Asked) -> Response[Outcome]:
    """Searches, one or a list, as watches."""
    return await take_events(SearchEvent, request)


@post("/signals", status_code=202)
async def signals(request: Asked) -> Response[Outcome]:
    """Likes, dislikes, shares and more, one or a list, as watches.

    What is disliked, or not_interested, item or channel, is in no later reply to its user, until a like or an undo.
    """
    return await take_events(SignalEvent, request)


@put("/items/{item:str}", status_code=202)
async def put_item(request: Asked, item: Id) -> None:
    """An entry of the catalogue, new or changed, acknowledged by the brokers."""
    services = services_of(request)
    body = await read_body(request, services)
    entry = read_item(read_id(item), body, max_bytes=services.max_bytes)
    await send_all(services, [record_of(entry, services.settings.kafka)])


@delete("/items/{item:str}", status_code=202)
async def delete_item(request: Asked, item: Id) -> None:
    """Take an item down everywhere, acknowledged by the brokers."""
    await send_all(services_of(request), [tombstone_of(read_id(item))])


@get("/history/{user:str}")
async def history(request: Asked, user: Id) -> Response[UserHistory | Error]:
    """What the next answer will know of a user: newest watches, searches, signals and shown lists, oldest first.

    404: nothing of this user has come in.
    """
    found = await ask_history(services_of(request), read_id(user))
    if found is None:
        return Response(Error("nothing is known of this user"), status_code=404)
    return Response(found)


@post("/forget/{user:str}", status_code=200)
async def forget(
    request: Asked,
    user: Id,
    held: Annotated[bool, Parameter(description="read all topics for what they still hold; takes minutes")] = False,
) -> ForgetReport:
    """Forget a user: nothing from before is used again once this is answered.

    `waiting_for` names who has not yet confirmed that what he keeps is deleted: he does so before he reads on.
    """
    services, user_id = services_of(request), read_id(user)
    if services.forgetting.locked():
        raise Busy("another user is being forgotten")
    async with services.forgetting:
        return await asyncio.to_thread(
            forget_users, services.settings, [user_id], wait_s=services.deadline_s, held=held
        )


@get(["/health", "/health/live", "/health/ready"])
async def health(request: Asked) -> Response[dict[str, Any]]:
    """Whether it is live and ready; with the token, or without one on loopback, the details."""
    services = services_of(request)
    state = services.health
    outline = state.outline()
    good = outline["live"] if request.url.path.endswith("live") else outline["ready"]
    is_trusted = services.rules.is_trusted(request.headers)
    return Response(state.report() if is_trusted else dict(outline), status_code=200 if good else 503)


@get("/metrics", media_type=MediaType.TEXT)
async def metrics_page() -> Response[bytes]:
    """The metrics of this process, as Prometheus reads them."""
    return Response(generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def ask(services: Services, asked: RecommendRequest, traceparent: str = "") -> RecommendReply:
    """Ask the servers, in this trace. Raises BadRequest with what they refuse, RequestFailed, and Unavailable for their
    own errors."""
    try:  # as they will read it: what is wrong need not travel
        decode(messages.RecommendRequest, encode_request(asked), max_bytes=services.max_bytes)
    except Refused as refused:
        raise BadRequest(str(refused)) from None
    how: Any = {"timeout_s": services.deadline_s, "retries": RETRIES, "traceparent": traceparent}
    reply = await services.client.ask(asked, **how)
    if reply.error is not None and reply.error.startswith(BUG):
        raise Unavailable("a server could not answer this request: its log says why")
    if reply.error is not None:
        raise BadRequest(reply.error)
    return reply


async def ask_history(services: Services, user_id: str) -> UserHistory | None:
    """Return what is known of a user, None if nothing is. Raises as `ask`."""
    deadline_ms = max(1, round(1000 * services.deadline_s))
    asked = RecommendRequest(uuid.uuid4().hex, user_id, k=1, deadline_ms=deadline_ms, record=False, history=True)
    found = (await ask(services, asked)).history
    if found is None:
        raise Unavailable("the server that answers this user is older than the gateway: it tells no histories")
    return found if found.watches or found.searches or found.impressions or found.signals else None


async def take_events(kind: type[Event], request: Asked) -> Response[Outcome]:
    services = services_of(request)
    body, settings = await read_body(request, services), services.settings
    latest_ms = time.time_ns() // 1_000_000 + int(settings.history.future_s * 1000)
    events = read_events(kind, body, max_bytes=services.max_bytes, latest_ms=latest_ms)
    whys = await services.sender.send([record_of(event, settings.kafka) for event in events.good])
    late = [
        Problem(place, UNACKNOWLEDGED, why, event.event_id)
        for place, event, why in zip(events.places, events.good, whys, strict=True)
        if why
    ]
    problems = sorted([*events.problems, *late], key=lambda problem: problem.index)
    outcome = Outcome(len(events.good) - len(late), problems)
    status = status_of(outcome)
    headers = {"Retry-After": RETRY_S} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return Response(outcome, status_code=status, headers=headers)


async def send_all(services: Services, records: Sequence[Record]) -> None:
    """Send, and return when all is acknowledged. Raises Unavailable."""
    for why in await services.sender.send(records):
        if why:
            raise Unavailable(why)


async def read_body(request: Asked, services: Services) -> bytes:
    """Read the body. Raises TimeoutError when it does not come whole in time, litestar's error when it is too large."""
    async with asyncio.timeout(services.deadline_s):
        return await request.body()


HANDLERS = (recommend, watches, searches, signals, put_item, delete_item, history, forget, health, metrics_page)

"""The web application: routes behind the door, and every error as one line of JSON that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from kafka.errors import KafkaError
from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ASGIApp

from infra.gateway.bodies import BadRequest
from infra.gateway.door import RETRY_S, Door, Error, route_of
from infra.gateway.openapi import documentation
from infra.gateway.routes import HANDLERS, Busy, Services, Unavailable
from nextwatch_client import RequestFailed

log = structlog.get_logger(__name__)

AGAIN = frozenset({429, 503})
REASONS = {
    404: "there is no such page (an id is percent-encoded, slashes too); /docs lists them",
    405: "not with this method; /docs lists them",
    413: "the body is too large (gateway.max_body_bytes)",
}


def create_app(services: Services, pages: Sequence[Any] = ()) -> ASGIApp:
    """Return the gateway as an ASGI application; `pages`: more handlers, which OpenAPI does not tell of."""
    gateway = services.settings.gateway
    inside = Litestar(
        [*HANDLERS, *documentation(HANDLERS), *pages],
        state=State({"services": services}),
        request_max_body_size=gateway.max_body_bytes,
        exception_handlers={Exception: explain},
        openapi_config=None,
        logging_config=None,
    )
    return Door(inside, services.rules, gateway.requests, gateway.deadline_s)


def explain(request: Request[Any, Any, Any], error: Exception) -> Response[Error]:
    """Return the status and the reason of an error. What is logged holds no id."""
    status, reason = status_and_reason(error)
    if status == 500:
        log.error("a request showed a bug", route=route_of(request.scope["path"]), exc_info=error)
    headers = {"Retry-After": RETRY_S} if status in AGAIN else None
    return Response(Error(reason), status_code=status, headers=headers)


def status_and_reason(error: Exception) -> tuple[int, str]:
    found: tuple[int, str] = (500, "internal error: the gateway's log says more")
    match error:
        case BadRequest():
            found = 400, str(error)
        case Busy():
            found = 429, str(error)
        case RequestFailed() | Unavailable() | KafkaError():
            found = 503, str(error)
        case TimeoutError():
            found = 408, "the body has not come in time (gateway.deadline_s)"
        case ValidationException():
            found = 400, _what_is_invalid(error)
        case HTTPException(status_code=500):  # litestar's word for a client that has gone: nobody reads this
            found = 400, "the body was cut off"
        case HTTPException():
            found = error.status_code, REASONS.get(error.status_code, error.detail)
    return found


def _what_is_invalid(error: ValidationException) -> str:
    extra = error.extra if isinstance(error.extra, list) else []
    told = [f"{each.get('key', '')}: {each.get('message', '')}" for each in extra if isinstance(each, dict)]
    return "; ".join(told) or "the request is not as /docs says"

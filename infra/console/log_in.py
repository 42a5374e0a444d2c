"""The way in: a cookie for the token, and a limit on how often a wrong one may be shown.

Tokens are noted nowhere: of an attempt the limit knows its time and the address that it came from. The address is the
connection's own, since whoever connects can write any other into a header; behind a proxy all are one.
"""

from __future__ import annotations

import hmac
import math
import time
from collections import deque

from litestar import Response

from infra.console.rendering import Console, read_form
from infra.gateway.access import COOKIE
from infra.gateway.routes import Asked, services_of

OF_ONE_ADDRESS, IN_ALL = 5, 20  # wrong tokens
WINDOW_S = 60.0


class LogInLimit:
    """The wrong tokens of the last minute. Once there are too many, none is looked at, right or wrong, and none is
    noted: so there are never more than `in_all`, and who goes on trying does not make the others wait for longer."""

    def __init__(self, of_one_address: int = OF_ONE_ADDRESS, in_all: int = IN_ALL, window_s: float = WINDOW_S) -> None:
        self._of_one_address, self._in_all, self._window_s = of_one_address, in_all, window_s
        self._wrong: deque[tuple[float, str]] = deque()

    def wait_s(self, address: str, now_s: float) -> float:
        """Return how long this address has to wait until a token is looked at; 0 when it has not to."""
        while self._wrong and self._wrong[0][0] + self._window_s <= now_s:
            self._wrong.popleft()
        every = [at_s for at_s, _ in self._wrong]
        own = [at_s for at_s, who in self._wrong if who == address]
        ends_s = [
            times[-most] + self._window_s
            for times, most in ((every, self._in_all), (own, self._of_one_address))
            if len(times) >= most
        ]
        return max(ends_s, default=now_s) - now_s

    def note_wrong(self, address: str, now_s: float) -> None:
        self._wrong.append((now_s, address))


async def give_cookie(console: Console, request: Asked, limit: LogInLimit) -> Response[str]:
    """Give the cookie to who knows the token. Between the look at the limit and the note nothing is awaited: of many
    attempts at once no more are looked at than one after the other."""
    services = services_of(request)
    shown = (await read_form(request)).get("token", "")
    address, now_s = "" if request.client is None else request.client.host, time.monotonic()
    if wait_s := math.ceil(limit.wait_s(address, now_s)):
        problem = f"too many wrong tokens: none is looked at for {wait_s} s"
        return console.page("login", request, {"problem": problem}, 429, {"Retry-After": str(wait_s)})
    if not hmac.compare_digest(shown.encode(), services.rules.token.encode()):
        limit.note_wrong(address, now_s)
        return console.page("login", request, {"problem": "this is not gateway.token"}, 401)
    gateway = services.settings.gateway
    secure = "; Secure" if gateway.tls_cert_file is not None else ""
    cookie = f"{COOKIE}={services.rules.cookie()}; Path=/console; HttpOnly; SameSite=Strict{secure}"
    return Response("", status_code=303, headers={"Location": "/console/now", "Set-Cookie": cookie})

"""Who may come in: decided from a request's head alone, before any of its body is read.

Without a token the gateway listens on loopback only, and there a browser is the stranger: any page of the web can have
it send requests to 127.0.0.1. So a name that is not this machine's (DNS rebinding) and a page of another origin are
refused. With a token nothing else is needed: a browser adds no `Authorization` by itself.

The console (infra/console) is for browsers. There, reading is free on loopback, and all else takes a cookie that is
given for the token, is sent by no other site, and is no token itself; what is written must come from our own page.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from infra.platform.run_files import LOOPBACK_HOSTS
from infra.platform.settings import Gateway, SettingsError, variable_of

TOKEN_NAMES = frozenset({"token", "access_token", "api_key", "bearer", "authorization"})
FOREIGN = frozenset({"cross-site", "same-site"})  # values of Sec-Fetch-Site
CONSOLE, LOGIN = "/console", "/console/login"
STYLE, ICON = "/console/console.css", "/console/icon.svg"
COOKIE = "nextwatch_console"
FORWARDED = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"})  # a proxy's: from elsewhere
READING = frozenset({"GET", "HEAD"})
HEALTH = ("/health", "/health/live", "/health/ready")  # load balancers have no token to show
DESCRIPTION = ("/", "/docs", "/openapi.json", "/page.css")  # a browser has none either, and nothing is told of anybody
OPEN_PATHS = frozenset({*HEALTH, *DESCRIPTION})


class Refusal(NamedTuple):
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


class Head(NamedTuple):
    """A request before its body. `path` as it was sent, percent-encoded; `headers` by lower-case name."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class AccessRules:
    """`is_local`: the gateway listens on loopback."""

    token: str = field(default="", repr=False)
    is_local: bool = True

    def refuse(self, head: Head) -> Refusal | None:
        """Return why this request is not let in; None when it is."""
        if self._has_token_in_url(head):
            return Refusal(400, "a token in a URL ends up in logs: send it as the header Authorization: Bearer")
        if head.path in OPEN_PATHS:
            return None
        if head.path == CONSOLE or head.path.startswith(f"{CONSOLE}/"):
            return self._refuse_in_console(head)
        if self.token:
            shown = self.is_trusted(head.headers)
            return None if shown else Refusal(401, _SHOW_TOKEN, (("WWW-Authenticate", "Bearer"),))
        return _refuse_strange_browser(head.headers)

    def is_trusted(self, headers: Mapping[str, str]) -> bool:
        """Return whether the token is shown, or none needed; its time does not tell how much of a guess is right."""
        kind, _, shown = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(shown.strip().encode(), self.token.encode())
        return not self.token or (kind.lower() == "bearer" and is_right)

    def cookie(self) -> str:
        """Return what a browser shows for the token; without the token nobody can make it."""
        return hmac.new(self.token.encode(), COOKIE.encode(), hashlib.sha256).hexdigest()

    def may_write(self, headers: Mapping[str, str]) -> bool:
        """Return whether the token, or the console's cookie for it, is shown; or none is needed."""
        shown = _cookies(headers.get("cookie", "")).get(COOKIE, "")
        return self.is_trusted(headers) or hmac.compare_digest(shown.encode(), self.cookie().encode())

    def _refuse_in_console(self, head: Head) -> Refusal | None:
        foreign = _refuse_foreign_page(head.headers)
        if head.method not in READING and foreign is not None:
            return foreign
        if not self.token:
            return _refuse_strange_browser(head.headers)
        if head.path in (LOGIN, STYLE, ICON) or self.may_write(head.headers):
            return None
        is_at_home = self.is_local and not FORWARDED & head.headers.keys()
        if head.method in READING and is_at_home and _refuse_strange_browser(head.headers) is None:
            return None
        return Refusal(303, "log in with gateway.token", (("Location", LOGIN),))

    def _has_token_in_url(self, head: Head) -> bool:
        named = {name.lower() for name, _ in parse_qsl(head.query, keep_blank_values=True)}
        return bool(named & TOKEN_NAMES) or bool(self.token and self.token in unquote_plus(f"{head.path}?{head.query}"))


_SHOW_TOKEN = "show gateway.token as the header Authorization: Bearer ..."


def require_token_beyond_loopback(gateway: Gateway) -> None:
    """Raise SettingsError for a gateway that would be open to the network."""
    if gateway.host not in LOOPBACK_HOSTS and not gateway.token.get_secret_value():
        name = "gateway.token"
        raise SettingsError(
            f"gateway.host is {gateway.host}, which others reach, and {name} is not set: put one into the variable "
            f"{variable_of(name)}, or let gateway.host be 127.0.0.1"
        )


def _refuse_strange_browser(headers: Mapping[str, str]) -> Refusal | None:
    if _name_of(f"//{headers.get('host', '')}") not in LOOPBACK_HOSTS:
        return Refusal(403, "without gateway.token the gateway is asked as 127.0.0.1 or localhost only")
    return _refuse_foreign_page(headers)


def _refuse_foreign_page(headers: Mapping[str, str]) -> Refusal | None:
    origin = headers.get("origin")
    is_foreign = origin is not None and _place_of(origin) != headers.get("host", "")
    if is_foreign or headers.get("sec-fetch-site") in FOREIGN:
        return Refusal(403, "a page of another origin may not use the gateway")
    return None


def _cookies(header: str) -> dict[str, str]:
    pairs = (each.strip().partition("=") for each in header.split(";"))
    return {name: value for name, _, value in pairs}


def _place_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that do not close
        return ""

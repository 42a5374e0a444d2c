"""Who may come in: decided from a request's head alone, before any of its body is read.

Without a token the gateway listens on loopback only, and there a browser is the stranger: any page of the web can have
it send requests to 127.0.0.1. So a name that is not this machine's (DNS rebinding) and a page of another origin are
refused. With a token nothing else is needed: a browser adds no `Authorization` by itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from infra.platform.run_files import LOOPBACK_HOSTS
from infra.platform.settings import Gateway, SettingsError, variable_of

TOKEN_NAMES = frozenset({"token", "access_token", "api_key", "bearer", "authorization"})
FOREIGN = frozenset({"cross-site", "same-site"})  # values of Sec-Fetch-Site
OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})  # load balancers have no token to show


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
    token: str = field(default="", repr=False)

    def refuse(self, head: Head) -> Refusal | None:
        """Return why this request is not let in; None when it is."""
        if self._has_token_in_url(head):
            return Refusal(400, "a token in a URL ends up in logs: send it as the header Authorization: Bearer")
        if head.path in OPEN_PATHS:
            return None
        if self.token:
            shown = self.is_trusted(head.headers)
            return None if shown else Refusal(401, _SHOW_TOKEN, (("WWW-Authenticate", "Bearer"),))
        return _refuse_strange_browser(head.headers)

    def is_trusted(self, headers: Mapping[str, str]) -> bool:
        """Return whether the token is shown, or none needed; its time does not tell how much of a guess is right."""
        kind, _, shown = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(shown.strip().encode(), self.token.encode())
        return not self.token or (kind.lower() == "bearer" and is_right)

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
    host, origin = headers.get("host", ""), headers.get("origin")
    if _name_of(f"//{host}") not in LOOPBACK_HOSTS:
        return Refusal(403, "without gateway.token the gateway is asked as 127.0.0.1 or localhost only")
    is_foreign = origin is not None and urlsplit(origin).netloc != host
    if is_foreign or headers.get("sec-fetch-site") in FOREIGN:
        return Refusal(403, "a page of another origin may not use the gateway")
    return None


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that do not close
        return ""

"""The schema registry, as far as a reader needs it: the schema of an id, and those that it refers to.

Two requests of Confluent's interface, which Karapace, Apicurio and Redpanda have too, by Python's own HTTP client: the
client library of Confluent brings a dozen packages for them. An id never changes its schema, so each is asked for once.
A registry that is away, or does not know an id yet, is waited for: the record may be as good as any. One that has just
failed is left alone for a moment: whoever asks holds up all that could be read.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from typing import NamedTuple

import msgspec

from infra.platform.settings import Ingest, SettingsError

TIMEOUT_S = 5.0
QUIET_S = 2.0  # after a failure
MOST_BYTES, PIECE_BYTES = 10_000_000, 1 << 16
DEEPEST = 32  # schemas that refer to each other
ILL = 500  # from where on a status speaks of the registry, not of what was asked
WHOLLY = ""  # as a question: whatever is asked
HEADERS = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}


class Waiting(Exception):
    """A record cannot be read yet; the text says what it waits for."""


class Schema(NamedTuple):
    """A schema as the registry has it, and those that it refers to, by the names under which it does."""

    text: str
    references: tuple[tuple[str, Schema], ...] = ()


class _Reference(msgspec.Struct):
    name: str
    subject: str
    version: int


class _Told(msgspec.Struct):
    """What the registry says of a schema, as far as it matters."""

    schema: str
    references: list[_Reference] | None = None


_DECODER = msgspec.json.Decoder(_Told, strict=False)  # some say a version as text


class Registry:
    """Raises SettingsError for a certificate file that cannot be used."""

    def __init__(self, ingest: Ingest) -> None:
        self._url = ingest.registry_url.rstrip("/")
        login = f"{ingest.registry_username}:{ingest.registry_password.get_secret_value()}".encode()
        self._login = "Basic " + base64.b64encode(login).decode() if ingest.registry_username else ""
        self._failed: dict[str, tuple[float, str]] = {}  # by question: until when it is not asked again, and why
        try:
            tls = ssl.create_default_context(cafile=ingest.registry_ca_file)
        except OSError as error:
            raise SettingsError(f"ingest.registry_ca_file {ingest.registry_ca_file} cannot be used: {error}") from None
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls))
        self.schema = cache(self._schema)

    def _schema(self, number: int, form: str = "") -> Schema:
        """The schema of an id; `form`: as the registry is to write it. Raises Waiting."""
        return self._whole(self._get(f"/schemas/ids/{number}{_asking(form)}", f"schema id {number}"), form)

    def _whole(self, found: _Told, form: str, depth: int = 1) -> Schema:
        if depth > DEEPEST:
            raise Waiting(f"a schema whose references are more than {DEEPEST} deep to be mended")
        references = []
        for each in found.references or ():
            subject = urllib.parse.quote(each.subject, safe="")
            path = f"/subjects/{subject}/versions/{each.version}{_asking(form)}"
            inner = self._get(path, f"schema {each.subject}, version {each.version}")
            references.append((each.name, self._whole(inner, form, depth + 1)))
        return Schema(found.schema, tuple(references))

    def _get(self, path: str, what: str) -> _Told:
        """Ask, unless the registry, or this question, has failed a moment ago. Raises Waiting."""
        for failed in (WHOLLY, path):
            until_s, why = self._failed.get(failed, (0.0, ""))
            if time.monotonic() < until_s:
                raise Waiting(why)
        try:
            return _DECODER.decode(self._answer(path))
        except urllib.error.HTTPError as error:
            why = _why(error.code, what)
            if error.code >= ILL:
                self._failed[path] = time.monotonic() + QUIET_S, why
        except (OSError, http.client.HTTPException) as error:
            why = f"the schema registry: {getattr(error, 'reason', None) or error}"
            self._failed[WHOLLY] = time.monotonic() + QUIET_S, why
        except (ValueError, RecursionError):  # msgspec's errors are of the first kind
            why = f"the schema registry: what it says of {what} holds no schema"
        raise Waiting(why)

    def _answer(self, path: str) -> bytes:
        """The whole reply, if it comes in time. Raises OSError, HTTPException and ValueError."""
        request = urllib.request.Request(self._url + path, headers=HEADERS)
        if self._login:
            request.add_unredirected_header("Authorization", self._login)  # for the registry, not for where it points
        end_s = time.monotonic() + TIMEOUT_S
        told = bytearray()
        with self._opener.open(request, timeout=TIMEOUT_S) as reply:
            while (piece := reply.read1(PIECE_BYTES)) and len(told) <= MOST_BYTES:
                told += piece
                if time.monotonic() > end_s:
                    raise TimeoutError("it takes too long to answer")
        return bytes(told)


def registry_of(ingest: Ingest) -> Registry | None:
    """None where none is set."""
    return Registry(ingest) if ingest.registry_url else None


def _asking(form: str) -> str:
    return f"?format={form}" if form else ""


def _why(status: int, what: str) -> str:
    match status:
        case 401 | 403:
            return "the schema registry to let us in (ingest.registry_username, ingest.registry_password)"
        case 404:
            return f"{what}, which the schema registry does not know (yet)"
    return f"the schema registry, which answers {status} for {what}"

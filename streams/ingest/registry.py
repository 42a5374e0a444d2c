"""The schema registry, as far as a reader needs it: the schema of an id, and those that it refers to.

Two requests of Confluent's interface, which Karapace, Apicurio and Redpanda have too, by Python's own HTTP client: the
client library of Confluent brings a dozen packages for them. An id never changes its schema, so each is asked for once.
A registry that is away, or does not know an id yet, is waited for: the record may be as good as any.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from typing import Any, NamedTuple

from infra.platform.settings import Ingest, SettingsError

TIMEOUT_S = 5.0
MOST_BYTES = 10_000_000
DEEPEST = 32  # schemas that refer to each other


class Waiting(Exception):
    """A record cannot be read yet; the text says what it waits for."""


class Schema(NamedTuple):
    """A schema as the registry has it, and those that it refers to, by the names under which it does."""

    text: str
    references: tuple[tuple[str, Schema], ...] = ()


class Registry:
    """Raises SettingsError for a certificate file that cannot be used."""

    def __init__(self, ingest: Ingest) -> None:
        self._url = ingest.registry_url.rstrip("/")
        login = f"{ingest.registry_username}:{ingest.registry_password.get_secret_value()}".encode()
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if ingest.registry_username:
            self._headers["Authorization"] = "Basic " + base64.b64encode(login).decode()
        try:
            tls = ssl.create_default_context(cafile=ingest.registry_ca_file)
        except OSError as error:
            raise SettingsError(f"ingest.registry_ca_file {ingest.registry_ca_file} cannot be used: {error}") from None
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls))
        self.schema = cache(self._schema)

    def _schema(self, number: int, form: str = "") -> Schema:
        """The schema of an id; `form`: as the registry is to write it. Raises Waiting."""
        return self._whole(self._get(f"/schemas/ids/{number}{_asking(form)}", f"schema id {number}"), form)

    def _whole(self, found: dict[str, Any], form: str, depth: int = 1) -> Schema:
        if depth > DEEPEST:
            raise Waiting(f"a schema whose references are more than {DEEPEST} deep to be mended")
        references = []
        for each in found.get("references") or ():
            subject = urllib.parse.quote(str(each["subject"]), safe="")
            path = f"/subjects/{subject}/versions/{int(each['version'])}{_asking(form)}"
            inner = self._get(path, f"schema {each['subject']}, version {each['version']}")
            references.append((str(each["name"]), self._whole(inner, form, depth + 1)))
        return Schema(str(found["schema"]), tuple(references))

    def _get(self, path: str, what: str) -> dict[str, Any]:
        request = urllib.request.Request(self._url + path, headers=self._headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as reply:
                found: dict[str, Any] = json.loads(reply.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            raise Waiting(_why(error.code, what)) from None
        except (OSError, http.client.HTTPException) as error:
            raise Waiting(f"the schema registry: {getattr(error, 'reason', None) or error}") from None
        except ValueError:
            raise Waiting(f"the schema registry: what it says of {what} is no JSON") from None
        if not isinstance(found, dict) or "schema" not in found:
            raise Waiting(f"the schema registry: what it says of {what} holds no schema")
        return found


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

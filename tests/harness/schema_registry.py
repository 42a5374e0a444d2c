"""A stand-in for a schema registry: what who uses Confluent's interface asks of one, over HTTP, and no more.

It keeps schemas and gives them out by id and by subject and version. It checks no compatibility and compiles nothing:
who registers a Protobuf schema gives it as a compiled file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LOGIN_NEEDED = 401


class SchemaRegistry(ThreadingHTTPServer):
    """`url` is where it listens. `login`: the header that it wants, if any; `status`: what it answers in place of what
    was asked, if anything."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Answer)
        self.schemas: list[tuple[str, dict[str, Any]]] = []  # subject, and what is told of it; the id is the place
        self.login: str | None = None
        self.status: int | None = None
        self.moved_to: str | None = None  # the address of another one, to which it points
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def register(self, subject: str, schema: str, references: Sequence[dict[str, Any]] = ()) -> int:
        """The id of a new version of a subject."""
        version = 1 + sum(each == subject for each, _ in self.schemas)
        self.schemas.append((subject, {"schema": schema, "references": list(references), "version": version}))
        return len(self.schemas)

    def find(self, path: str) -> dict[str, Any] | None:
        match [unquote(part) for part in urlsplit(path).path.split("/")[1:]]:
            case ["schemas", "ids", number] if 0 < int(number) <= len(self.schemas):
                return self.schemas[int(number) - 1][1]
            case ["subjects", subject, "versions", version]:
                found = (about for each, about in self.schemas if (each, str(about["version"])) == (subject, version))
                return next(found, None)
        return None


class _Answer(BaseHTTPRequestHandler):
    server: SchemaRegistry

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        found = self.server.find(self.path)
        if self.server.moved_to is not None:
            self._tell(307, {}, self.server.moved_to + self.path)
        elif self.server.status is not None:
            self._tell(self.server.status, {"message": "as it was told"})
        elif self.server.login not in (None, self.headers.get("Authorization")):
            self._tell(LOGIN_NEEDED, {"message": "who are you?"})
        elif found is None:
            self._tell(404, {"error_code": 40403, "message": "Schema not found"})
        else:
            self._tell(200, found)

    def do_POST(self) -> None:
        """`/subjects/{subject}/versions`, as serializers register what they write with."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = unquote(self.path.split("/")[2])
        self._tell(200, {"id": self.server.register(subject, asked["schema"], asked.get("references", ()))})

    def _tell(self, status: int, body: dict[str, Any], location: str | None = None) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the tests' output is theirs."""


@contextmanager
def running_registry(port: int = 0) -> Iterator[SchemaRegistry]:
    server = SchemaRegistry(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def framed(number: int, data: bytes) -> bytes:
    """Data in Confluent's wire format."""
    return b"\0" + number.to_bytes(4, "big") + data

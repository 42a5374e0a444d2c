"""moto's S3 server, and a proxy before it that spoils answers: what bundles in object storage are tested with.

moto is a stand-in for S3 that checks no signature. The proxy speaks HTTP, so that a fault can be of one object.
"""

from __future__ import annotations

import http.client
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple

from infra.platform.settings import Bundles

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}
BUCKET = "releases"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
NO_KEY = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"


class Answer(NamedTuple):
    """What a client is sent: of the body `sent` bytes, then the connection ends."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent: int


Fault = Callable[[Answer], Answer | None]  # None: the connection ends without an answer


def cut(answer: Answer) -> Answer:
    """Half of the body."""
    return answer._replace(sent=len(answer.body) // 2)


def wrong(answer: Answer) -> Answer:
    """One bit of the body is another one."""
    return answer._replace(body=bytes([answer.body[0] ^ 1]) + answer.body[1:]) if answer.body else answer


def denied(answer: Answer) -> Answer:
    return Answer(403, {}, DENIED, len(DENIED))


def missing(answer: Answer) -> Answer:
    return Answer(404, {}, NO_KEY, len(NO_KEY))


def away(answer: Answer) -> None:
    return None


def slow(seconds: float) -> Fault:
    def later(answer: Answer) -> Answer:
        time.sleep(seconds)
        return answer

    return later


class Asked(NamedTuple):
    method: str
    name: str  # of the object, without bucket and prefix
    range: str


@dataclass
class Proxy:
    """Passes requests on to `port`, but for the faults: by the end of an object's name ("" is any) and method, how
    often each is still to happen."""

    port: int
    prefix: str
    asked: list[Asked] = field(default_factory=list)
    faults: list[tuple[str, str, Fault, list[int]]] = field(default_factory=list)
    endpoint: str = ""

    def spoil(self, fault: Fault, name: str = "", method: str = "GET", times: int = 10_000) -> None:
        self.faults.append((name, method, fault, [times]))

    def heal(self) -> None:
        self.faults.clear()

    def names(self, method: str) -> list[str]:
        """The objects that were asked for with this method, in order."""
        return [each.name for each in self.asked if each.method == method]

    def settings(self, **more: object) -> Bundles:
        return Bundles(store=f"s3://{BUCKET}/{self.prefix}", endpoint=self.endpoint, region="us-east-1", **more)

    def fault_of(self, method: str, name: str) -> Fault | None:
        for ending, of, fault, left in self.faults:
            if of == method and name.endswith(ending) and left[0] > 0:
                left[0] -= 1
                return fault
        return None


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of moto's S3 server with our bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        yield port
    finally:
        server.stop()


@contextmanager
def proxy_before(port: int) -> Iterator[Proxy]:
    """A proxy, with a place in the bucket of its own."""
    proxy = Proxy(port, uuid.uuid4().hex[:8])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(proxy))
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


def _handler_of(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            name = self.path.partition("?")[0].partition(f"/{proxy.prefix}/")[2]
            proxy.asked.append(Asked(self.command, name, self.headers.get("Range", "")))
            fault = proxy.fault_of(self.command, name)
            answer: Answer | None = self.ask(content)
            if fault is not None:
                answer = fault(answer)
            if answer is None:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: answer.sent])
            self.close_connection = self.command != "HEAD" and answer.sent < len(answer.body)

        def ask(self, content: bytes) -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port)
            try:
                connection.request(self.command, self.path, content, dict(self.headers))
                reply = connection.getresponse()
                body = reply.read()
                kept = {k.title(): v for k, v in reply.headers.items() if k.lower() not in {"connection", "date"}}
                kept.pop("Transfer-Encoding", None)
                return Answer(reply.status, kept, body, len(body))
            finally:
                connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler

"""What spans of requests cost a server: CPU of the whole process by request, the sending included, without and with
them by turns. The receiver, of OTLP over HTTP, is a process of its own; it takes everything and keeps nothing.

Three ways: off, the share that is the default, and every request. The same records go each way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from infra.platform.logs import set_up_logging
from infra.platform.settings import Tracing
from infra.platform.tracing import Tracer, tracer_of
from infra.simulation.world import NOTICE
from models.threads import limit_threads
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.benchmarks.report import Report, quantile, say
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_ground import note_of, small_release
from tests.benchmarks.serving.serving_pipeline import WARM_UP, Server

ITEMS = 10_000
TURNS, QUICK_TURNS = {1: 150, 16: 60}, {1: 60, 16: 20}  # by requests together
TOGETHER = {1: 32, 16: 8}  # batches of a turn
SHARES = {"off": None, "share .01": 0.01, "all": 1.0}
MOST = 1.02  # CPU with the default share, over without


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def receive(told: Connection) -> None:
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        told.send(server.server_address[1])
        server.serve_forever()


@contextmanager
def receiving() -> Iterator[str]:
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=receive, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def measure(report: Report, quick: bool) -> None:
    """CPU of a request without spans, with the default share, and with all."""
    limit_threads(1)
    set_up_logging("info")  # as a server's: what is left out of the log costs little
    small = small_release(quick)
    report.title = "serving tracing: spans of requests, CPU of the process by turns"
    report.note(f"{NOTICE}; {note_of(small)}; {ITEMS:,} items, without Kafka, outbox counts")
    directory, rng = scratch(), np.random.default_rng(2)
    enlarged(small, directory, ITEMS)
    server = Server(directory)
    with receiving() as endpoint:
        tracers = {
            name: None if share is None else tracer_of(Tracing(endpoint=endpoint, share=share), "serving", "one")
            for name, share in SHARES.items()
        }
        for _ in range(WARM_UP):
            server.serve(server.records(16, rng))
        for size, turns in (QUICK_TURNS if quick else TURNS).items():
            say(f"batches of {size}")
            add_rows(report, server, tracers, size, turns)


def add_rows(report: Report, server: Server, tracers: dict[str, Tracer | None], size: int, turns: int) -> None:
    spent_ms: dict[str, list[float]] = {name: [] for name in tracers}
    names = list(tracers)
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent_ms[name].append(cpu_ms(server, tracers[name], size, turn))
    for name, each in spent_ms.items():
        ratio = quantile([one / off for one, off in zip(each, spent_ms["off"], strict=True)], 0.5)
        report.add(batch=size, spans=name, **{"CPU ms/request": quantile(each, 0.5), "over off, median": ratio})
        if name != "off" and SHARES[name] != 1.0:
            report.bar(f"batches of {size}: CPU with {name} over off", ratio, at_most=MOST)


def cpu_ms(server: Server, tracer: Tracer | None, size: int, turn: int) -> float:
    """Of a request, spans sent; the same requests for each way of a turn."""
    rng = np.random.default_rng(turn)
    batches = [server.records(size, rng) for _ in range(TOGETHER[size])]
    server.dispatcher._tracer = tracer
    began_s = time.process_time()
    for batch in batches:
        server.serve(batch)
    if tracer is not None:
        tracer._provider.force_flush()
    return 1000 * (time.process_time() - began_s) / (size * len(batches))

"""Spans of requests and watches, for whoever collects traces by OpenTelemetry; the one file that knows its SDK.

Off by default, and then nothing of it is imported. A message is traced when the `traceparent` that it came with says
so; of requests without one a share is drawn. The spans are made when all is done, of times that are measured anyway. A
thread of the SDK's sends them to a receiver of OTLP over HTTP; where that is away or slow they are dropped, and nobody
waits. Headers and certificates for it are OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS, ...). A span
holds no id of a user, a request or an item.
"""

from __future__ import annotations

import atexit
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from infra.platform.settings import SettingsError, Tracing

HEADER = "traceparent"
TRACE_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?"
)
FLAGS, SAMPLED = slice(53, 55), 1  # in the header
PATH = "/v1/traces"  # of OTLP over HTTP
EXTRA = "pip install 'nextwatch[tracing]'"
SEND_S = 5.0  # for the receiver to take what is sent together
CLOSE_S = 2.0  # a stop waits so long for the last of it
S_NS = 1_000_000_000

Attributes = Mapping[str, str | int | float | Sequence[str]]


class Stage(NamedTuple):
    """A part of what is traced, by `time.perf_counter`."""

    name: str
    start_s: float
    end_s: float


def traceparent_in(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Return the W3C header among those of a record; empty where there is none, or none that is one."""
    found = next((value for name, value in headers if name == HEADER and value is not None), b"")
    return found.decode() if TRACE_PARENT.fullmatch(found) else ""


class Tracer:
    """Tells of what is over. `tell` may be called in one thread only."""

    def __init__(self, exporter: Any, share: float, service: str, instance: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        from opentelemetry.trace import Link, SpanKind, get_current_span, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = Resource.create({"service.name": f"nextwatch-{service}", "service.instance.id": instance})
        self._share = share
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=about, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nextwatch")
        self._kind, self._within, self._context = SpanKind.SERVER, set_span_in_context, TraceContextTextMapPropagator()
        self._link, self._span_of = Link, get_current_span
        self._is_closed = False

    def wants(self, traceparent: str) -> bool:
        """Return whether a message is to be told of: as its W3C header says; without one, as is drawn. The SDK's own
        sampler costs a span each time."""
        return bool(int(traceparent[FLAGS], 16) & SAMPLED) if traceparent else random.random() < self._share

    def tell(
        self,
        name: str,
        traceparent: str,
        stages: Sequence[Stage],
        attributes: Attributes,
        links: Iterable[str] = (),
    ) -> None:
        """One span from the first stage's start to the last one's end, and one within it for each stage. `traceparent`:
        the W3C header of what it is a part of, empty for none; `links`: those of what it stands on as well."""
        began_ns = time.time_ns() - int(time.perf_counter() * S_NS)
        start_s, end_s = min(each.start_s for each in stages), max(each.end_s for each in stages)
        parent = self._context.extract({HEADER: traceparent}) if traceparent else None
        others = [self._link(self._span_of(self._context.extract({HEADER: each})).get_span_context()) for each in links]
        began = began_ns + int(start_s * S_NS)
        span = self._tracer.start_span(name, parent, self._kind, links=others, start_time=began)
        span.set_attributes(dict(attributes))
        within = self._within(span, parent)
        for each in stages:
            part = self._tracer.start_span(each.name, within, start_time=began_ns + int(each.start_s * S_NS))
            part.end(began_ns + int(each.end_s * S_NS))
        span.end(began_ns + int(end_s * S_NS))

    def close(self) -> None:
        """Send what is left, for a moment. At the end of the process at the latest."""
        if self._is_closed:
            return
        self._is_closed = True
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def tracer_of(tracing: Tracing, service: str, instance: str = "") -> Tracer | None:
    """Return what tells of this process; None where nothing is to be. Raises SettingsError without the packages."""
    if not tracing.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise SettingsError(f"tracing.endpoint needs OpenTelemetry: {EXTRA} ({error})") from None
    exporter = OTLPSpanExporter(tracing.endpoint.rstrip("/") + PATH, timeout=SEND_S)
    tracer = Tracer(exporter, tracing.share, service, instance or f"{socket.gethostname()}-{os.getpid()}")
    atexit.register(tracer.close)
    return tracer

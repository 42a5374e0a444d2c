"""Spans of requests, for whoever collects traces by OpenTelemetry; the one file that knows its SDK.

Off by default, and then nothing of it is imported. A request is traced when the `traceparent` that it came with says
so; of those without one a share is drawn. Its spans are made when it is answered, of times that are measured anyway. A
thread of the SDK's sends them to a receiver of OTLP over HTTP; where that is away or slow they are dropped, and nobody
waits. Headers and certificates for it are OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS, ...). A span
holds no id of a user, a request or an item.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from infra.platform.settings import SettingsError, Tracing

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


class Tracer:
    """Tells of what is over. `tell` may be called in one thread only."""

    def __init__(self, exporter: Any, share: float, service: str, instance: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = Resource.create({"service.name": f"nextwatch-{service}", "service.instance.id": instance})
        sampler = ParentBased(TraceIdRatioBased(share))
        self._provider = TracerProvider(sampler=sampler, resource=about, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nextwatch")
        self._kind, self._within, self._context = SpanKind.SERVER, set_span_in_context, TraceContextTextMapPropagator()

    def tell(self, name: str, traceparent: str, stages: Sequence[Stage], attributes: Attributes) -> None:
        """One span from the first stage's start to the last one's end, and one within it for each stage. `traceparent`:
        the W3C header of what it is a part of, empty for none."""
        began_ns = time.time_ns() - int(time.perf_counter() * S_NS)
        start_s, end_s = min(each.start_s for each in stages), max(each.end_s for each in stages)
        parent = self._context.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(name, parent, self._kind, start_time=began_ns + int(start_s * S_NS))
        if not span.is_recording():
            return
        span.set_attributes(dict(attributes))
        within = self._within(span, parent)
        for each in stages:
            part = self._tracer.start_span(each.name, within, start_time=began_ns + int(each.start_s * S_NS))
            part.end(began_ns + int(each.end_s * S_NS))
        span.end(began_ns + int(end_s * S_NS))

    def close(self) -> None:
        """Send what is left, for a moment."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def tracer_of(tracing: Tracing, service: str, instance: str) -> Tracer | None:
    """Return what tells of this process; None where nothing is to be. Raises SettingsError without the packages."""
    if not tracing.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise SettingsError(f"tracing.endpoint needs OpenTelemetry: {EXTRA} ({error})") from None
    exporter = OTLPSpanExporter(tracing.endpoint.rstrip("/") + PATH, timeout=SEND_S)
    return Tracer(exporter, tracing.share, service, instance)

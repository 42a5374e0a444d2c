"""What is told of a request, to OpenTelemetry's in-memory exporter and over HTTP."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infra.platform import tracing
from infra.platform.settings import Settings, SettingsError, Tracing
from infra.platform.tracing import Stage, Tracer, traceparent_in, tracer_of
from tests.harness.needs import OPENTELEMETRY, needs

pytestmark = needs(OPENTELEMETRY)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


def told(traceparent: str, share: float, times: int = 1) -> list[Any]:
    """The spans that a request of two stages leaves, the outer one last."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracer, now_s = Tracer(exporter, share, "serving", "server-1"), time.perf_counter()
    stages = [Stage("embed", now_s - 0.5, now_s - 0.4), Stage("rank", now_s - 0.3, now_s)]
    for _ in range(times):
        if tracer.wants(traceparent):
            tracer.tell("recommend", traceparent, stages, {"nextwatch.items": 20, "nextwatch.degraded": ["unranked"]})
    tracer.close()
    return list(exporter.get_finished_spans())


def test_a_request_is_a_span_of_its_callers_trace_with_one_for_each_stage() -> None:
    embed, rank, whole = told(SAMPLED, 0.0)
    assert [each.name for each in (embed, rank, whole)] == ["embed", "rank", "recommend"]
    assert {f"{each.context.trace_id:032x}" for each in (embed, rank, whole)} == {TRACE}
    assert f"{whole.parent.span_id:016x}" == PARENT and embed.parent.span_id == whole.context.span_id
    assert (whole.end_time - whole.start_time) / 1e9 == pytest.approx(0.5, abs=1e-6)
    assert (rank.end_time - rank.start_time) / 1e9 == pytest.approx(0.3, abs=1e-6)
    assert (embed.start_time, rank.end_time) == (whole.start_time, whole.end_time)
    assert abs(time.time_ns() - whole.end_time) < 60e9, "by the wall clock"
    assert dict(whole.attributes) == {"nextwatch.items": 20, "nextwatch.degraded": ("unranked",)}
    about = dict(whole.resource.attributes)
    assert (about["service.name"], about["service.instance.id"]) == ("nextwatch-serving", "server-1")


def test_who_asks_says_whether_it_is_traced_and_of_the_others_a_share_is_drawn() -> None:
    assert told(NOT_SAMPLED, 1.0) == []
    assert told("", 0.0) == [] and len(told("", 1.0)) == 3
    assert 10 <= len(told("", 0.1, times=1000)) / 3 <= 300


def test_what_stands_on_several_traces_is_a_part_of_one_and_linked_to_the_others() -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, other = InMemorySpanExporter(), SAMPLED.replace(TRACE, TRACE[::-1])
    tracer, now_s = Tracer(exporter, 0.0, "trainer", "t"), time.perf_counter()
    tracer.tell("learn", SAMPLED, [Stage("step", now_s, now_s)], {}, [other])
    tracer.close()
    _, whole = exporter.get_finished_spans()
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert [f"{each.context.trace_id:032x}" for each in whole.links] == [TRACE[::-1]]


BROKEN = [b"", b"00-none", SAMPLED.upper().encode(), b"ff" + SAMPLED[2:].encode(), SAMPLED.encode() + b"-\xff", None]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_header_that_is_none_is_passed_over(broken: bytes | None) -> None:
    assert traceparent_in([("other", b"x"), ("traceparent", broken)]) == ""
    assert traceparent_in([("traceparent", SAMPLED.encode())]) == SAMPLED


class Receiver(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP, as a collector does, and keeps what came."""

    requests: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_spans_arrive_at_a_receiver_of_otlp_over_http() -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    receiver = type("Own", (Receiver,), {"requests": []})
    with receiving(receiver) as address:
        tracer = tracer_of(Tracing(endpoint=address + "/", share=1.0), "serving", "server-1")
        assert tracer is not None
        now_s = time.perf_counter()
        tracer.tell("recommend", SAMPLED, [Stage("rank", now_s - 0.1, now_s)], {})
        tracer.close()
    [(path, body)] = receiver.requests
    message = ExportTraceServiceRequest.FromString(body)
    [resource] = message.resource_spans
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert path == "/v1/traces" and set(spans) == {"recommend", "rank"}
    assert spans["recommend"].trace_id.hex() == TRACE and spans["rank"].parent_span_id == spans["recommend"].span_id


def test_a_receiver_that_is_away_or_takes_its_time_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CLOSE_S", 0.3)
    going_on = threading.Event()

    class Slow(Receiver):
        def do_POST(self) -> None:
            going_on.wait(20)

    with receiving(Slow) as address:
        for endpoint in (address, "http://127.0.0.1:1"):
            tracer = tracer_of(Tracing(endpoint=endpoint), "serving", "s")
            assert tracer is not None
            start_s = time.perf_counter()
            for _ in range(3000):  # more than are kept
                tracer.tell("recommend", SAMPLED, [Stage("rank", start_s, start_s)], {})
            assert time.perf_counter() - start_s < 10, "nothing waits for the receiver"
            start_s = time.perf_counter()
            tracer.close()
            assert time.perf_counter() - start_s < 2
        going_on.set()


def test_off_is_the_default_and_imports_nothing_of_it() -> None:
    assert tracer_of(Settings().tracing, "serving", "s") is None
    code = (
        "import sys, json\n"
        "from infra.platform.tracing import tracer_of\n"
        "from infra.platform.settings import Tracing\n"
        "tracer_of(Tracing(), 'serving', 's')\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_an_endpoint_without_the_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        SettingsError, match=r"tracing.endpoint needs OpenTelemetry: pip install 'nextwatch\[tracing\]'"
    ):
        tracer_of(Tracing(endpoint="http://127.0.0.1:4318"), "serving", "s")


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:4318", "http://me:secret@host", "http://host?key=secret", "grpc://host"]
)
def test_an_endpoint_is_an_address_without_secrets(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        Tracing(endpoint=endpoint)

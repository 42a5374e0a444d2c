"""Status of the processes of a data directory, read from their own web pages: for `nextwatch status` and `up`."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, isnan
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from infra.platform.health import fetch_health, fetch_page
from infra.platform.run_files import reachable, read_run_files
from infra.platform.settings import Metrics, Settings

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Delay(msgspec.Struct, frozen=True):
    """Median and tail of a histogram, to the width of its buckets."""

    p50_s: float | None
    p99_s: float | None
    count: int


class ProcessStatus(msgspec.Struct, frozen=True):
    name: str
    pid: int
    address: str
    ready: bool
    reasons: list[str]
    lag: int
    version: str
    tls: bool = False


class StatusReport(msgspec.Struct, frozen=True):
    ready: bool
    processes: list[ProcessStatus]
    index_rows: int | None = None
    event_to_history: Delay | None = None
    event_to_vector: Delay | None = None
    requests: int = 0
    recall: dict[str, float] = {}
    recall_of: int = 0  # examples that it stands on


def read_status(settings: Settings) -> StatusReport:
    """Ask every process that has a run file in this data directory."""
    processes: list[ProcessStatus] = []
    merged: Samples = {}
    for record in read_run_files(settings.run_dir):
        health = fetch_health(record, settings.metrics)
        samples = fetch_samples(record, settings.metrics) if health["live"] else {}
        add_up(merged, samples)
        processes.append(_status_of(record, health, samples))
    return StatusReport(
        ready=bool(processes) and all(process.ready for process in processes),
        processes=processes,
        index_rows=_gauge(merged, "nextwatch_index_rows"),
        event_to_history=delay_of(merged, "nextwatch_event_to_history_seconds"),
        event_to_vector=delay_of(merged, "nextwatch_event_to_vector_seconds"),
        requests=int(sum(value for (name, _), value in merged.items() if name == "nextwatch_requests_total")),
        recall={
            f"{dict(labels)['model']}@{dict(labels)['k']}": value
            for (name, labels), value in merged.items()
            if name == "nextwatch_prequential_recall"
        },
        recall_of=_gauge(merged, "nextwatch_prequential_sample") or 0,
    )


def fetch_samples(record: dict[str, Any], access: Metrics | None = None) -> Samples:
    """The page /metrics of a process; empty when it does not answer, or does not accept our token."""
    try:
        text = fetch_page(record, "/metrics", access, timeout_s=2.0).decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except (OSError, ValueError):
        return {}


def add_up(merged: Samples, samples: Samples) -> None:
    """Add one process's samples: every process serves all names, those of the others' work as zeros or NaN."""
    for (name, labels), value in samples.items():
        if isnan(value):
            continue
        before = merged.get((name, labels), 0.0)
        is_count = name.endswith(("_total", "_bucket", "_count", "_sum"))
        merged[name, labels] = before + value if is_count else max(before, value)


def delay_of(samples: Samples, name: str) -> Delay | None:
    """p50 and p99 of a histogram, as the upper ends of the buckets that they fall into; None when it is empty. One of
    them is None when it lies above all buckets."""
    buckets = sorted(
        (float(dict(labels)["le"]), count) for (sample, labels), count in samples.items() if sample == f"{name}_bucket"
    )
    total = buckets[-1][1] if buckets else 0
    if not total:
        return None
    return Delay(_quantile(buckets, 0.5 * total), _quantile(buckets, 0.99 * total), int(total))


def since(samples: Samples, before: Samples) -> Samples:
    """The growth of counters and histograms since `before` was read."""
    return {key: value - before.get(key, 0.0) for key, value in samples.items()}


def render_status(report: StatusReport, notes: Iterable[str] = ()) -> RenderableType:
    if not report.processes:
        return "no process of nextwatch runs on this data directory (start `nextwatch up`)"
    table = Table("process", "state", "lag", "release", "metrics", "pid", box=None, pad_edge=False)
    for each in report.processes:
        state = "[green]ready[/]" if each.ready else f"[yellow]{escape('; '.join(each.reasons))}[/]"
        page = f"{'https' if each.tls else 'http'}://{each.address}/metrics"
        table.add_row(each.name, state, f"{each.lag:,}", each.version or "-", page, str(each.pid))
    return Group(table, "", *_facts(report), *notes)


def _facts(report: StatusReport) -> Iterable[str]:
    if report.index_rows is not None:
        yield f"index      {report.index_rows:,} items"
    for name, delay in (("history", report.event_to_history), ("vector", report.event_to_vector)):
        if delay is not None:
            within = f"p50 {within_s(delay.p50_s)}, p99 {within_s(delay.p99_s)}"
            yield f"freshness  watch to {name}: {within} ({delay.count:,})"
    if report.recall:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in sorted(report.recall.items()))
        yield f"recall     before learning: {shown} ({report.recall_of:,} watches)"
    yield f"requests   {report.requests:,} answered"


def _status_of(record: dict[str, Any], health: dict[str, Any], samples: Samples) -> ProcessStatus:
    version = next((dict(labels)["version"] for (name, labels) in samples if name == "nextwatch_model_info"), "")
    lag = sum(value for (name, _), value in samples.items() if name == "nextwatch_consumer_lag_messages")
    return ProcessStatus(
        name=record["name"],
        pid=record["pid"],
        address=f"{reachable(record['host'])}:{record['port']}",
        ready=bool(health["ready"]),
        reasons=list(health.get("reasons", [])),
        lag=int(lag),
        version=version,
        tls=record.get("tls", False),
    )


def _gauge(samples: Samples, name: str) -> int | None:
    values = [value for (sample, _), value in samples.items() if sample == name]
    return int(values[0]) if values else None


def within_s(upper_s: float | None) -> str:
    return "not within the largest bucket" if upper_s is None else f"within {upper_s:g} s"


def _quantile(buckets: list[tuple[float, float]], rank: float) -> float | None:
    upper = next(upper for upper, count in buckets if count >= rank)
    return upper if isfinite(upper) else None

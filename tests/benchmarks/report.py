"""A benchmark's result: a table for people, and the same as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.local.supervisor import interrupted_by_signals


@dataclass
class Report:
    """`rows` are flat; a bar is a value with the limit that it should reach (`at_least`) or keep."""

    name: str
    title: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    bars: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        self.rows.append(row)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def bar(self, what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        reached = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        limit = at_least if at_least is not None else at_most
        sense = ">=" if at_least is not None else "<="
        self.bars[what] = {"value": value, "bar": limit, "sense": sense, "ok": reached}

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "machine": machine(), "rows": self.rows, "bars": self.bars, "notes": self.notes}

    def show(self, console: Console) -> None:
        """Print the table; columns in the order in which rows first name them."""
        table = Table(title=self.title or self.name, title_justify="left", caption_justify="left", caption=machine())
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", highlight=False, soft_wrap=True)
        for what, bar in self.bars.items():
            verdict = "ok" if bar["ok"] else "MISSED"
            console.print(
                f"  {verdict:<6} {what}: {_cell(bar['value'])} (bar {bar['sense']} {_cell(bar['bar'])})",
                highlight=False,
                soft_wrap=True,
            )


Benchmark = Callable[[Report, bool], None]


def run(name: str, measure: Benchmark, *, quick: bool) -> dict[str, Any]:
    report = Report(name)
    if quick:
        report.note("quick: a smaller run, its numbers are rough")
    with interrupted_by_signals():  # a benchmark that is told to stop takes its services with it
        measure(report, quick)
    report.show(Console(width=None if os.isatty(1) else 140))
    return report.as_json()


def machine() -> str:
    """CPU, cores, and the versions that decide about speed."""
    return f"{_cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}"


def say(what: str) -> None:
    """Tell the person who waits."""
    Console(stderr=True).print(what, highlight=False, markup=False)


def percentiles(times: Sequence[float], unit: str = "ms") -> dict[str, float]:
    """Two columns of a table: p50 and p99."""
    return {f"p50 {unit}": quantile(times, 0.5), f"p99 {unit}": quantile(times, 0.99)}


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of the values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(q * 1000) // 1000) - 1)] if ordered else float("nan")


def histogram_quantile(before: Mapping[str, float], after: Mapping[str, float], name: str, q: float) -> float:
    """The quantile of what a Prometheus histogram without labels has observed between two readings of /metrics, in its
    unit: interpolated within the bucket, as Prometheus does it; the largest finite bound when it lies beyond."""
    marker = f'{name}_bucket{{le="'
    bounds = {s: float(s.removeprefix(marker).removesuffix('"}')) for s in after if s.startswith(marker)}
    counts = sorted((bound, after[sample] - before.get(sample, 0.0)) for sample, bound in bounds.items())
    if not counts or counts[-1][1] <= 0:
        return float("nan")
    wanted, low, below = q * counts[-1][1], 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def memory_bytes(kind: str) -> int:
    """Of this process, by the kernel's name: `RssAnon` is no mapped file, `VmRSS` everything, `VmHWM` its most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{kind}:"))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

"""The figures of the page Now and their last hour: read from our own processes' metrics, kept in memory, drawn as SVG.

No Prometheus is needed. A figure is a gauge, or a rate of a counter; a process that was restarted counts from nothing
again, so a counter that falls is no rate.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from infra.operate.status import Samples, add_up, fetch_samples
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings

log = structlog.get_logger(__name__)

EVERY_S = 15.0
KEPT = 240  # points: an hour
SHORTEST_S = 120.0  # that a curve shows, however little is known
WIDTH, HEIGHT = 320, 60


@dataclass(frozen=True)
class Figure:
    """`of` reads it from the samples of all processes; `is_rate`: what counts is its growth a second."""

    name: str
    unit: str
    of: Callable[[Samples], float | None]
    is_rate: bool = False


@dataclass
class Series:
    figure: Figure
    points: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=KEPT))  # seconds and value
    last: tuple[float, float] | None = None  # of a counter

    def add(self, now_s: float, value: float | None) -> None:
        """Note what was read now; None where nobody tells."""
        if value is None:
            return
        if not self.figure.is_rate:
            self.points.append((now_s, value))
            return
        if self.last is not None and value >= self.last[1] and now_s > self.last[0]:
            self.points.append((now_s, (value - self.last[1]) / (now_s - self.last[0])))
        self.last = (now_s, value)

    @property
    def newest(self) -> float | None:
        return self.points[-1][1] if self.points else None

    @property
    def span_s(self) -> float:
        """What the curve's whole width stands for."""
        known_s = self.points[-1][0] - self.points[0][0] if self.points else 0.0
        return max(SHORTEST_S, known_s)

    @property
    def line(self) -> str:
        """The points of an SVG polyline, the newest at the right end, from 0 to the largest."""
        if len(self.points) < 2:
            return ""
        end_s, most = self.points[-1][0], max(value for _, value in self.points) or 1.0
        ages = [(end_s - at_s) / self.span_s for at_s, _ in self.points]
        heights = [value / most for _, value in self.points]
        places = zip(ages, heights, strict=True)
        return " ".join(f"{WIDTH * (1 - age):.1f},{HEIGHT * (1 - height):.1f}" for age, height in places)


def total(name: str, **labels: str) -> Callable[[Samples], float | None]:
    """The sum of a metric's samples that have these labels."""
    wanted = labels.items()

    def read(samples: Samples) -> float | None:
        found = [value for (each, has), value in samples.items() if each == name and wanted <= dict(has).items()]
        return sum(found) if found else None

    return read


def mean(name: str) -> Callable[[Samples], float | None]:
    """The mean of all that a histogram has observed."""

    def read(samples: Samples) -> float | None:
        count = total(f"{name}_count")(samples)
        return (total(f"{name}_sum")(samples) or 0.0) / count if count else None

    return read


FIGURES = (
    Figure("watches", "a second", total("nextwatch_watches_total"), is_rate=True),
    Figure("requests", "a second", total("nextwatch_requests_total"), is_rate=True),
    Figure("answers down the ladder", "a second", total("nextwatch_fallbacks_total"), is_rate=True),
    Figure("time of a request, mean", "s", mean("nextwatch_request_seconds")),
    Figure("watch to history, mean", "s", mean("nextwatch_event_to_history_seconds")),
    Figure("watch to vector, mean", "s", mean("nextwatch_event_to_vector_seconds")),
    Figure("messages not yet handled", "", total("nextwatch_consumer_lag_messages")),
    Figure("recall@100 before learning", "", total("nextwatch_prequential_recall", model="live", k="100")),
)


class Sampler:
    """Reads the figures every few seconds, in a thread. `processes`: what was ready when it last looked."""

    def __init__(self, settings: Settings, figures: Iterable[Figure] = FIGURES) -> None:
        self.series: Sequence[Series] = [Series(figure) for figure in figures]
        self.processes: list[tuple[str, bool, str]] = []  # name, ready, reasons
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def look(self, now_s: float) -> None:
        """Read all processes once."""
        merged: Samples = {}
        processes = []
        for record in read_run_files(self._settings.run_dir):
            health = fetch_health(record, self._settings.metrics)
            processes.append((record["name"], bool(health["ready"]), "; ".join(health.get("reasons", []))))
            add_up(merged, fetch_samples(record, self._settings.metrics) if health["live"] else {})
        self.processes = processes
        for series in self.series:
            series.add(now_s, series.figure.of(merged))

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look(time.monotonic())
            except Exception:  # a page of figures must not end with one bad reading
                log.exception("the figures cannot be read")
            self._stop.wait(EVERY_S)
